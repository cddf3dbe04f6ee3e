"""Neighbour discovery: we are every neighbour but the guest itself, and its router (RFC 4861, RFC 8106).

Who asks whether an address is free (RFC 4862 §5.4) may have it, unless it is ours for certain.

Router advertisements answer solicitations, and go out unasked: `FIRST_COUNT` of them soon after the start, then
about every `INTERVAL_NS`, long before the default route's lifetime of `LIFETIME` seconds ends (D6). Time is a
parameter, jitter comes from the injected random bytes. An advertisement fits the smallest IPv6 MTU; of resolvers and
search list what fits is told.

The prefix announced is always 64 bits long: no other allows autoconfiguration (RFC 4862 §5.5.3, RFC 4291 §2.5.4).
Where the host's own is longer or shorter, that is still right: we answer for every neighbour in it.
"""

from __future__ import annotations

from bucatini.errors import Malformed
from bucatini.lean.record import TYPE_CHECKING
from bucatini.wire import domain, ethernet, icmp, ipv4, ipv6, ndp

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.services.config import ServiceConfig

SECOND_NS = 1_000_000_000
LIFETIME = 65535  # seconds: the field's most, RFC 8319 §4
INTERVAL_NS = 600 * SECOND_NS  # MaxRtrAdvInterval, RFC 4861 §6.2.1
FIRST_NS = 16 * SECOND_NS  # MAX_INITIAL_RTR_ADVERT_INTERVAL, RFC 4861 §10
FIRST_COUNT = 3  # MAX_INITIAL_RTR_ADVERTISEMENTS
PREFIX = 64  # bits
SIZE_MAX = ipv6.MTU_MIN - ipv6.HEADER  # bytes of one advertisement
RDNSS_MAX = 8  # resolvers told


class Ndp:
    """Answers neighbours' and routers' solicitations."""

    def __init__(self, config: ServiceConfig, random: Callable[[int], bytes]) -> None:
        self.config = config
        self.random = random
        self.next_at = 1  # ns, of the next unasked advertisement: the first one at once
        self.sent = 0  # unasked ones

    def answer(self, frame: ethernet.Ethernet, packet: ipv6.IPv6, data: bytes) -> bytes | None:
        """Return the reply to a message, or None. Raises WireError.

        Args:
            data: the ICMPv6 message.
        """
        message = icmp.Icmp.parse(data, packet.src, packet.dst)
        if message.type not in (ndp.NEIGHBOR_SOLICITATION, ndp.ROUTER_SOLICITATION):
            return None
        if packet.hop_limit != ndp.HOP_LIMIT:
            raise Malformed(f"neighbour discovery with hop limit {packet.hop_limit}")
        if ipv6.is_multicast(packet.src):
            raise Malformed("neighbour discovery from a multicast address")
        if message.type == ndp.NEIGHBOR_SOLICITATION:
            return self._neighbour(frame, packet, ndp.NeighborSolicitation.parse(message))
        solicitation = ndp.RouterSolicitation.parse(message)
        _check_source(packet.src, solicitation.options)
        if not self.config.ra:
            return None
        if any(packet.src):
            return self._emit(self._advertisement(), self.config.ours6, packet.src, frame.src)
        return self._to_all(self._advertisement(), self.config.ours6)

    def _neighbour(self, frame: ethernet.Ethernet, packet: ipv6.IPv6, asked: ndp.NeighborSolicitation) -> bytes | None:
        """Answer a neighbour solicitation."""
        _check_source(packet.src, asked.options)
        detection = not any(packet.src)
        if asked.target == packet.src or self.config.is_guests(asked.target):
            return None
        if not any(asked.target) or (detection and not self.config.is_ours(asked.target)):
            return None
        options = (ndp.LinkLayerAddress(ndp.OPTION_TARGET_LINK_LAYER, self.config.mac),)
        router = self.config.is_ours(asked.target)
        reply = ndp.NeighborAdvertisement(asked.target, router, solicited=not detection, override=True, options=options)
        if detection:
            return self._to_all(reply.emit(), asked.target)
        return self._emit(reply.emit(), asked.target, packet.src, frame.src)

    def _to_all(self, message: icmp.Icmp, src: bytes) -> bytes:
        return self._emit(message, src, ipv6.ALL_NODES, ipv6.multicast_mac(ipv6.ALL_NODES))

    def _emit(self, message: icmp.Icmp, src: bytes, dst: bytes, mac: bytes) -> bytes:
        packet = ipv6.IPv6(src, dst, ipv4.PROTOCOL_ICMPV6, message.emit(src, dst), ndp.HOP_LIMIT).emit()
        return ethernet.Ethernet(mac, self.config.mac, ethernet.ETHERTYPE_IPV6, packet).emit()

    def _advertisement(self) -> icmp.Icmp:
        config = self.config
        options: list[ndp.Option] = [ndp.LinkLayerAddress(ndp.OPTION_SOURCE_LINK_LAYER, config.mac)]
        if config.mtu >= ipv6.MTU_MIN:
            options.append(ndp.Mtu(config.mtu))
        if config.address6:
            prefix = config.address6[: PREFIX // 8] + bytes(16 - PREFIX // 8)
            options.append(ndp.PrefixInformation(prefix, PREFIX, on_link=True, autonomous=True))
        if config.dns6:
            options.append(ndp.Rdnss(ndp.INFINITE, config.dns6[:RDNSS_MAX]))
        room = SIZE_MAX - 16 - sum(len(option.emit()) for option in options) - 8 - 7  # its head, and zeros behind it
        names = _fitting(config.search, room)
        if names:
            options.append(ndp.Dnssl(ndp.INFINITE, names))
        # By DHCPv6 there is the host's own address, and the rest of the configuration
        managed = config.dhcpv6 and config.address6 != b""
        return ndp.RouterAdvertisement(
            64, managed=managed, other=config.dhcpv6, lifetime=LIFETIME, options=tuple(options)
        ).emit()

    def next_timeout(self) -> int | None:
        """Return when the next unasked advertisement is due, ns; None: never."""
        return self.next_at if self.config.ra else None

    def on_timeout(self, now: int) -> bytes | None:
        """Return an advertisement for everybody when it is due."""
        if not self.config.ra or now < self.next_at:
            return None
        self.sent += 1
        # Between a third and all of the interval (RFC 4861 §6.2.1, §6.2.4)
        most = FIRST_NS if self.sent < FIRST_COUNT else INTERVAL_NS
        self.next_at = now + most // 3 + int.from_bytes(self.random(4), "big") * (most - most // 3) // 0xFFFFFFFF
        return self._to_all(self._advertisement(), self.config.ours6)


def _check_source(src: bytes, options: tuple[ndp.Option, ...]) -> None:
    """Check that who has no address tells no link-layer address (RFC 4861 §6.1.1, §7.1.1)."""
    if not any(src) and ndp.link_layer(options, ndp.OPTION_SOURCE_LINK_LAYER) is not None:
        raise Malformed("link-layer address of a sender without an address")


def _fitting(names: tuple[str, ...], room: int) -> tuple[str, ...]:
    """Return as many names as fit in `room` bytes."""
    fitting = []
    for name in names:
        room -= len(domain.emit(name))
        if room < 0:
            break
        fitting.append(name)
    return tuple(fitting)
