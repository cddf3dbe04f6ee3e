"""Which ports are bound: the listening TCP and unconnected UDP sockets of a network namespace.

They are asked for by sock_diag(7), which answers for the namespace in which its socket was opened; where the kernel
does not have it or a sandbox forbids it, read from the tables of /proc/net (proc(5)), open since the start.
"""

from __future__ import annotations

import os
import struct
import sys

from bucatini.errors import HostError
from bucatini.host.netlink import Netlink, attributes
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# syscalls auto: pread64

NETLINK_SOCK_DIAG = 4  # linux/netlink.h
SOCK_DIAG_BY_FAMILY = 20  # linux/sock_diag.h
INET_DIAG_SKV6ONLY = 11  # linux/inet_diag.h
TCP_LISTEN = 10  # net/tcp_states.h
TCP_CLOSE = 7  # what an unconnected UDP socket is in

_REQUEST = struct.Struct("=BBBxI48x")  # struct inet_diag_req_v2
_INODE = 68  # bytes into struct inet_diag_msg
_SIZE = 72

PROTOCOLS = (sockets.IPPROTO_TCP, sockets.IPPROTO_UDP)
TABLES = {
    (sockets.IPPROTO_TCP, 4): "tcp",
    (sockets.IPPROTO_TCP, 6): "tcp6",
    (sockets.IPPROTO_UDP, 4): "udp",
    (sockets.IPPROTO_UDP, 6): "udp6",
}


class Listener(NamedTuple):
    """A bound socket."""

    protocol: int  # 6 or 17
    version: int  # 4, 6, or 0: both
    port: int
    address: bytes  # 4 or 16 bytes
    inode: int


def is_any(address: bytes) -> bool:
    """Whether this is 0.0.0.0 or ::."""
    return not any(address)


def is_loopback(address: bytes) -> bool:
    """Whether this is in 127.0.0.0/8, mapped or not, or ::1."""
    if len(address) == 4:
        return address[0] == 127
    return address == bytes(15) + b"\x01" or (address.startswith(bytes(10) + b"\xff\xff") and address[12] == 127)


class SocketDiag:
    """Asks the kernel."""

    def __init__(self, fd: int | None = None) -> None:
        """Open a socket here, or take one over that was opened in another namespace; HostError."""
        if fd is None:
            try:
                sock = sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, NETLINK_SOCK_DIAG)
            except OSError as error:
                raise HostError("open a netlink socket", error.errno or 0) from None
            fd = sock.detach()
        self.netlink = Netlink(fd)

    def close(self) -> None:
        """Close the socket."""
        self.netlink.close()

    def listeners(self) -> list[Listener]:
        """Return what is bound; HostError when the kernel does not say."""
        found: list[Listener] = []
        for protocol in PROTOCOLS:
            states = 1 << (TCP_LISTEN if protocol == sockets.IPPROTO_TCP else TCP_CLOSE)
            for family in (sockets.AF_INET, sockets.AF_INET6):
                body = _REQUEST.pack(family, protocol, 0, states)
                for message in self.netlink.dump(SOCK_DIAG_BY_FAMILY, body, "list bound sockets"):
                    listener = parse_message(protocol, message)
                    if listener is not None:
                        found.append(listener)
        return found


def parse_message(protocol: int, message: bytes) -> Listener | None:
    """Return the socket of a struct inet_diag_msg and its attributes; None when it does not fit or is of no use."""
    if len(message) < _SIZE:
        return None
    family = message[0]
    port = int.from_bytes(message[4:6], "big")
    inode = int.from_bytes(message[_INODE:_SIZE], sys.byteorder)
    if port == 0 or family not in (sockets.AF_INET, sockets.AF_INET6):
        return None
    if family == sockets.AF_INET:
        return Listener(protocol, 4, port, message[8:12], inode)
    address = message[8:24]
    version = 6
    if is_any(address):
        # Dual stack unless it says otherwise
        version = 0
        for kind, value in attributes(message[_SIZE:]):
            if kind == INET_DIAG_SKV6ONLY and value[:1] == b"\x01":
                version = 6
    elif address.startswith(bytes(10) + b"\xff\xff"):
        return Listener(protocol, 4, port, address[12:], inode)
    return Listener(protocol, version, port, address, inode)


class ProcTables:
    """Reads /proc/net."""

    def __init__(self, fds: dict[tuple[int, int], int] | None = None) -> None:
        """Open the tables here, or take over those opened elsewhere: (protocol, version) -> descriptor."""
        if fds is None:
            fds = {}
            for key, name in TABLES.items():
                try:
                    fds[key] = os.open(f"/proc/self/net/{name}", os.O_RDONLY | os.O_CLOEXEC)
                except OSError:
                    continue  # ipv6.disable=1
        self.fds = fds

    def close(self) -> None:
        """Close the tables."""
        for fd in self.fds.values():
            os.close(fd)

    def listeners(self) -> list[Listener]:
        """Return what is bound."""
        found: list[Listener] = []
        for (protocol, version), fd in self.fds.items():
            found += parse_table(protocol, version, _read(fd))
        return found


def _read(fd: int) -> str:
    parts = []
    at = 0
    while part := os.pread(fd, 1 << 16, at):
        parts.append(part)
        at += len(part)
    return b"".join(parts).decode("ascii", "replace")


def parse_table(protocol: int, version: int, text: str) -> Iterator[Listener]:
    """Yield what is bound according to a table of /proc/net; lines that do not fit are left out."""
    state = TCP_LISTEN if protocol == sockets.IPPROTO_TCP else TCP_CLOSE
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 10 or fields[3] != f"{state:02X}":
            continue
        address, _, port = fields[1].partition(":")
        if len(address) != (8 if version == 4 else 32) or len(port) != 4:
            continue
        try:
            # Words in the machine's order, and a number: int() would take signs too
            words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
            number, inode = int.from_bytes(bytes.fromhex(port), "big"), int(fields[9])
        except ValueError:
            continue
        raw = struct.pack(f"={len(words)}I", *words)
        if number:
            # It does not say whether a socket of all addresses takes IPv4 too: most do
            yield Listener(protocol, 0 if version == 6 and is_any(raw) else version, number, raw, inode)


def ports(
    listeners: Iterable[Listener], *, loopback: bool, others: bool, not_ours: set[int]
) -> dict[tuple[int, int], int]:
    """Return (protocol, port) -> IP versions that it is bound for: 4, 6, 0 for both.

    Args:
        loopback: also what is bound to a loopback address alone.
        others: also what is bound to an address that is none of loopback.
        not_ours: inodes of sockets to leave out.
    """
    found: dict[tuple[int, int], int] = {}
    for entry in listeners:
        if entry.inode in not_ours:
            continue
        if not is_any(entry.address) and not (loopback if is_loopback(entry.address) else others):
            continue
        key = (entry.protocol, entry.port)
        if key in found and found[key] != entry.version:
            found[key] = 0
        else:
            found[key] = entry.version
    return found
