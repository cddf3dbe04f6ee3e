"""The slow path: a frame of the guest in, frames to the guest out. Which service it is for, and what it may cost.

Every frame is hostile. A service raises `WireError` for what is malformed: the frame is dropped and counted here,
and nothing goes further. A frame is answered by at most one frame, no longer than the link's smallest IPv6 MTU, or a
DHCP message as long as an Ethernet frame; no two answers depend on each other, so there is no state to fill up.
"""

from __future__ import annotations

from bucatini.errors import WireError
from bucatini.lean.record import TYPE_CHECKING
from bucatini.services import arp, dhcp, dhcpv6
from bucatini.services.config import ServiceConfig
from bucatini.services.discovery import Discovery
from bucatini.services.ndp import Ndp
from bucatini.wire import ethernet, ipv4, ipv6

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Responder", "ServiceConfig"]


class Responder:
    """The services of one guest."""

    def __init__(self, config: ServiceConfig, random: Callable[[int], bytes]) -> None:
        """`random(n)` returns n unpredictable bytes."""
        self.config = config
        self.ndp = Ndp(config, random)
        self.discovery = Discovery(config)
        # Answers by service, frames that need none, and frames that are no message
        self.counters = {"arp": 0, "ndp": 0, "dhcp": 0, "dhcpv6": 0, "malformed": 0, "ignored": 0}

    def on_frame(self, frame: bytes, now: int) -> list[bytes]:
        """Return the answer to a frame of the guest; never raises. Whatever it is, the guest was heard.

        Checksums of UDP are not verified: the packet path did, or they were left to offload.
        """
        self.discovery.end()
        try:
            name, reply = self._dispatch(frame)
        except WireError:
            self.counters["malformed"] += 1
            return []
        self.counters[name if reply is not None else "ignored"] += 1
        return [] if reply is None else [reply]

    def _dispatch(self, data: bytes) -> tuple[str, bytes | None]:
        config = self.config
        frame = ethernet.Ethernet.parse(data)
        if ethernet.is_group(frame.src):
            return "ignored", None
        if frame.ethertype == ethernet.ETHERTYPE_ARP and config.v4:
            return "arp", arp.answer(config, frame)
        if frame.ethertype == ethernet.ETHERTYPE_IPV4 and config.v4 and config.dhcp:
            return "dhcp", dhcp.answer(config, frame)
        if frame.ethertype == ethernet.ETHERTYPE_IPV6 and config.v6:
            packet = ipv6.IPv6.parse(frame.payload)
            # Fragments end here: neighbour discovery must not be fragmented (RFC 6980 §5)
            upper = ipv6.upper_layer(packet)
            if upper.protocol == ipv4.PROTOCOL_ICMPV6 and config.ndp:
                return "ndp", self.ndp.answer(frame, packet, upper.payload)
            if upper.protocol == ipv4.PROTOCOL_UDP and config.dhcpv6:
                return "dhcpv6", dhcpv6.answer(config, frame, packet, upper.payload)
        return "ignored", None

    def next_timeout(self) -> int | None:
        """Return when `on_timeout` is to be called, ns, None: never."""
        advertisement = self.ndp.next_timeout() if self.config.v6 and self.config.ndp else None
        times = [at for at in (advertisement, self.discovery.next_at) if at is not None]
        return min(times) if times else None

    def on_timeout(self, now: int) -> list[bytes]:
        """Return what is due without being asked."""
        frame = self.ndp.on_timeout(now) if self.config.v6 and self.config.ndp else None
        return ([] if frame is None else [frame]) + self.discovery.on_timeout(now)
