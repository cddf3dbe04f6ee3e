"""DHCP and BOOTP messages for IPv4 (RFC 2131, options of RFC 2132)."""

import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated

FIXED = 236  # bytes in front of the magic cookie
COOKIE = b"\x63\x82\x53\x63"
BOOTREQUEST, BOOTREPLY = 1, 2
CLIENT_PORT, SERVER_PORT = 68, 67
BROADCAST_FLAG = 0x8000
MIN_LENGTH = 300  # bytes of a BOOTP message, RFC 1542 §2.1

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)

OPT_PAD = 0
OPT_MASK = 1
OPT_ROUTER = 3
OPT_DNS = 6
OPT_HOSTNAME = 12
OPT_MTU = 26
OPT_REQUESTED = 50
OPT_LEASE = 51
OPT_OVERLOAD = 52
OPT_TYPE = 53
OPT_SERVER = 54
OPT_PARAMETERS = 55
OPT_RAPID_COMMIT = 80  # RFC 4039
OPT_FQDN = 81  # RFC 4702
OPT_SEARCH = 119  # RFC 3397
OPT_ROUTES = 121  # RFC 3442
OPT_END = 255


class Dhcp(NamedTuple):
    """A message. Addresses are 4 bytes; options keep their order, a repeated one is joined (RFC 3396)."""

    op: int
    xid: int
    hardware: bytes  # client's MAC address
    options: tuple[tuple[int, bytes], ...]
    flags: int = 0
    seconds: int = 0
    ciaddr: bytes = bytes(4)
    yiaddr: bytes = bytes(4)
    siaddr: bytes = bytes(4)
    giaddr: bytes = bytes(4)
    hops: int = 0
    bootp: bool = False  # no cookie, so no options

    def option(self, code: int) -> bytes | None:
        """Return the value of an option."""
        return next((value for found, value in self.options if found == code), None)

    @classmethod
    def parse(cls, data: bytes) -> "Dhcp":
        """Options of overloaded fields are included (RFC 2131 §4.1). Raises Truncated, Malformed."""
        if len(data) < FIXED:
            raise Truncated("DHCP")
        op, htype, hlen, hops, xid, seconds, flags = struct.unpack_from(">BBBBIHH", data)
        if htype != 1 or hlen != 6:
            raise Malformed("DHCP: not Ethernet")
        found: dict[int, bytes] = {}
        bootp = data[FIXED : FIXED + 4] != COOKIE
        if not bootp:
            _options(data[FIXED + 4 :], found)
            overload = found.get(OPT_OVERLOAD, b"\0")[:1]
            if overload in (b"\1", b"\3"):
                _options(data[108:236], found)
            if overload in (b"\2", b"\3"):
                _options(data[44:108], found)
        addresses = (data[12:16], data[16:20], data[20:24], data[24:28])
        return cls(op, xid, data[28:34], tuple(found.items()), flags, seconds, *addresses, hops, bootp)

    def emit(self) -> bytes:
        """Return the message, at least 300 bytes; a value beyond 255 bytes is split (RFC 3396)."""
        out = struct.pack(">BBBBIHH", self.op, 1, 6, self.hops, self.xid, self.seconds, self.flags)
        out += self.ciaddr + self.yiaddr + self.siaddr + self.giaddr + self.hardware + bytes(10 + 64 + 128)
        if self.bootp:
            return out.ljust(MIN_LENGTH, b"\0")
        out += COOKIE
        for code, value in self.options:
            for at in range(0, max(len(value), 1), 255):
                part = value[at : at + 255]
                out += bytes([code, len(part)]) + part
        return (out + bytes([OPT_END])).ljust(MIN_LENGTH, b"\0")

    def __str__(self) -> str:
        kind = (self.option(OPT_TYPE) or b"\0")[0]
        names = ("BOOTP", "Discover", "Offer", "Request", "Decline", "ACK", "NAK", "Release", "Inform")
        return f"DHCP {names[kind] if kind < len(names) else kind} xid {self.xid:#010x} {self.hardware.hex(':')}"


def _options(data: bytes, found: dict[int, bytes]) -> None:
    """Add the options of one field to `found`. Raises Truncated."""
    at = 0
    while at < len(data):
        code = data[at]
        if code == OPT_END:
            return
        if code == OPT_PAD:
            at += 1
            continue
        if at + 2 > len(data) or at + 2 + data[at + 1] > len(data):
            raise Truncated("DHCP option")
        found[code] = found.get(code, b"") + data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
