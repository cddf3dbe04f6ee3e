"""Ethernet II frames (IEEE 802.3)."""

import struct
from typing import NamedTuple

from bucatini.errors import Truncated

HEADER = 14  # bytes
ARP = 0x0806
IPV4 = 0x0800
IPV6 = 0x86DD
BROADCAST = b"\xff" * 6


class Ethernet(NamedTuple):
    """A frame without its check sequence."""

    dst: bytes  # 6 bytes
    src: bytes
    type: int
    payload: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Ethernet":
        """Raises Truncated below 14 bytes."""
        if len(data) < HEADER:
            raise Truncated("Ethernet header")
        return cls(data[:6], data[6:12], struct.unpack_from(">H", data, 12)[0], data[HEADER:])

    def emit(self) -> bytes:
        """Return the frame, not padded."""
        return self.dst + self.src + struct.pack(">H", self.type) + self.payload

    def __str__(self) -> str:
        return f"{self.src.hex(':')} > {self.dst.hex(':')} type {self.type:#06x} length {len(self.payload)}"
