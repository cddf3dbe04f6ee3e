"""Neighbour discovery for IPv6 (RFC 4861): solicitations and advertisements of routers and neighbours, with options.

Messages are read from and written to an `Icmp` message, whose checksum and pseudo header are that class's business.
The rules of §6.1 and §7.1 that the message alone decides (code 0, lengths, multicast targets) are checked here; the
hop limit of 255 and what depends on the source address is the receiver's business.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed, Truncated
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.wire import domain
from bucatini.wire.ethernet import mac_text
from bucatini.wire.icmp import Icmp
from bucatini.wire.ipv6 import is_multicast, text

if TYPE_CHECKING:
    from typing import Self

ROUTER_SOLICITATION = 133  # RFC 4861 §4.1 to §4.5
ROUTER_ADVERTISEMENT = 134
NEIGHBOR_SOLICITATION = 135
NEIGHBOR_ADVERTISEMENT = 136
REDIRECT = 137
HOP_LIMIT = 255  # RFC 4861 §3.1: proves that the packet was not forwarded
INFINITE = 0xFFFFFFFF  # seconds, RFC 4861 §4.6.2

OPTION_SOURCE_LINK_LAYER = 1  # RFC 4861 §4.6
OPTION_TARGET_LINK_LAYER = 2
OPTION_PREFIX = 3
OPTION_MTU = 5
OPTION_RDNSS = 25  # RFC 8106 §5.1
OPTION_DNSSL = 31  # RFC 8106 §5.2

_ROUTER = 1 << 31  # RFC 4861 §4.4
_SOLICITED = 1 << 30
_OVERRIDE = 1 << 29
_MANAGED = 1 << 7  # RFC 4861 §4.2
_OTHER = 1 << 6
_ON_LINK = 1 << 7  # RFC 4861 §4.6.2
_AUTONOMOUS = 1 << 6


class RawOption(NamedTuple):
    """An option as it is: those whose contents nobody here needs, and unknown ones."""

    type: int
    data: bytes  # 8 n + 6 bytes

    def emit(self) -> bytes:
        return bytes([self.type, (len(self.data) + 2) // 8]) + self.data

    def __str__(self) -> str:
        return f"option {self.type} {self.data.hex()}"


class LinkLayerAddress(NamedTuple):
    """Source or target link-layer address (RFC 4861 §4.6.1), of Ethernet."""

    type: int
    mac: bytes

    def emit(self) -> bytes:
        return bytes([self.type, 1]) + self.mac

    def __str__(self) -> str:
        return f"{'source' if self.type == OPTION_SOURCE_LINK_LAYER else 'target'} {mac_text(self.mac)}"


class PrefixInformation(NamedTuple):
    """A prefix of the link (RFC 4861 §4.6.2)."""

    prefix: bytes
    length: int  # bits
    on_link: bool
    autonomous: bool
    valid: int = INFINITE  # seconds
    preferred: int = INFINITE

    def emit(self) -> bytes:
        flags = (_ON_LINK if self.on_link else 0) | (_AUTONOMOUS if self.autonomous else 0)
        head = struct.pack("!BBBBIIxxxx", OPTION_PREFIX, 4, self.length, flags, self.valid, self.preferred)
        return head + self.prefix

    def __str__(self) -> str:
        flags = ("L" if self.on_link else "") + ("A" if self.autonomous else "")
        return f"prefix {text(self.prefix)}/{self.length} [{flags}]"


class Mtu(NamedTuple):
    """MTU of the link (RFC 4861 §4.6.4)."""

    mtu: int

    def emit(self) -> bytes:
        return struct.pack("!BBxxI", OPTION_MTU, 1, self.mtu)

    def __str__(self) -> str:
        return f"mtu {self.mtu}"


class Rdnss(NamedTuple):
    """Recursive resolvers (RFC 8106 §5.1)."""

    lifetime: int  # seconds
    servers: tuple[bytes, ...]  # at least one

    def emit(self) -> bytes:
        return struct.pack("!BBxxI", OPTION_RDNSS, 1 + 2 * len(self.servers), self.lifetime) + b"".join(self.servers)

    def __str__(self) -> str:
        return "rdnss " + " ".join(map(text, self.servers))


class Dnssl(NamedTuple):
    """Search list (RFC 8106 §5.2)."""

    lifetime: int  # seconds
    names: tuple[str, ...]  # at least one, the root not among them

    def emit(self) -> bytes:
        data = domain.emit_list(self.names)
        data += bytes(-len(data) % 8)
        return struct.pack("!BBxxI", OPTION_DNSSL, 1 + len(data) // 8, self.lifetime) + data

    def __str__(self) -> str:
        return "dnssl " + " ".join(self.names)


Option = RawOption | LinkLayerAddress | PrefixInformation | Mtu | Rdnss | Dnssl


def _parse_option(kind: int, data: bytes) -> Option:
    """Parse one option, type and length included; known types with an impossible length are malformed."""
    units = len(data) // 8
    if kind in {OPTION_SOURCE_LINK_LAYER, OPTION_TARGET_LINK_LAYER} and units == 1:
        return LinkLayerAddress(kind, data[2:])
    if kind == OPTION_PREFIX:
        if units != 4:
            raise Malformed(f"prefix information of {len(data)} bytes")
        length, flags, valid, preferred = struct.unpack_from("!BBII", data, 2)
        if length > 128:
            raise Malformed(f"prefix of {length} bits")
        return PrefixInformation(data[16:], length, bool(flags & _ON_LINK), bool(flags & _AUTONOMOUS), valid, preferred)
    if kind == OPTION_MTU:
        if units != 1:
            raise Malformed(f"MTU option of {len(data)} bytes")
        return Mtu(int.from_bytes(data[4:], "big"))
    if kind == OPTION_RDNSS:
        if units < 3 or units % 2 == 0:
            raise Malformed(f"RDNSS option of {len(data)} bytes")
        servers = tuple(data[at : at + 16] for at in range(8, len(data), 16))
        return Rdnss(int.from_bytes(data[4:8], "big"), servers)
    if kind == OPTION_DNSSL:
        if units < 2:
            raise Malformed(f"DNSSL option of {len(data)} bytes")
        # Zeros fill the last 8 bytes: a root that ends the list
        names = tuple(name for name in domain.parse_list(data[8:]) if name)
        if not names:
            raise Malformed("DNSSL option without a name")
        return Dnssl(int.from_bytes(data[4:8], "big"), names)
    return RawOption(kind, data[2:])


def parse_options(data: bytes) -> tuple[Option, ...]:
    """Parse the options of a message (RFC 4861 §4.6)."""
    options = []
    position = 0
    while position < len(data):
        if position + 2 > len(data):
            raise Truncated("neighbour discovery option")
        size = data[position + 1] * 8
        if size == 0:
            raise Malformed("neighbour discovery option of length 0")
        if position + size > len(data):
            raise Truncated(f"neighbour discovery option of {size} bytes in {len(data) - position}")
        options.append(_parse_option(data[position], data[position : position + size]))
        position += size
    return tuple(options)


def _emit_options(options: tuple[Option, ...]) -> bytes:
    return b"".join(option.emit() for option in options)


def link_layer(options: tuple[Option, ...], kind: int) -> bytes | None:
    """Return the source or target link-layer address among the options."""
    for option in options:
        if isinstance(option, LinkLayerAddress) and option.type == kind:
            return option.mac
    return None


def _described(what: str, options: tuple[Option, ...]) -> str:
    return ", ".join([what, *map(str, options)])


def _check(message: Icmp, kind: int) -> None:
    if message.type != kind or message.code:
        raise Malformed(f"ICMPv6 type {message.type}, code {message.code} where {kind} was expected")


class RouterSolicitation(NamedTuple):
    """RFC 4861 §4.1."""

    options: tuple[Option, ...] = ()

    @classmethod
    def parse(cls, message: Icmp) -> Self:
        _check(message, ROUTER_SOLICITATION)
        return cls(parse_options(message.body))

    def emit(self) -> Icmp:
        return Icmp(ROUTER_SOLICITATION, 0, 0, _emit_options(self.options))

    def __str__(self) -> str:
        return _described("ICMP6, router solicitation", self.options)


class RouterAdvertisement(NamedTuple):
    """RFC 4861 §4.2."""

    hop_limit: int  # 0: not told
    managed: bool  # addresses by DHCPv6
    other: bool  # other configuration by DHCPv6
    lifetime: int  # seconds as default router, at most 65535 (RFC 8319 §4)
    reachable: int = 0  # ms, 0: not told
    retransmit: int = 0  # ms, 0: not told
    options: tuple[Option, ...] = ()

    @classmethod
    def parse(cls, message: Icmp) -> Self:
        _check(message, ROUTER_ADVERTISEMENT)
        if len(message.body) < 8:
            raise Truncated("router advertisement")
        flags = message.rest >> 16 & 0xFF
        reachable, retransmit = struct.unpack_from("!II", message.body)
        return cls(
            message.rest >> 24,
            bool(flags & _MANAGED),
            bool(flags & _OTHER),
            message.rest & 0xFFFF,
            reachable,
            retransmit,
            parse_options(message.body[8:]),
        )

    def emit(self) -> Icmp:
        flags = (_MANAGED if self.managed else 0) | (_OTHER if self.other else 0)
        rest = self.hop_limit << 24 | flags << 16 | self.lifetime
        body = struct.pack("!II", self.reachable, self.retransmit) + _emit_options(self.options)
        return Icmp(ROUTER_ADVERTISEMENT, 0, rest, body)

    def __str__(self) -> str:
        flags = ("M" if self.managed else "") + ("O" if self.other else "")
        return _described(f"ICMP6, router advertisement, flags [{flags}], lifetime {self.lifetime}", self.options)


class NeighborSolicitation(NamedTuple):
    """RFC 4861 §4.3."""

    target: bytes
    options: tuple[Option, ...] = ()

    @classmethod
    def parse(cls, message: Icmp) -> Self:
        _check(message, NEIGHBOR_SOLICITATION)
        if len(message.body) < 16:
            raise Truncated("neighbour solicitation")
        if is_multicast(message.body):
            raise Malformed("neighbour solicitation for a multicast address")
        return cls(message.body[:16], parse_options(message.body[16:]))

    def emit(self) -> Icmp:
        return Icmp(NEIGHBOR_SOLICITATION, 0, 0, self.target + _emit_options(self.options))

    def __str__(self) -> str:
        return _described(f"ICMP6, neighbor solicitation, who has {text(self.target)}", self.options)


class NeighborAdvertisement(NamedTuple):
    """RFC 4861 §4.4."""

    target: bytes
    router: bool
    solicited: bool
    override: bool
    options: tuple[Option, ...] = ()

    @classmethod
    def parse(cls, message: Icmp) -> Self:
        _check(message, NEIGHBOR_ADVERTISEMENT)
        if len(message.body) < 16:
            raise Truncated("neighbour advertisement")
        if is_multicast(message.body):
            raise Malformed("neighbour advertisement for a multicast address")
        return cls(
            message.body[:16],
            bool(message.rest & _ROUTER),
            bool(message.rest & _SOLICITED),
            bool(message.rest & _OVERRIDE),
            parse_options(message.body[16:]),
        )

    def emit(self) -> Icmp:
        flags = (
            (_ROUTER if self.router else 0)
            | (_SOLICITED if self.solicited else 0)
            | (_OVERRIDE if self.override else 0)
        )
        return Icmp(NEIGHBOR_ADVERTISEMENT, 0, flags, self.target + _emit_options(self.options))

    def __str__(self) -> str:
        flags = ("R" if self.router else "") + ("S" if self.solicited else "") + ("O" if self.override else "")
        return _described(f"ICMP6, neighbor advertisement, tgt is {text(self.target)}, flags [{flags}]", self.options)
