"""IPv6 packets (RFC 8200): the fixed header, and the extension headers in front of the upper layer.

`upper_layer` walks hop-by-hop options, destination options and routing headers, and stops at a fragment header.
Their contents are kept as bytes. Departure: other extension headers (authentication, mobility and so on) end the
walk as if they were an upper layer, and more than eight in a row are malformed.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.lean.sockets import AF_INET6, inet_ntop

if TYPE_CHECKING:
    from typing import Self

HEADER = 40  # bytes
MTU_MIN = 1280  # RFC 8200 §5
UNSPECIFIED = bytes(16)
ALL_NODES = b"\xff\x02" + bytes(13) + b"\x01"  # RFC 4291 §2.7.1
ALL_ROUTERS = b"\xff\x02" + bytes(13) + b"\x02"

HOP_BY_HOP = 0  # RFC 8200 §4.1
ROUTING = 43
FRAGMENT = 44
NO_NEXT_HEADER = 59
DESTINATION_OPTIONS = 60
EXTENSION_LIMIT = 8


def text(address: bytes) -> str:
    """Return 16 bytes as 2001:db8::1."""
    return inet_ntop(AF_INET6, address)


def is_multicast(address: bytes) -> bool:
    return address[0] == 0xFF


def multicast_mac(address: bytes) -> bytes:
    """Return the Ethernet address of a multicast address (RFC 2464 §7)."""
    return b"\x33\x33" + address[12:]


class IPv6(NamedTuple):
    """A packet; extension headers are the front of its payload."""

    src: bytes
    dst: bytes
    next_header: int
    payload: bytes
    hop_limit: int = 64
    traffic_class: int = 0
    flow_label: int = 0

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse a packet; what is behind its payload length is the frame's padding. No jumbograms."""
        if len(data) < HEADER:
            raise Truncated(f"IPv6 header of {len(data)} bytes")
        first, length, next_header, hop_limit, src, dst = struct.unpack_from("!IHBB16s16s", data)
        if first >> 28 != 6:
            raise Malformed(f"IP version {first >> 28} where IPv6 was announced")
        if HEADER + length > len(data):
            raise Truncated(f"IPv6 payload length {length} in {len(data)} bytes")
        payload = data[HEADER : HEADER + length]
        return cls(src, dst, next_header, payload, hop_limit, first >> 20 & 0xFF, first & 0xFFFFF)

    def emit(self) -> bytes:
        first = 6 << 28 | self.traffic_class << 20 | self.flow_label
        header = struct.pack(
            "!IHBB16s16s", first, len(self.payload), self.next_header, self.hop_limit, self.src, self.dst
        )
        return header + self.payload

    def __str__(self) -> str:
        return f"IP6 {text(self.src)} > {text(self.dst)}: next header {self.next_header}, length {len(self.payload)}"


class Extension(NamedTuple):
    """A hop-by-hop options, destination options or routing header."""

    next_header: int
    data: bytes  # behind next header and length: 6 bytes, or 8 n + 6

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the header at the front of `data`, whose size `length` tells."""
        if len(data) < 8:
            raise Truncated(f"IPv6 extension header of {len(data)} bytes")
        length = (data[1] + 1) * 8
        if length > len(data):
            raise Truncated(f"IPv6 extension header length {length} in {len(data)} bytes")
        return cls(data[0], data[2:length])

    def emit(self) -> bytes:
        return bytes([self.next_header, self.length // 8 - 1]) + self.data

    @property
    def length(self) -> int:
        """Bytes of the whole header."""
        return len(self.data) + 2

    @property
    def segments_left(self) -> int:
        """Of a routing header: hops still to visit (RFC 8200 §4.4)."""
        return self.data[1]


class Fragment(NamedTuple):
    """A fragment header and what follows it (RFC 8200 §4.5)."""

    next_header: int
    offset: int  # bytes, a multiple of 8
    more: bool
    identification: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        if len(data) < 8:
            raise Truncated(f"IPv6 fragment header of {len(data)} bytes")
        next_header, offset, identification = struct.unpack_from("!BxHI", data)
        return cls(next_header, offset & 0xFFF8, bool(offset & 1), identification, data[8:])

    def emit(self) -> bytes:
        return struct.pack("!BxHI", self.next_header, self.offset | self.more, self.identification) + self.payload

    def __str__(self) -> str:
        more = "+" if self.more else ""
        return f"frag (id {self.identification}, offset {self.offset}{more}), next header {self.next_header}"


class UpperLayer(NamedTuple):
    """What stands behind the extension headers."""

    protocol: int  # FRAGMENT: the walk ended at a fragment header, which is the front of the payload
    payload: bytes
    extensions: tuple[tuple[int, Extension], ...]  # kind (the next header value that announced it), header


def upper_layer(packet: IPv6) -> UpperLayer:
    """Walk the extension headers.

    Raises:
        WireError: a header is cut off, there are too many, or a routing header wants this packet forwarded.
    """
    protocol, payload = packet.next_header, packet.payload
    extensions: list[tuple[int, Extension]] = []
    while protocol in {HOP_BY_HOP, ROUTING, DESTINATION_OPTIONS}:
        if len(extensions) + 1 == EXTENSION_LIMIT:
            raise Malformed("too many IPv6 extension headers")
        header = Extension.parse(payload)
        if protocol == ROUTING and header.segments_left:
            raise Malformed("IPv6 routing header with segments left")
        extensions.append((protocol, header))
        protocol, payload = header.next_header, payload[header.length :]
    return UpperLayer(protocol, payload, tuple(extensions))
