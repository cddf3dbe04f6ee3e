"""DHCP and BOOTP messages (RFC 2131 §2, RFC 951), with options as in RFC 2132.

Options are pairs of code and bytes, in order, unknown ones too. An option in several pieces is put together (RFC
3396), those in the `file` and `sname` fields are found (option 52), so a message has each code once; `emit` cuts
long ones into pieces again, and never makes use of those fields. A message without the magic cookie is BOOTP's and
has no options.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire.ethernet import mac_text
from bucatini.wire.ipv4 import text

if TYPE_CHECKING:
    from typing import Self

SERVER_PORT = 67  # RFC 2131 §4.1
CLIENT_PORT = 68
HEADER = 236  # bytes, without the magic cookie
LENGTH_MIN = 300  # bytes, RFC 951 §3: with 64 of vendor area; clients may drop what is shorter
COOKIE = b"\x63\x82\x53\x63"  # RFC 2131 §3

BOOTREQUEST = 1  # RFC 2131 §2, op
BOOTREPLY = 2
BROADCAST_FLAG = 0x8000
ETHERNET = 1  # htype

# RFC 2132
PAD = 0
SUBNET_MASK = 1
ROUTER = 3
DOMAIN_NAME_SERVER = 6
HOST_NAME = 12
INTERFACE_MTU = 26
REQUESTED_ADDRESS = 50
LEASE_TIME = 51
OVERLOAD = 52
MESSAGE_TYPE = 53
SERVER_IDENTIFIER = 54
PARAMETER_REQUEST_LIST = 55
MESSAGE = 56
MAXIMUM_MESSAGE_SIZE = 57
CLIENT_IDENTIFIER = 61
RAPID_COMMIT = 80  # RFC 4039
CLIENT_FQDN = 81  # RFC 4702
DOMAIN_SEARCH = 119  # RFC 3397
CLASSLESS_ROUTES = 121  # RFC 3442
END = 255

# RFC 2132 §9.6
DISCOVER = 1
OFFER = 2
REQUEST = 3
DECLINE = 4
ACK = 5
NAK = 6
RELEASE = 7
INFORM = 8
TYPES = ("BOOTP", "DISCOVER", "OFFER", "REQUEST", "DECLINE", "ACK", "NAK", "RELEASE", "INFORM")

INFINITE = 0xFFFFFFFF  # seconds, RFC 2131 §3.3

# RFC 4702 §2.1, flags of option 81
FQDN_S = 1
FQDN_O = 2
FQDN_E = 4
FQDN_N = 8

_OVERLOAD_FILE = 1  # RFC 2132 §9.3
_OVERLOAD_SNAME = 2
_FIXED = "!BBBBIHH4s4s4s4s16s64s128s"

Options = tuple[tuple[int, bytes], ...]


def _collect(area: bytes, found: dict[int, bytes]) -> None:
    """Add the options of one area; pieces of a code that is there already go behind it (RFC 3396 §7)."""
    position = 0
    while position < len(area):
        code = area[position]
        position += 1
        if code == END:
            return
        if code == PAD:
            continue
        if position >= len(area):
            raise Truncated(f"DHCP option {code}")
        size = area[position]
        position += 1
        if position + size > len(area):
            raise Truncated(f"DHCP option {code} of {size} bytes in {len(area) - position}")
        found[code] = found.get(code, b"") + area[position : position + size]
        position += size


def emit_option(code: int, data: bytes) -> bytes:
    """Return the option, in several pieces when it is longer than 255 bytes (RFC 3396 §5)."""
    pieces = [data[at : at + 255] for at in range(0, len(data), 255)] or [b""]
    return b"".join(bytes([code, len(piece)]) + piece for piece in pieces)


class Dhcp(NamedTuple):
    """A message. Addresses are 4 bytes, zero for none."""

    op: int
    xid: int
    chaddr: bytes  # 16 bytes, of which hlen count
    htype: int = ETHERNET
    hlen: int = 6
    hops: int = 0
    secs: int = 0
    flags: int = 0
    ciaddr: bytes = bytes(4)
    yiaddr: bytes = bytes(4)
    siaddr: bytes = bytes(4)
    giaddr: bytes = bytes(4)
    sname: bytes = bytes(64)
    file: bytes = bytes(128)
    options: Options = ()

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a message; the vendor area may have any length, also none.

        Without an END option the options end with the message: some clients leave it out.
        """
        if len(data) < HEADER:
            raise Truncated(f"DHCP message of {len(data)} bytes")
        op, htype, hlen, hops, xid, secs, flags, ciaddr, yiaddr, siaddr, giaddr, chaddr, sname, file = (
            struct.unpack_from(_FIXED, data)
        )
        if op not in {BOOTREQUEST, BOOTREPLY}:
            raise Malformed(f"DHCP op {op}")
        if hlen > 16:
            raise Malformed(f"DHCP hlen {hlen}")
        found: dict[int, bytes] = {}
        if data[HEADER : HEADER + 4] == COOKIE:
            _collect(data[HEADER + 4 :], found)
            overload = found.pop(OVERLOAD, b"\0")
            if len(overload) != 1 or overload[0] > (_OVERLOAD_FILE | _OVERLOAD_SNAME):
                raise Malformed("DHCP option overload")
            if overload[0] & _OVERLOAD_FILE:
                _collect(file, found)
                file = bytes(128)
            if overload[0] & _OVERLOAD_SNAME:
                _collect(sname, found)
                sname = bytes(64)
            found.pop(OVERLOAD, None)
        return cls(
            op,
            xid,
            chaddr,
            htype,
            hlen,
            hops,
            secs,
            flags,
            ciaddr,
            yiaddr,
            siaddr,
            giaddr,
            sname,
            file,
            tuple(found.items()),
        )

    def emit(self) -> bytes:
        """Return the message, at least `LENGTH_MIN` bytes of it."""
        header = struct.pack(
            _FIXED,
            self.op,
            self.htype,
            self.hlen,
            self.hops,
            self.xid,
            self.secs,
            self.flags,
            self.ciaddr,
            self.yiaddr,
            self.siaddr,
            self.giaddr,
            self.chaddr,
            self.sname,
            self.file,
        )
        options = b"".join(emit_option(code, data) for code, data in self.options)
        return (header + COOKIE + options + bytes([END])).ljust(LENGTH_MIN, b"\0")

    def option(self, code: int) -> bytes | None:
        """Return the contents of an option."""
        for candidate, data in self.options:
            if candidate == code:
                return data
        return None

    @property
    def message_type(self) -> int:
        """DISCOVER to INFORM; 0 for BOOTP. Malformed for an option 53 that is none of them."""
        data = self.option(MESSAGE_TYPE)
        if data is None:
            return 0
        if len(data) != 1 or not DISCOVER <= data[0] <= INFORM:
            raise Malformed(f"DHCP message type {data.hex()}")
        return data[0]

    def address(self, code: int) -> bytes | None:
        """Return the contents of an option that is one address."""
        data = self.option(code)
        if data is not None and len(data) != 4:
            raise Malformed(f"DHCP option {code} of {len(data)} bytes")
        return data

    def __str__(self) -> str:
        kind = self.option(MESSAGE_TYPE)
        name = TYPES[kind[0]] if kind is not None and len(kind) == 1 and kind[0] < len(TYPES) else TYPES[0]
        parts = [f"DHCP {name}", f"xid 0x{self.xid:08x}", f"client {mac_text(self.chaddr[: self.hlen])}"]
        for label, address in (("ciaddr", self.ciaddr), ("yiaddr", self.yiaddr), ("giaddr", self.giaddr)):
            if address != bytes(4):
                parts.append(f"{label} {text(address)}")
        return ", ".join(parts)


def classless_routes(routes: tuple[tuple[bytes, int, bytes], ...]) -> bytes:
    """Return option 121 of (destination, prefix length, router); router 0.0.0.0: on link (RFC 3442)."""
    return b"".join(
        bytes([prefix]) + destination[: (prefix + 7) // 8] + router for destination, prefix, router in routes
    )
