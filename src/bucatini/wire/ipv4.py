"""IPv4 packets (RFC 791): the header with its options and fragmentation fields, and what follows it.

Options are kept as bytes: nobody here needs one. Reassembly is not the format's business.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.lean.sockets import AF_INET, inet_ntop
from bucatini.wire import checksum

if TYPE_CHECKING:
    from typing import Self

HEADER = 20  # bytes, without options
BROADCAST = b"\xff" * 4  # RFC 919 §7, limited broadcast
UNSPECIFIED = bytes(4)

PROTOCOL_ICMP = 1  # IANA, protocol numbers; the same space as IPv6's next header
PROTOCOL_TCP = 6
PROTOCOL_UDP = 17
PROTOCOL_ICMPV6 = 58

_DONT_FRAGMENT = 0x4000  # RFC 791 §3.1
_MORE_FRAGMENTS = 0x2000
_OFFSET = 0x1FFF  # of 8 bytes


def text(address: bytes) -> str:
    """Return 4 bytes as 192.0.2.1."""
    return inet_ntop(AF_INET, address)


class IPv4(NamedTuple):
    """A packet, which may be a fragment."""

    src: bytes
    dst: bytes
    protocol: int
    payload: bytes
    ttl: int = 64
    tos: int = 0
    identification: int = 0
    dont_fragment: bool = False
    more_fragments: bool = False
    offset: int = 0  # of this fragment, bytes, a multiple of 8
    options: bytes = b""  # a multiple of 4 bytes, at most 40

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a packet; what is behind its total length is the frame's padding. The header checksum is verified."""
        if len(data) < HEADER:
            raise Truncated(f"IPv4 header of {len(data)} bytes")
        vihl, tos, total, identification, fragment, ttl, protocol, _, src, dst = struct.unpack_from(
            "!BBHHHBBH4s4s", data
        )
        if vihl >> 4 != 4:
            raise Malformed(f"IP version {vihl >> 4} where IPv4 was announced")
        header = (vihl & 0xF) * 4
        if header < HEADER:
            raise Malformed(f"IPv4 header length {header}")
        if total < header:
            raise Malformed(f"IPv4 total length {total} below the header's {header}")
        if total > len(data):
            raise Truncated(f"IPv4 total length {total} in {len(data)} bytes")
        if checksum.internet(data[:header]):
            raise Malformed("IPv4 header checksum")
        return cls(
            src,
            dst,
            protocol,
            data[header:total],
            ttl,
            tos,
            identification,
            bool(fragment & _DONT_FRAGMENT),
            bool(fragment & _MORE_FRAGMENTS),
            (fragment & _OFFSET) * 8,
            data[HEADER:header],
        )

    def emit(self) -> bytes:
        length = HEADER + len(self.options)
        fragment = self.offset // 8
        if self.dont_fragment:
            fragment |= _DONT_FRAGMENT
        if self.more_fragments:
            fragment |= _MORE_FRAGMENTS
        front = struct.pack(
            "!BBHHHBB",
            0x40 | length // 4,
            self.tos,
            length + len(self.payload),
            self.identification,
            fragment,
            self.ttl,
            self.protocol,
        )
        back = self.src + self.dst + self.options
        return front + struct.pack("!H", checksum.internet(front + back)) + back + self.payload

    @property
    def is_fragment(self) -> bool:
        return self.more_fragments or self.offset != 0

    def __str__(self) -> str:
        what = f"IP {text(self.src)} > {text(self.dst)}: protocol {self.protocol}, length {len(self.payload)}"
        if self.is_fragment:
            more = "+" if self.more_fragments else ""
            what += f", frag (id {self.identification}, offset {self.offset}{more})"
        return what
