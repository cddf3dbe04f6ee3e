"""UDP datagrams (RFC 768), over IPv4 and IPv6."""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire import checksum
from bucatini.wire.ipv4 import PROTOCOL_UDP

if TYPE_CHECKING:
    from typing import Self

HEADER = 8  # bytes


class Udp(NamedTuple):
    """A datagram."""

    sport: int
    dport: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes, src: bytes = b"", dst: bytes = b"") -> Self:
        """Parse a datagram; what is behind its length is padding.

        Args:
            src, dst: addresses of the packet. Without them the checksum is not verified: that of a frame whose checksum
                is offloaded covers the pseudo header only.
        """
        if len(data) < HEADER:
            raise Truncated(f"UDP header of {len(data)} bytes")
        sport, dport, length, sum_ = struct.unpack_from("!HHHH", data)
        if length < HEADER:
            raise Malformed(f"UDP length {length}")
        if length > len(data):
            raise Truncated(f"UDP length {length} in {len(data)} bytes")
        if src:
            # RFC 768: 0 is no checksum; over IPv6 there must be one (RFC 8200 §8.1)
            if sum_ == 0 and len(src) == 16:
                raise Malformed("UDP over IPv6 without a checksum")
            if sum_ and checksum.transport(src, dst, PROTOCOL_UDP, data[:length]):
                raise Malformed("UDP checksum")
        return cls(sport, dport, data[HEADER:length])

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """Return the datagram with its checksum; the addresses are those of the packet."""
        header = struct.pack("!HHH", self.sport, self.dport, HEADER + len(self.payload))
        sum_ = checksum.transport(src, dst, PROTOCOL_UDP, header + b"\0\0" + self.payload)
        return header + struct.pack("!H", sum_ or 0xFFFF) + self.payload

    def __str__(self) -> str:
        return f"UDP {self.sport} > {self.dport}, length {len(self.payload)}"
