"""UDP datagrams (RFC 768) between addresses of either IP version."""

import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated
from bucatini.wire.checksum import checksum, ones_complement_sum, pseudo_header

HEADER = 8  # bytes
PROTOCOL = 17


class Udp(NamedTuple):
    """A datagram."""

    sport: int
    dport: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes, src: bytes, dst: bytes, *, verify: bool = True) -> "Udp":
        """Check against the addresses of the IP header; `verify` off: the checksum was left to offload.

        Raises Truncated, Malformed.
        """
        if len(data) < HEADER:
            raise Truncated("UDP header")
        sport, dport, length, check = struct.unpack_from(">HHHH", data)
        if length < HEADER:
            raise Malformed("UDP length")
        if len(data) < length:
            raise Truncated("UDP datagram")
        data = data[:length]
        if verify and (check or len(src) == 16):
            if ones_complement_sum(pseudo_header(src, dst, PROTOCOL, length) + data) != 0xFFFF:
                raise Malformed("UDP checksum")
        return cls(sport, dport, data[HEADER:])

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """Return the datagram with its checksum for these addresses."""
        length = HEADER + len(self.payload)
        head = struct.pack(">HHHH", self.sport, self.dport, length, 0)
        value = checksum(pseudo_header(src, dst, PROTOCOL, length) + head + self.payload) or 0xFFFF
        return head[:6] + struct.pack(">H", value) + self.payload

    def __str__(self) -> str:
        return f"UDP {self.sport} > {self.dport} length {len(self.payload)}"
