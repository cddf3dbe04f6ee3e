"""ARP for IPv4 over Ethernet (RFC 826)."""

import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated

LENGTH = 28  # bytes
REQUEST = 1
REPLY = 2
_FIXED = struct.pack(">HHBB", 1, 0x0800, 6, 4)  # Ethernet, IPv4, their address lengths


class Arp(NamedTuple):
    """A message; addresses as bytes."""

    operation: int
    sender_mac: bytes  # 6 bytes
    sender: bytes  # 4 bytes
    target_mac: bytes
    target: bytes

    @classmethod
    def parse(cls, data: bytes) -> "Arp":
        """Bytes behind the message (padding) are ignored. Raises Truncated, Malformed."""
        if len(data) < LENGTH:
            raise Truncated("ARP")
        if data[:6] != _FIXED:
            raise Malformed("ARP: not IPv4 over Ethernet")
        return cls(struct.unpack_from(">H", data, 6)[0], data[8:14], data[14:18], data[18:24], data[24:28])

    def emit(self) -> bytes:
        """Return the message, 28 bytes."""
        body = self.sender_mac + self.sender + self.target_mac + self.target
        return _FIXED + struct.pack(">H", self.operation) + body

    def __str__(self) -> str:
        sender, target = (".".join(map(str, a)) for a in (self.sender, self.target))
        if self.operation == REQUEST:
            return f"ARP who-has {target} tell {sender}"
        return f"ARP {sender} is-at {self.sender_mac.hex(':')}"
