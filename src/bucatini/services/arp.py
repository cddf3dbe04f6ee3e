"""ARP: we are every address but the guest's own (RFC 826, RFC 1027)."""

from bucatini.services.config import ServiceConfig
from bucatini.wire import arp, ethernet


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a request, or None. Raises WireError.

    A probe or announcement of the guest about the address it has, or is to have, gets no answer: it would take that
    for a conflict (RFC 5227 §2.1).
    """
    message = arp.Arp.parse(frame.payload)
    if message.operation != arp.REQUEST:
        return None
    if message.target in (config.address4, message.sender) or message.sender == bytes(4):
        return None
    if message.target == bytes(4) or message.target[0] >= 224 or message.target[0] == 127:
        return None
    reply = arp.Arp(arp.REPLY, config.mac, message.target, message.sender_mac, message.sender)
    return ethernet.Ethernet(message.sender_mac, config.mac, ethernet.ETHERTYPE_ARP, reply.emit()).emit()
