"""ARP for IPv4 over Ethernet (RFC 826), with the terms of address conflict detection (RFC 5227).

Any other combination of hardware and protocol is malformed here.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.lean.sockets import AF_INET, inet_ntop
from bucatini.wire.ethernet import mac_text

if TYPE_CHECKING:
    from typing import Self

LENGTH = 28  # bytes
REQUEST = 1  # RFC 826, ares_op$REQUEST
REPLY = 2
_FIXED = struct.pack("!HHBB", 1, 0x0800, 6, 4)  # Ethernet, IPv4, and the lengths of their addresses


class Arp(NamedTuple):
    """A request or a reply."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Parse the payload of a frame; what is behind the message is padding."""
        if len(data) < LENGTH:
            raise Truncated(f"ARP message of {len(data)} bytes")
        if data[:6] != _FIXED:
            raise Malformed("ARP for something else than IPv4 over Ethernet")
        return cls(*struct.unpack_from("!H6s4s6s4s", data, 6))

    def emit(self) -> bytes:
        return _FIXED + struct.pack("!H6s4s6s4s", *self)

    @property
    def is_probe(self) -> bool:
        """Whether the sender asks if an address is free (RFC 5227 §1.1)."""
        return self.operation == REQUEST and self.sender == bytes(4)

    @property
    def is_announcement(self) -> bool:
        """Whether the sender tells that it has the address (RFC 5227 §1.1)."""
        return self.sender == self.target

    def __str__(self) -> str:
        sender, target = inet_ntop(AF_INET, self.sender), inet_ntop(AF_INET, self.target)
        if self.operation == REQUEST:
            return f"ARP, request who-has {target} tell {sender}"
        if self.operation == REPLY:
            return f"ARP, reply {sender} is-at {mac_text(self.sender_mac)}"
        return f"ARP, operation {self.operation}, {sender} to {target}"
