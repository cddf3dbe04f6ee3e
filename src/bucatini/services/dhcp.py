"""DHCP: one lease for one guest, the address it is to have, for ever (RFC 2131).

There is nothing to remember: every answer follows from the request and the configuration. BOOTP clients are answered
too.
"""

import struct

from bucatini.services.config import ServiceConfig
from bucatini.wire import dhcp, domain, ethernet, ipv4, udp

MESSAGE_MAX = 1472  # bytes that fit an Ethernet frame


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a message, or None. Raises WireError."""
    packet = ipv4.IPv4.parse(frame.payload)
    if packet.protocol != ipv4.PROTOCOL_UDP:
        return None
    datagram = udp.Udp.parse(packet.payload)  # its checksum may be left to offload
    if datagram.sport != dhcp.CLIENT_PORT or datagram.dport != dhcp.SERVER_PORT:
        return None
    request = dhcp.Dhcp.parse(datagram.payload)
    if request.op != dhcp.BOOTREQUEST or request.htype != dhcp.ETHERNET or request.hlen != 6:
        return None
    reply = _reply(config, request)
    if reply is None:
        return None
    # RFC 2131 §4.1: to ciaddr when the client has an address; broadcast when it asks for that or gets a NAK
    kind = reply.message_type
    if any(request.ciaddr) and kind != dhcp.NAK:
        dst = request.ciaddr
    elif request.flags & dhcp.BROADCAST_FLAG or kind == dhcp.NAK:
        dst = b"\xff" * 4
    else:
        dst = config.address4
    mac = ethernet.BROADCAST if dst == b"\xff" * 4 else request.chaddr[:6]
    src = config.gateway4
    data = udp.Udp(dhcp.SERVER_PORT, dhcp.CLIENT_PORT, reply.emit()).emit(src, dst)
    return ethernet.Ethernet(
        mac, config.mac, ethernet.ETHERTYPE_IPV4, ipv4.IPv4(src, dst, ipv4.PROTOCOL_UDP, data).emit()
    ).emit()


def _reply(config: ServiceConfig, request: dhcp.Dhcp) -> dhcp.Dhcp | None:
    """Decide what to say."""
    kind = request.message_type
    server = request.address(dhcp.SERVER_IDENTIFIER)
    if server is not None and server != config.gateway4:
        return None  # meant for another server
    if kind == 0:
        return _message(config, request, 0)
    if kind == dhcp.DISCOVER:
        rapid = request.option(dhcp.RAPID_COMMIT) is not None
        return _message(config, request, dhcp.ACK if rapid else dhcp.OFFER, rapid=rapid)
    if kind == dhcp.REQUEST:
        wanted = request.address(dhcp.REQUESTED_ADDRESS) or request.ciaddr
        if wanted != config.address4:
            options = ((dhcp.MESSAGE_TYPE, bytes([dhcp.NAK])), (dhcp.SERVER_IDENTIFIER, config.gateway4))
            return dhcp.Dhcp(dhcp.BOOTREPLY, request.xid, request.chaddr, flags=request.flags, options=options)
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
        options.append((dhcp.MESSAGE_TYPE, bytes([kind])))
        options.append((dhcp.SERVER_IDENTIFIER, config.gateway4))
        if rapid:
            options.append((dhcp.RAPID_COMMIT, b""))
        if not inform:
            options.append((dhcp.LEASE_TIME, struct.pack(">I", dhcp.INFINITE)))
    mask = (0xFFFFFFFF << (32 - config.prefix4)) & 0xFFFFFFFF
    options.append((dhcp.SUBNET_MASK, struct.pack(">I", mask)))
    options.append((dhcp.ROUTER, config.gateway4))
    if not _same_network(config):
        # RFC 3442: the gateway on link, then the default route; a client that knows this option ignores option 3
        routes = ((config.gateway4, 32, bytes(4)), (bytes(4), 0, config.gateway4))
        options.append((dhcp.CLASSLESS_ROUTES, dhcp.classless_routes(routes)))
    if config.dns4:
        options.append((dhcp.DOMAIN_NAME_SERVER, b"".join(config.dns4[:16])))
    if config.mtu >= 68:
        options.append((dhcp.INTERFACE_MTU, struct.pack(">H", config.mtu)))
    if config.hostname:
        options.append((dhcp.HOST_NAME, config.hostname.encode()[:255]))
    if config.fqdn:
        options.append((dhcp.CLIENT_FQDN, _fqdn(request, config.fqdn)))
    if config.search:
        options.append((dhcp.DOMAIN_SEARCH, domain.emit_compressed(config.search)))
    reply = dhcp.Dhcp(
        dhcp.BOOTREPLY,
        request.xid,
        request.chaddr,
        flags=request.flags,
        ciaddr=request.ciaddr,
        yiaddr=bytes(4) if inform else config.address4,
        giaddr=request.giaddr,
        options=tuple(options),
    )
    # What does not fit one frame goes, longest first: the search list, then names
    for code in (dhcp.DOMAIN_SEARCH, dhcp.CLIENT_FQDN, dhcp.HOST_NAME):
        if len(reply.emit()) <= MESSAGE_MAX:
            break
        reply = reply._replace(options=tuple(pair for pair in reply.options if pair[0] != code))
    return reply


def _same_network(config: ServiceConfig) -> bool:
    shift = 32 - config.prefix4
    return int.from_bytes(config.address4, "big") >> shift == int.from_bytes(config.gateway4, "big") >> shift


def _fqdn(request: dhcp.Dhcp, name: str) -> bytes:
    """Return the FQDN option: encoded as the client asks (E bit), no DNS updates (N bit), RFC 4702 §2.1, §4."""
    asked = request.option(dhcp.CLIENT_FQDN)
    encoded = asked is None or not asked or bool(asked[0] & dhcp.FQDN_E)
    flags = (dhcp.FQDN_E if encoded else 0) | dhcp.FQDN_N
    return bytes([flags, 255, 255]) + (domain.emit(name) if encoded else name.encode())
