"""Looking for a guest that is silent: after a restart of ours nobody has told us its MAC address (D18, T4).

Until it is heard, the address that the guest is to have is asked for, by ARP and by neighbour solicitation: soon at
first, then every `MOST_NS`. That is also how a guest is found that boots long after we have started.
"""

from __future__ import annotations

from bucatini.lean.record import TYPE_CHECKING
from bucatini.wire import arp, ethernet, icmp, ipv4, ipv6, ndp

if TYPE_CHECKING:
    from bucatini.services.config import ServiceConfig

FIRST_NS = 100_000_000
MOST_NS = 2_000_000_000
SOLICITED_NODE = b"\xff\x02" + bytes(9) + b"\x01\xff"  # RFC 4291 §2.7.1: 13 bytes, before the last 3 of the address


class Discovery:
    """Asks until there is an answer."""

    def __init__(self, config: ServiceConfig) -> None:
        self.config = config
        self.next_at: int | None = None  # ns
        self.interval = FIRST_NS

    def begin(self) -> None:
        """Ask from now on."""
        self.next_at = 1
        self.interval = FIRST_NS

    def end(self) -> None:
        """Ask no more: the guest was heard, or is not there."""
        self.next_at = None

    def on_timeout(self, now: int) -> list[bytes]:
        """Return the questions that are due."""
        if self.next_at is None or now < self.next_at:
            return []
        self.next_at = now + self.interval
        self.interval = min(2 * self.interval, MOST_NS)
        questions = []
        if self.config.v4 and self.config.address4:
            questions.append(self._request())
        if self.config.v6 and self.config.address6 and self.config.ndp:
            questions.append(self._solicitation())
        return questions

    def _request(self) -> bytes:
        config = self.config
        request = arp.Arp(arp.REQUEST, config.mac, config.gateway4, bytes(6), config.address4)
        return ethernet.Ethernet(ethernet.BROADCAST, config.mac, ethernet.ETHERTYPE_ARP, request.emit()).emit()

    def _solicitation(self) -> bytes:
        config = self.config
        dst = SOLICITED_NODE + config.address6[13:]
        options = (ndp.LinkLayerAddress(ndp.OPTION_SOURCE_LINK_LAYER, config.mac),)
        message: icmp.Icmp = ndp.NeighborSolicitation(config.address6, options).emit()
        data = message.emit(config.ours6, dst)
        packet = ipv6.IPv6(config.ours6, dst, ipv4.PROTOCOL_ICMPV6, data, ndp.HOP_LIMIT).emit()
        return ethernet.Ethernet(ipv6.multicast_mac(dst), config.mac, ethernet.ETHERTYPE_IPV6, packet).emit()
