"""What the kernel of this host lets us do, found out by doing it.

Each function tries one facility on throw-away objects (a socket pair on the loopback, a child process in namespaces of
its own) and leaves nothing behind. Nothing here decides what a missing facility means: `bucatini.cli.doctor` does.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from typing import NamedTuple

from bucatini.errors import HostError
from bucatini.host import isolation, kernel

TUN_PATH = "/dev/net/tun"
TUNSETIFF = 0x400454CA  # linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO = 0x02 | 0x04  # TSO4, TSO6
TUN_F_USO = 0x20 | 0x40  # USO4, USO6: Linux 6.2

SO_PEEK_OFF = 42  # asm-generic/socket.h; for TCP since Linux 6.9, over IPv6 6.12
UDP_SEGMENT = 103  # linux/udp.h, Linux 4.18


class NamespaceTrial(NamedTuple):
    """How far a child came that made namespaces and a tap in them, as pasta does."""

    failed: str  # the step that was refused: "unshare", "map", "open", "tap"; empty: none was
    errno: int
    tso: bool = False  # the tap takes TCP superframes
    uso: bool = False  # and runs of datagrams


def try_namespaces() -> NamespaceTrial:
    """Make user and network namespaces and a tap in a child process."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, repr(tuple(_inside())).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    if not said:
        return NamespaceTrial("unshare", errno.EIO)
    failed, number, tso, uso = said.strip("()").split(", ")
    return NamespaceTrial(failed.strip("'"), int(number), tso == "True", uso == "True")


def try_isolation() -> str:
    """Give up in a child process what pasta and passt give up before they serve; what was refused, "": nothing."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            isolation.own_namespaces(processes=True)
            isolation.empty_root(chroot_fallback=False)
            isolation.give_up()
            isolation.seal("serve", bind=False)
            os.write(write_end, b"+")
        except HostError as error:
            os.write(write_end, str(error).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    said = os.read(read_end, 4096).decode()
    os.close(read_end)
    os.waitpid(child, 0)
    return "" if said == "+" else said or "the process that tried was killed"


def _inside() -> NamespaceTrial:
    """The child's part."""
    uid, gid = os.getuid(), os.getgid()
    step = "unshare"
    try:
        kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWNET, "make namespaces")
        step = "map"
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        step = "open"
        tap = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC)
        step = "tap"
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", b"doctor0", IFF_TAP | IFF_NO_PI | IFF_VNET_HDR))
    except HostError as error:
        return NamespaceTrial(step, error.errno)
    except OSError as error:
        return NamespaceTrial(step, error.errno or errno.EIO)
    return NamespaceTrial("", 0, _offload(tap, TUN_F_TSO), _offload(tap, TUN_F_TSO | TUN_F_USO))


def _offload(tap: int, features: int) -> bool:
    try:
        fcntl.ioctl(tap, TUNSETOFFLOAD, TUN_F_CSUM | features)
    except OSError:
        return False
    return True


def open_tun() -> int:
    """0, or the error number of opening /dev/net/tun."""
    try:
        os.close(os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def ping_sockets() -> bool:
    """Whether we may open ping sockets: one of our groups is in net.ipv4.ping_group_range (icmp(7))."""
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
    except OSError:
        return False
    return True


def tcp_peek_off() -> bool:
    """Whether SO_PEEK_OFF works on TCP, over both IP versions where there are two."""
    return _peeks_on("127.0.0.1") and (not _has_loopback6() or _peeks_on("::1"))


def _has_loopback6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _peeks_on(loopback: str) -> bool:
    """Whether a second look begins where the first one ended."""
    with _tcp_pair(loopback) as (left, right):
        left.sendall(b"ab")
        try:
            right.setsockopt(socket.SOL_SOCKET, SO_PEEK_OFF, 0)
        except OSError:
            return False
        return right.recv(1, socket.MSG_PEEK) == b"a" and right.recv(1, socket.MSG_PEEK) == b"b"


def udp_segment() -> bool:
    """Whether one call may send a run of datagrams."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 1000)
        except OSError:
            return False
    return True


class _tcp_pair:  # noqa: N801 - used as a function
    """Two connected TCP sockets on the loopback."""

    def __init__(self, loopback: str = "127.0.0.1") -> None:
        self._loopback = loopback

    def __enter__(self) -> tuple[socket.socket, socket.socket]:
        family = socket.AF_INET6 if ":" in self._loopback else socket.AF_INET
        with socket.create_server((self._loopback, 0), family=family) as listener:
            self._left = socket.create_connection(listener.getsockname()[:2], 5)
            self._right, _ = listener.accept()
        self._right.settimeout(5)
        return self._left, self._right

    def __exit__(self, *exception: object) -> None:
        self._left.close()
        self._right.close()
