"""Neighbour discovery: we are every neighbour but the guest itself, and its router (RFC 4861, RFC 8106).

Router advertisements answer solicitations, and go out unasked: soon after start and then about every `INTERVAL_NS`,
long before the default route's lifetime of `LIFETIME` seconds ends (D6). Time is a parameter, jitter comes from
`random`.
"""

from collections.abc import Callable

from bucatini.services.config import ServiceConfig
from bucatini.wire import domain, ethernet, icmp, ipv4, ipv6, ndp

SECOND_NS = 1_000_000_000
LIFETIME = 65535  # seconds: the field's most
INTERVAL_NS = 600 * SECOND_NS  # MaxRtrAdvInterval, RFC 4861 §6.2.1
FIRST_NS = 1 * SECOND_NS
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")  # RFC 4291 §2.7.1
HOP_LIMIT = 255  # RFC 4861 §6.1, §7.1
SIZE_MAX = 1280 - ipv6.HEADER  # bytes of one advertisement


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
        if packet.hop_limit != HOP_LIMIT or packet.next_header != ipv4.PROTOCOL_ICMPV6:
            return None
        message = icmp.Icmp.parse(packet.payload, packet.src, packet.dst)
        if message.type == ndp.NEIGHBOR_SOLICITATION:
            return self._neighbour(frame, packet, ndp.NeighborSolicitation.parse(message))
        if message.type == ndp.ROUTER_SOLICITATION and self.config.ra:
            ndp.RouterSolicitation.parse(message)
            dst = packet.src if any(packet.src) else ALL_NODES
            return self._advertisement(frame.src, dst)
        return None

    def _neighbour(self, frame: ethernet.Ethernet, packet: ipv6.IPv6, asked: ndp.NeighborSolicitation) -> bytes | None:
        """Answer a solicitation: never one of duplicate address detection (RFC 4862 §5.4), never about the guest."""
        if not any(packet.src) or asked.target in (self.config.address6, packet.src):
            return None
        options = (ndp.LinkLayerAddress(ndp.OPTION_TARGET_LINK_LAYER, self.config.mac),)
        message = ndp.NeighborAdvertisement(asked.target, router=True, solicited=True, override=True, options=options)
        return self._emit(message.emit(), asked.target, packet.src, frame.src)

    def _emit(self, message: icmp.Icmp, src: bytes, dst: bytes, mac: bytes) -> bytes:
        packet = ipv6.IPv6(src, dst, ipv4.PROTOCOL_ICMPV6, message.emit(src, dst), HOP_LIMIT).emit()
        return ethernet.Ethernet(mac, self.config.mac, ethernet.ETHERTYPE_IPV6, packet).emit()

    def _advertisement(self, mac: bytes, dst: bytes) -> bytes:
        config = self.config
        options: list[ndp.Option] = [ndp.LinkLayerAddress(ndp.OPTION_SOURCE_LINK_LAYER, config.mac)]
        if config.mtu >= 1280:
            options.append(ndp.Mtu(config.mtu))
        if config.address6:
            # Autoconfiguration needs 64 bits (RFC 4862 §5.5.3); other prefixes are only on link
            prefix = _network(config.address6, config.prefix6)
            options.append(ndp.PrefixInformation(prefix, config.prefix6, on_link=True, autonomous=True))
        if config.dns6:
            options.append(ndp.Rdnss(ndp.INFINITE, config.dns6[:8]))
        if config.search:
            names = _fitting(config.search, SIZE_MAX - 32 - sum(len(option.emit()) for option in options))
            if names:
                options.append(ndp.Dnssl(ndp.INFINITE, names))
        message = ndp.RouterAdvertisement(64, managed=False, other=False, lifetime=LIFETIME, options=tuple(options))
        return self._emit(message.emit(), config.ours6, dst, mac)

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
        return self._advertisement(self.guest_mac, ALL_NODES)


def _network(address: bytes, bits: int) -> bytes:
    """Return the address with everything behind the prefix zero."""
    value = int.from_bytes(address, "big") >> (128 - bits) << (128 - bits)
    return value.to_bytes(16, "big")


def _fitting(names: tuple[str, ...], limit: int) -> tuple[str, ...]:
    """Return as many names as fit in `limit` bytes."""
    fitting: list[str] = []
    for name in names:
        limit -= len(domain.emit(name))
        if limit < 0:
            break
        fitting.append(name)
    return tuple(fitting)
