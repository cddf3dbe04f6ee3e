"""ICMP (RFC 792) and ICMPv6 (RFC 4443): the message all types share, echo, and errors with the packet they quote.

The two differ in their numbers and in the checksum, which for ICMPv6 takes a pseudo header. Neighbour discovery has a
module of its own.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire import checksum
from bucatini.wire.ipv4 import PROTOCOL_ICMPV6

if TYPE_CHECKING:
    from typing import Self

HEADER = 8  # bytes

# RFC 792
ECHO_REPLY = 0
UNREACHABLE = 3
REDIRECT = 5
ECHO_REQUEST = 8
TIME_EXCEEDED = 11
PARAMETER_PROBLEM = 12
CODE_PORT_UNREACHABLE = 3
CODE_FRAGMENTATION_NEEDED = 4  # its MTU: RFC 1191 §4

# RFC 4443 §3, §4
V6_UNREACHABLE = 1
V6_PACKET_TOO_BIG = 2
V6_TIME_EXCEEDED = 3
V6_PARAMETER_PROBLEM = 4
V6_ECHO_REQUEST = 128
V6_ECHO_REPLY = 129
V6_CODE_PORT_UNREACHABLE = 4

_ERRORS4 = {UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM, REDIRECT}


class Icmp(NamedTuple):
    """A message of either protocol: type, code, the 32 bits whose meaning the type tells, and the rest."""

    type: int
    code: int
    rest: int
    body: bytes

    @classmethod
    def parse(cls, data: bytes, src: bytes = b"", dst: bytes = b"") -> Self:
        """Parse a message and verify its checksum.

        Args:
            src, dst: addresses of the packet, for ICMPv6; without them it is ICMP.
        """
        if len(data) < HEADER:
            raise Truncated(f"ICMP message of {len(data)} bytes")
        type_, code, _, rest = struct.unpack_from("!BBHI", data)
        if checksum.transport(src, dst, PROTOCOL_ICMPV6, data) if src else checksum.internet(data):
            raise Malformed("ICMP checksum")
        return cls(type_, code, rest, data[HEADER:])

    def emit(self, src: bytes = b"", dst: bytes = b"") -> bytes:
        """Return the message with its checksum; the addresses as for `parse`."""
        blank = struct.pack("!BBHI", self.type, self.code, 0, self.rest) + self.body
        sum_ = checksum.transport(src, dst, PROTOCOL_ICMPV6, blank) if src else checksum.internet(blank)
        return blank[:2] + struct.pack("!H", sum_) + blank[4:]


class Echo(NamedTuple):
    """An echo request or reply."""

    version: int  # 4 or 6
    reply: bool
    identifier: int
    sequence: int
    data: bytes

    @classmethod
    def parse(cls, message: Icmp, version: int) -> Self:
        """Raises Malformed for a message of another type."""
        request, reply = (ECHO_REQUEST, ECHO_REPLY) if version == 4 else (V6_ECHO_REQUEST, V6_ECHO_REPLY)
        if message.type not in {request, reply} or message.code:
            raise Malformed(f"no echo: type {message.type}, code {message.code}")
        return cls(version, message.type == reply, message.rest >> 16, message.rest & 0xFFFF, message.body)

    def emit(self) -> Icmp:
        request, reply = (ECHO_REQUEST, ECHO_REPLY) if self.version == 4 else (V6_ECHO_REQUEST, V6_ECHO_REPLY)
        return Icmp(reply if self.reply else request, 0, self.identifier << 16 | self.sequence, self.data)

    def __str__(self) -> str:
        name = "ICMP" if self.version == 4 else "ICMP6,"
        what = "reply" if self.reply else "request"
        return f"{name} echo {what}, id {self.identifier}, seq {self.sequence}, length {len(self.data) + HEADER}"


class Error(NamedTuple):
    """An error about a packet, of which the front is quoted."""

    version: int  # 4 or 6
    type: int
    code: int
    parameter: int  # the 32 bits behind the checksum: next-hop MTU, or pointer
    quoted: bytes

    @classmethod
    def parse(cls, message: Icmp, version: int) -> Self:
        """Raises Malformed for a message that is no error."""
        if message.type not in _ERRORS4 if version == 4 else message.type >= 128:
            raise Malformed(f"no ICMP error: type {message.type}")
        return cls(version, message.type, message.code, message.rest, message.body)

    def emit(self) -> Icmp:
        return Icmp(self.type, self.code, self.parameter, self.quoted)

    @property
    def mtu(self) -> int | None:
        """Next-hop MTU that the error tells (RFC 1191 §4, RFC 4443 §3.2); None: it tells none."""
        if self.version == 6:
            return self.parameter if self.type == V6_PACKET_TOO_BIG else None
        needed = self.type == UNREACHABLE and self.code == CODE_FRAGMENTATION_NEEDED
        return self.parameter & 0xFFFF if needed else None

    def __str__(self) -> str:
        mtu = f", mtu {self.mtu}" if self.mtu is not None else ""
        names = _NAMES4 if self.version == 4 else _NAMES6
        name = names.get((self.type, self.code)) or names.get((self.type, -1)) or f"type {self.type}"
        protocol = "ICMP" if self.version == 4 else "ICMP6,"
        return f"{protocol} {name}, code {self.code}{mtu}, length {len(self.quoted) + HEADER}"


_NAMES4 = {
    (UNREACHABLE, 0): "net unreachable",
    (UNREACHABLE, 1): "host unreachable",
    (UNREACHABLE, 2): "protocol unreachable",
    (UNREACHABLE, 3): "port unreachable",
    (UNREACHABLE, 4): "fragmentation needed",
    (UNREACHABLE, 13): "admin prohibited",
    (UNREACHABLE, -1): "unreachable",
    (REDIRECT, -1): "redirect",
    (TIME_EXCEEDED, -1): "time exceeded",
    (PARAMETER_PROBLEM, -1): "parameter problem",
}
_NAMES6 = {
    (V6_UNREACHABLE, 0): "no route",
    (V6_UNREACHABLE, 1): "admin prohibited",
    (V6_UNREACHABLE, 3): "address unreachable",
    (V6_UNREACHABLE, 4): "port unreachable",
    (V6_UNREACHABLE, -1): "unreachable",
    (V6_PACKET_TOO_BIG, -1): "packet too big",
    (V6_TIME_EXCEEDED, -1): "time exceeded",
    (V6_PARAMETER_PROBLEM, -1): "parameter problem",
}
