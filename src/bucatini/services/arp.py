"""ARP: we are every address but the guest's own (RFC 826, RFC 1027)."""

from __future__ import annotations

from bucatini.lean.record import TYPE_CHECKING
from bucatini.wire import arp, ethernet

if TYPE_CHECKING:
    from bucatini.services.config import ServiceConfig


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a request, or None. Raises WireError.

    Who probes whether an address is free (RFC 5227 §2.1) may have it, unless it is ours for certain. Announcements, and
    requests for addresses that no station has, get no answer.
    """
    message = arp.Arp.parse(frame.payload)
    if message.operation != arp.REQUEST or message.is_announcement or config.is_guests(message.target):
        return None
    if message.is_probe and not config.is_ours(message.target):
        return None
    if message.target[0] in (0, 127) or message.target[0] >= 224:
        return None
    # Its Ethernet address, not the one it claims in the message: the reply is for nobody else
    reply = arp.Arp(arp.REPLY, config.mac, message.target, message.sender_mac, message.sender)
    return ethernet.Ethernet(frame.src, config.mac, ethernet.ETHERTYPE_ARP, reply.emit()).emit()
