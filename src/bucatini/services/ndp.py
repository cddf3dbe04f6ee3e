"""Neighbour discovery: we are every neighbour but the guest itself, and its router (RFC 4861, RFC 8106).

Router advertisements answer solicitations, and go out unasked: soon after start and then about every `INTERVAL_NS`, long
before the default route's lifetime of `LIFETIME` seconds ends (D6). Time is a parameter, jitter comes from `random`.
"""

import struct
from collections.abc import Callable

from bucatini.services.config import ServiceConfig
from bucatini.wire import domain, ethernet, icmpv6, ipv6

SECOND_NS = 1_000_000_000
LIFETIME = 65535  # seconds: the field's most
INTERVAL_NS = 600 * SECOND_NS  # MaxRtrAdvInterval, RFC 4861 §6.2.1
FIRST_NS = 1 * SECOND_NS
DNS_LIFETIME = 0xFFFFFFFF
SIZE_MAX = 1280 - ipv6.HEADER  # bytes of one advertisement
SOLICITED_NODE = bytes.fromhex("ff0200000000000000000001ff")  # RFC 4291 §2.7.1


class Ndp:
    """Answers neighbours and routers' solicitations."""

    def __init__(self, config: ServiceConfig, random: Callable[[int], bytes]) -> None:
        self.config = config
        self.random = random
        self.next_at: int | None = None  # ns, of the next unasked advertisement
        self.started = False
        self.guest_mac = bytes.fromhex("333300000001")  # all nodes (RFC 2464 §7)

    def answer(self, frame: ethernet.Ethernet) -> bytes | None:
        """Return the reply to a message, or None. Raises WireError."""
        packet = ipv6.IPv6.parse(frame.payload)
        if packet.hop_limit != icmpv6.HOP_LIMIT or packet.next_header != icmpv6.PROTOCOL:
            return None
        message = icmpv6.Message.parse(packet.payload, packet.src, packet.dst)
        if message.code != 0:
            return None
        if message.type == icmpv6.NEIGHBOUR_SOLICITATION:
            return self._neighbour(frame, packet, icmpv6.Neighbour.parse(message.body))
        if message.type == icmpv6.ROUTER_SOLICITATION and self.config.ra:
            if len(message.body) >= 4:
                icmpv6.parse_options(message.body[4:])
            dst = packet.src if any(packet.src) else ipv6.ALL_NODES
            return self._advertisement(frame.src, dst)
        return None

    def _neighbour(self, frame: ethernet.Ethernet, packet: ipv6.IPv6, asked: icmpv6.Neighbour) -> bytes | None:
        """Answer a solicitation: never one of duplicate address detection (RFC 4862 §5.4), never about the guest."""
        if not any(packet.src) or asked.target in (self.config.address6, packet.src):
            return None
        options = (icmpv6.NdOption(icmpv6.TARGET_LINK_LAYER, self.config.mac),)
        flags = icmpv6.FLAG_ROUTER | icmpv6.FLAG_SOLICITED | icmpv6.FLAG_OVERRIDE
        body = icmpv6.Neighbour(flags, asked.target, options).emit()
        return self._emit(icmpv6.NEIGHBOUR_ADVERTISEMENT, body, asked.target, packet.src, frame.src)

    def _emit(self, kind: int, body: bytes, src: bytes, dst: bytes, mac: bytes) -> bytes:
        payload = icmpv6.Message(kind, 0, body).emit(src, dst)
        packet = ipv6.IPv6(src, dst, icmpv6.PROTOCOL, payload, icmpv6.HOP_LIMIT).emit()
        return ethernet.Ethernet(mac, self.config.mac, ethernet.IPV6, packet).emit()

    def _advertisement(self, mac: bytes, dst: bytes) -> bytes:
        config = self.config
        options = [icmpv6.NdOption(icmpv6.SOURCE_LINK_LAYER, config.mac)]
        if config.mtu >= 1280:
            options.append(icmpv6.NdOption(icmpv6.MTU, struct.pack(">HI", 0, config.mtu)))
        if config.address6:
            # Autoconfiguration needs 64 bits (RFC 4862 §5.5.3); other prefixes are only on link
            prefix = _network(config.address6, config.prefix6)
            options.append(icmpv6.prefix_option(prefix, config.prefix6))
        if config.dns6:
            value = struct.pack(">HI", 0, DNS_LIFETIME) + b"".join(config.dns6[:8])
            options.append(icmpv6.NdOption(icmpv6.RDNSS, value))
        if config.search:
            names = _fitting(config.search, SIZE_MAX - 16 - sum(len(option.emit()) for option in options) - 16)
            if names:
                value = struct.pack(">HI", 0, DNS_LIFETIME) + names
                options.append(icmpv6.NdOption(icmpv6.DNSSL, value))
        body = icmpv6.RouterAdvertisement(LIFETIME, options=tuple(options)).emit()
        return self._emit(icmpv6.ROUTER_ADVERTISEMENT, body, config.ours6, dst, mac)

    def next_timeout(self) -> int | None:
        """Return when the next unasked advertisement is due, ns; 0 before the first call of `on_timeout`."""
        if not self.config.ra:
            return None
        return self.next_at if self.started else 1

    def on_timeout(self, now: int) -> bytes | None:
        """Return an advertisement for everybody when it is due."""
        if not self.config.ra:
            return None
        if not self.started:
            self.started = True
            self.next_at = now + FIRST_NS
            return None
        if self.next_at is None or now < self.next_at:
            return None
        # Between a third and all of the interval (RFC 4861 §6.2.4)
        jitter = int.from_bytes(self.random(4), "big") % (INTERVAL_NS * 2 // 3)
        self.next_at = now + INTERVAL_NS // 3 + jitter
        return self._advertisement(self.guest_mac, ipv6.ALL_NODES)


def _network(address: bytes, bits: int) -> bytes:
    """Return the address with everything behind the prefix zero."""
    value = int.from_bytes(address, "big") >> (128 - bits) << (128 - bits)
    return value.to_bytes(16, "big")


def _fitting(names: tuple[str, ...], limit: int) -> bytes:
    """Return as many encoded names as fit."""
    out = b""
    for name in names:
        raw = domain.encode(name)
        if len(out) + len(raw) > limit:
            break
        out += raw
    return out
