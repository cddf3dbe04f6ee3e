"""Neighbour discovery (RFC 4861, RFC 8106) over ICMPv6 (RFC 4443)."""

import socket
import struct
from typing import NamedTuple

from bucatini.errors import Malformed, Truncated
from bucatini.wire.checksum import checksum, ones_complement_sum, pseudo_header

PROTOCOL = 58
ROUTER_SOLICITATION = 133
ROUTER_ADVERTISEMENT = 134
NEIGHBOUR_SOLICITATION = 135
NEIGHBOUR_ADVERTISEMENT = 136
HOP_LIMIT = 255  # RFC 4861 §6.1, §7.1

SOURCE_LINK_LAYER = 1  # RFC 4861 §4.6
TARGET_LINK_LAYER = 2
PREFIX_INFORMATION = 3
MTU = 5
RDNSS = 25  # RFC 8106 §5.1
DNSSL = 31  # RFC 8106 §5.2

INFINITE = 0xFFFFFFFF
FLAG_ROUTER, FLAG_SOLICITED, FLAG_OVERRIDE = 0x80000000, 0x40000000, 0x20000000
FLAG_ON_LINK, FLAG_AUTONOMOUS = 0x80, 0x40


class Message(NamedTuple):
    """An ICMPv6 message: what is behind the checksum is `body`."""

    type: int
    code: int
    body: bytes

    @classmethod
    def parse(cls, data: bytes, src: bytes, dst: bytes) -> "Message":
        """Raises Truncated, Malformed (also for a wrong checksum)."""
        if len(data) < 8:
            raise Truncated("ICMPv6")
        if ones_complement_sum(pseudo_header(src, dst, PROTOCOL, len(data)) + data) != 0xFFFF:
            raise Malformed("ICMPv6 checksum")
        return cls(data[0], data[1], data[4:])

    def emit(self, src: bytes, dst: bytes) -> bytes:
        """Return the message with its checksum for these addresses."""
        data = struct.pack(">BBH", self.type, self.code, 0) + self.body
        value = checksum(pseudo_header(src, dst, PROTOCOL, len(data)) + data)
        return data[:2] + struct.pack(">H", value) + self.body


class NdOption(NamedTuple):
    """An option; `value` is without type and length."""

    type: int
    value: bytes

    def emit(self) -> bytes:
        """Return the option, padded to 8 bytes (RFC 4861 §4.6)."""
        size = (len(self.value) + 2 + 7) // 8
        return bytes([self.type, size]) + self.value.ljust(size * 8 - 2, b"\0")


def parse_options(data: bytes) -> tuple[NdOption, ...]:
    """Return the options, unknown ones too. Raises Truncated, Malformed (length zero)."""
    options = []
    at = 0
    while at < len(data):
        if at + 2 > len(data):
            raise Truncated("ND option")
        size = data[at + 1] * 8
        if size == 0:
            raise Malformed("ND option of length 0")
        if at + size > len(data):
            raise Truncated("ND option")
        options.append(NdOption(data[at], data[at + 2 : at + size]))
        at += size
    return tuple(options)


class Neighbour(NamedTuple):
    """The body of a solicitation or advertisement of a neighbour."""

    flags: int  # FLAG_*, zero in a solicitation
    target: bytes  # 16 bytes
    options: tuple[NdOption, ...] = ()

    @classmethod
    def parse(cls, body: bytes) -> "Neighbour":
        """Raises Truncated, Malformed."""
        if len(body) < 20:
            raise Truncated("neighbour message")
        if body[4] == 0xFF:  # RFC 4861 §7.1.1
            raise Malformed("neighbour message: multicast target")
        return cls(struct.unpack_from(">I", body)[0], body[4:20], parse_options(body[20:]))

    def emit(self) -> bytes:
        """Return the body."""
        return struct.pack(">I", self.flags) + self.target + b"".join(option.emit() for option in self.options)


class RouterAdvertisement(NamedTuple):
    """The body of a router advertisement; lifetimes in seconds, timers in milliseconds."""

    lifetime: int
    hop_limit: int = 64
    flags: int = 0
    reachable: int = 0
    retransmit: int = 0
    options: tuple[NdOption, ...] = ()

    @classmethod
    def parse(cls, body: bytes) -> "RouterAdvertisement":
        """Raises Truncated, Malformed."""
        if len(body) < 12:
            raise Truncated("router advertisement")
        hop_limit, flags, lifetime, reachable, retransmit = struct.unpack_from(">BBHII", body)
        return cls(lifetime, hop_limit, flags, reachable, retransmit, parse_options(body[12:]))

    def emit(self) -> bytes:
        """Return the body."""
        fixed = struct.pack(">BBHII", self.hop_limit, self.flags, self.lifetime, self.reachable, self.retransmit)
        return fixed + b"".join(option.emit() for option in self.options)


def prefix_option(prefix: bytes, bits: int) -> NdOption:
    """Return a prefix, on link and for autoconfiguration, valid for ever (RFC 4861 §4.6.2)."""
    value = struct.pack(">BBIII", bits, FLAG_ON_LINK | FLAG_AUTONOMOUS, INFINITE, INFINITE, 0) + prefix
    return NdOption(PREFIX_INFORMATION, value)


def text(address: bytes) -> str:
    """Return an address as text."""
    return socket.inet_ntop(socket.AF_INET6, address)
