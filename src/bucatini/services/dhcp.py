"""DHCP: one lease for one guest, the address it is to have, for ever (RFC 2131).

There is nothing to remember: every answer follows from the request and the configuration. BOOTP clients are answered too.
"""

import struct

from bucatini.services.config import ServiceConfig
from bucatini.wire import dhcp, domain, ethernet, ipv4, udp

INFINITE = 0xFFFFFFFF  # seconds, RFC 2131 §3.3
MESSAGE_MAX = 1472  # bytes that fit an Ethernet frame


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a message, or None. Raises WireError."""
    packet = ipv4.IPv4.parse(frame.payload)
    if packet.protocol != ipv4.UDP:
        return None
    datagram = udp.Udp.parse(packet.payload, packet.src, packet.dst, verify=False)
    if datagram.sport != dhcp.CLIENT_PORT or datagram.dport != dhcp.SERVER_PORT:
        return None
    request = dhcp.Dhcp.parse(datagram.payload)
    if request.op != dhcp.BOOTREQUEST:
        return None
    reply = _reply(config, request)
    if reply is None:
        return None
    # RFC 2131 §4.1: to ciaddr when the client has an address; to the broadcast address when it asks for that or gets a NAK
    kind = (reply.option(dhcp.OPT_TYPE) or b"\0")[0]
    if any(request.ciaddr) and kind != dhcp.NAK:
        dst = request.ciaddr
    elif request.flags & dhcp.BROADCAST_FLAG or kind == dhcp.NAK:
        dst = b"\xff" * 4
    else:
        dst = config.address4
    mac = ethernet.BROADCAST if dst == b"\xff" * 4 else request.hardware
    src = config.gateway4
    data = udp.Udp(dhcp.SERVER_PORT, dhcp.CLIENT_PORT, reply.emit()).emit(src, dst)
    return ethernet.Ethernet(mac, config.mac, ethernet.IPV4, ipv4.IPv4(src, dst, ipv4.UDP, data).emit()).emit()


def _reply(config: ServiceConfig, request: dhcp.Dhcp) -> dhcp.Dhcp | None:
    """Decide what to say."""
    kind = (request.option(dhcp.OPT_TYPE) or b"\0")[0]
    server = request.option(dhcp.OPT_SERVER)
    if server is not None and server != config.gateway4:
        return None  # meant for another server
    if request.bootp or kind == 0:
        return _message(config, request, 0)
    if kind == dhcp.DISCOVER:
        rapid = request.option(dhcp.OPT_RAPID_COMMIT) is not None
        return _message(config, request, dhcp.ACK if rapid else dhcp.OFFER, rapid=rapid)
    if kind == dhcp.REQUEST:
        wanted = request.option(dhcp.OPT_REQUESTED) or request.ciaddr
        if wanted != config.address4:
            options = ((dhcp.OPT_TYPE, bytes([dhcp.NAK])), (dhcp.OPT_SERVER, config.gateway4))
            return dhcp.Dhcp(dhcp.BOOTREPLY, request.xid, request.hardware, options, request.flags)
        return _message(config, request, dhcp.ACK)
    if kind == dhcp.INFORM:
        return _message(config, request, dhcp.ACK, inform=True)
    return None  # DECLINE, RELEASE: nothing to do; anything else is not for a server


def _message(
    config: ServiceConfig, request: dhcp.Dhcp, kind: int, *, rapid: bool = False, inform: bool = False
) -> dhcp.Dhcp:
    """Return an OFFER, ACK or BOOTP reply."""
    options: list[tuple[int, bytes]] = []
    if kind:
        options.append((dhcp.OPT_TYPE, bytes([kind])))
        options.append((dhcp.OPT_SERVER, config.gateway4))
        if rapid:
            options.append((dhcp.OPT_RAPID_COMMIT, b""))
        if not inform:
            options.append((dhcp.OPT_LEASE, struct.pack(">I", INFINITE)))
    mask = (0xFFFFFFFF << (32 - config.prefix4)) & 0xFFFFFFFF
    options.append((dhcp.OPT_MASK, struct.pack(">I", mask)))
    options.append((dhcp.OPT_ROUTER, config.gateway4))
    if not _same_network(config):
        # RFC 3442: the gateway on link, then the default route; a client that knows this option ignores option 3
        onlink = bytes([32]) + config.gateway4 + bytes(4)
        options.append((dhcp.OPT_ROUTES, onlink + bytes([0]) + config.gateway4))
    if config.dns4:
        options.append((dhcp.OPT_DNS, b"".join(config.dns4[:16])))
    if config.mtu >= 68:
        options.append((dhcp.OPT_MTU, struct.pack(">H", config.mtu)))
    if config.hostname:
        options.append((dhcp.OPT_HOSTNAME, config.hostname.encode()[:255]))
    if config.fqdn:
        options.append((dhcp.OPT_FQDN, _fqdn(request, config.fqdn)))
    if config.search:
        options.append((dhcp.OPT_SEARCH, domain.encode_list(config.search)))
    reply = dhcp.Dhcp(
        dhcp.BOOTREPLY,
        request.xid,
        request.hardware,
        tuple(options),
        request.flags,
        ciaddr=request.ciaddr,
        yiaddr=bytes(4) if inform else config.address4,
        giaddr=request.giaddr,
        bootp=request.bootp,
    )
    # What does not fit one frame goes, longest first: the search list, then names
    for code in (dhcp.OPT_SEARCH, dhcp.OPT_FQDN, dhcp.OPT_HOSTNAME):
        if len(reply.emit()) <= MESSAGE_MAX:
            break
        reply = reply._replace(options=tuple(pair for pair in reply.options if pair[0] != code))
    return reply


def _same_network(config: ServiceConfig) -> bool:
    shift = 32 - config.prefix4
    return int.from_bytes(config.address4, "big") >> shift == int.from_bytes(config.gateway4, "big") >> shift


def _fqdn(request: dhcp.Dhcp, name: str) -> bytes:
    """Return the FQDN option: encoded as the client asks (E bit), no DNS update by anybody (N bit), RFC 4702 §2.1, §4."""
    asked = request.option(dhcp.OPT_FQDN)
    encoded = asked is None or not asked or bool(asked[0] & 4)
    flags = (4 if encoded else 0) | 8
    return bytes([flags, 255, 255]) + (domain.encode(name) if encoded else name.encode())
