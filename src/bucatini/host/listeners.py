"""Which ports are bound: the listening TCP and unconnected UDP sockets of a network namespace.

They are asked for by sock_diag(7), which answers for the namespace in which its socket was opened; where the kernel
does not have it or a sandbox forbids it, read from the tables of /proc/net (proc(5)), open since the start.

Whoever is in a namespace may bind as many sockets as there is memory for. So they come in parts, between which other
things can be done, and of each kind only so many are looked at (`SOCKETS`).
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
SOCKETS = 1 << 16  # of a protocol and IP version that are looked at: as many as there are ports
PART = 1 << 16  # bytes of a table

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


Ports = dict[int, dict[int, int]]  # protocol -> port -> IP versions that it is bound for: 4, 6, 0 for both


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
        self.netlink.sock.setblocking(False)  # what the kernel has to say is there at once

    def close(self) -> None:
        """Close the socket."""
        self.netlink.close()

    def parts(self) -> Iterator[list[Listener] | None]:
        """Yield what is bound, None for a part not looked at; HostError when the kernel does not say."""
        doing = "list bound sockets"
        for _ in self.netlink.discard(doing):
            yield []
        for protocol in PROTOCOLS:
            states = 1 << (TCP_LISTEN if protocol == sockets.IPPROTO_TCP else TCP_CLOSE)
            for family in (sockets.AF_INET, sockets.AF_INET6):
                body = _REQUEST.pack(family, protocol, 0, states)
                seen = 0
                for messages, _ in self.netlink.dump_in_parts(SOCK_DIAG_BY_FAMILY, body, doing):
                    seen += len(messages)
                    if seen > SOCKETS:
                        yield None  # the dump has to be read to its end all the same
                        continue
                    found = (parse_message(protocol, message) for message in messages)
                    yield [listener for listener in found if listener is not None]


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

    def parts(self) -> Iterator[list[Listener] | None]:
        """Yield what is bound, None for what is not looked at; OSError when it cannot be read."""
        for (protocol, version), fd in self.fds.items():
            at = seen = 0
            rest = b""
            while part := os.pread(fd, PART, at):
                at += len(part)
                *lines, rest = (rest + part).split(b"\n")
                parsed = (parse_line(protocol, version, line.decode("ascii", "replace")) for line in lines)
                found = [listener for listener in parsed if listener is not None]
                seen += len(found)
                if seen > SOCKETS:
                    yield None
                    break
                yield found


def parse_line(protocol: int, version: int, line: str) -> Listener | None:
    """Return the socket of a line of /proc/net's tables; None when it does not fit, as their heads, or is of no use."""
    state = TCP_LISTEN if protocol == sockets.IPPROTO_TCP else TCP_CLOSE
    fields = line.split()
    if len(fields) < 10 or fields[3] != f"{state:02X}":
        return None
    address, _, port = fields[1].partition(":")
    if len(address) != (8 if version == 4 else 32) or len(port) != 4:
        return None
    try:
        # Words in the machine's order, and a number: int() would take signs too
        words = struct.unpack(f">{len(address) // 8}I", bytes.fromhex(address))
        number, inode = int.from_bytes(bytes.fromhex(port), "big"), int(fields[9])
    except ValueError:
        return None
    if number == 0:
        return None
    raw = struct.pack(f"={len(words)}I", *words)
    # It does not say whether a socket of all addresses takes IPv4 too: most do
    return Listener(protocol, 0 if version == 6 and is_any(raw) else version, number, raw, inode)


def no_ports() -> Ports:
    """Return what `add_ports` begins with."""
    return {protocol: {} for protocol in PROTOCOLS}


def add_ports(found: Ports, listeners: Iterable[Listener], *, loopback: bool, others: bool, not_ours: set[int]) -> None:
    """Add the ports of sockets, with the IP versions that they are bound for.

    Args:
        loopback: also what is bound to a loopback address alone.
        others: also what is bound to an address that is none of loopback.
        not_ours: inodes of sockets to leave out.
    """
    for entry in listeners:
        if entry.inode in not_ours:
            continue
        if not is_any(entry.address) and not (loopback if is_loopback(entry.address) else others):
            continue
        of = found[entry.protocol]
        of[entry.port] = entry.version if of.get(entry.port, entry.version) == entry.version else 0
