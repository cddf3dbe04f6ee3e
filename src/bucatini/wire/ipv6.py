"""IPv6 packets (RFC 8200), without extension headers: services meet none, others are for the packet path."""

import socket
import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated

HEADER = 40  # bytes
ICMPV6 = 58
ALL_NODES = socket.inet_pton(socket.AF_INET6, "ff02::1")  # RFC 4291 §2.7.1


class IPv6(NamedTuple):
    """A packet; `payload` begins with the header that `next_header` names."""

    src: bytes  # 16 bytes
    dst: bytes
    next_header: int
    payload: bytes
    hop_limit: int = 64
    traffic_class: int = 0
    flow: int = 0

    @classmethod
    def parse(cls, data: bytes) -> "IPv6":
        """Bytes behind the payload length are ignored. Raises Truncated, Malformed."""
        if len(data) < HEADER:
            raise Truncated("IPv6 header")
        first, length, next_header, hop_limit = struct.unpack_from(">IHBB", data)
        if first >> 28 != 6:
            raise Malformed("IPv6 version")
        if len(data) < HEADER + length:
            raise Truncated("IPv6 packet")
        payload = data[HEADER : HEADER + length]
        return cls(data[8:24], data[24:40], next_header, payload, hop_limit, first >> 20 & 0xFF, first & 0xFFFFF)

    def emit(self) -> bytes:
        """Return the packet."""
        first = 6 << 28 | self.traffic_class << 20 | self.flow
        head = struct.pack(">IHBB", first, len(self.payload), self.next_header, self.hop_limit)
        return head + self.src + self.dst + self.payload

    def __str__(self) -> str:
        src, dst = (socket.inet_ntop(socket.AF_INET6, a) for a in (self.src, self.dst))
        return f"IP6 {src} > {dst} next {self.next_header} length {len(self.payload)}"
