"""IPv4 packets (RFC 791)."""

import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated
from bucatini.wire.checksum import checksum, ones_complement_sum

HEADER = 20  # bytes, without options
ICMP = 1
TCP = 6
UDP = 17
DF = 0x4000
MF = 0x2000


class IPv4(NamedTuple):
    """A packet. `fragment`: flags and offset as on the wire."""

    src: bytes  # 4 bytes
    dst: bytes
    protocol: int
    payload: bytes
    ttl: int = 64
    tos: int = 0
    id: int = 0
    fragment: int = DF
    options: bytes = b""  # a multiple of 4 bytes

    @classmethod
    def parse(cls, data: bytes) -> "IPv4":
        """Bytes behind the total length are ignored. Raises Truncated, Malformed (also for a wrong checksum)."""
        if len(data) < HEADER:
            raise Truncated("IPv4 header")
        first, tos, total, ident, fragment, ttl, protocol, _ = struct.unpack_from(">BBHHHBBH", data)
        header = (first & 15) * 4
        if first >> 4 != 4 or header < HEADER or total < header:
            raise Malformed("IPv4 header")
        if len(data) < total:
            raise Truncated("IPv4 packet")
        if ones_complement_sum(data[:header]) != 0xFFFF:
            raise Malformed("IPv4 checksum")
        options = data[HEADER:header]
        return cls(data[12:16], data[16:20], protocol, data[header:total], ttl, tos, ident, fragment, options)

    def emit(self) -> bytes:
        """Return the packet with its checksum."""
        size = HEADER + len(self.options)
        head = struct.pack(
            ">BBHHHBBH",
            0x40 | size // 4,
            self.tos,
            size + len(self.payload),
            self.id,
            self.fragment,
            self.ttl,
            self.protocol,
            0,
        )
        head += self.src + self.dst + self.options
        return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + self.payload

    def __str__(self) -> str:
        src, dst = (".".join(map(str, a)) for a in (self.src, self.dst))
        return f"IP {src} > {dst} proto {self.protocol} length {len(self.payload)}"
