"""Making the tap: the guest's network interface, seen from this side as a descriptor of frames.

The descriptor stays bound to the namespace it was opened in. Offloads are asked for from the best set downwards;
what the kernel grants decides how large the frames are that may be exchanged.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from bucatini.errors import HostError
from bucatini.lean import sockets
from bucatini.lean.record import NamedTuple

DEVICE = "/dev/net/tun"
TUNSETIFF = 0x400454CA  # linux/if_tun.h
TUNSETOFFLOAD = 0x400454D0
TUNSETVNETHDRSZ = 0x400454D8
IFF_TAP = 0x0002
IFF_NO_PI = 0x1000
IFF_VNET_HDR = 0x4000
TUN_F_CSUM = 0x01
TUN_F_TSO = 0x02 | 0x04  # TSO4 and TSO6
TUN_F_USO = 0x20 | 0x40  # USO4 and USO6, Linux 6.2
VNET_HEADER = 10  # sizeof(struct virtio_net_hdr)


class Tap(NamedTuple):
    """An open tap."""

    fd: int
    tso: bool
    uso: bool


def open_device() -> int:
    """Open what becomes a tap, in the network namespace in which we are now; HostError."""
    try:
        return os.open(DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        advice = "the tun module is missing, or this user may not open it: modprobe tun; chmod 666 /dev/net/tun"
        raise HostError(f"open {DEVICE}", error.errno or 0, advice) from None


def open_tap(name: str, device: int | None = None) -> Tap:
    """Make the interface `name` in the current network namespace, where `device` was opened, if it was."""
    fd = open_device() if device is None else device
    try:
        request = struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI | IFF_VNET_HDR)
        fcntl.ioctl(fd, TUNSETIFF, request)
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
        for tso, uso in ((True, True), (True, False), (False, False)):
            wanted = TUN_F_CSUM | (TUN_F_TSO if tso else 0) | (TUN_F_USO if uso else 0)
            try:
                fcntl.ioctl(fd, TUNSETOFFLOAD, wanted)
            except OSError as error:
                if error.errno != errno.EINVAL or not tso:
                    raise
                continue
            break
    except OSError as error:
        os.close(fd)
        advice = ""
        if _exists(name):
            advice = "an interface of that name is there already: choose another with --ns-ifname"
        raise HostError(f"make the tap '{name}'", error.errno or 0, advice) from None
    return Tap(fd, tso, uso)


def _exists(name: str) -> bool:
    try:
        sockets.if_nametoindex(name)
    except OSError:
        return False
    return True
