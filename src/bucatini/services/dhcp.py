"""DHCP: one lease for one guest, the address it is to have, for ever (RFC 2131). BOOTP clients are answered too.

There is nothing to remember: every answer follows from the request and the configuration. DECLINE and RELEASE change
nothing, because nobody else could have the address.

Size. An answer is as long as the client says it takes (option 57), else the 576 bytes of IPv4 that everybody takes,
for BOOTP 300 bytes of message. Options are added in order of need, and one that does not fit is left out: the search
list is the last.
"""

from __future__ import annotations

import struct

from bucatini.lean.record import TYPE_CHECKING
from bucatini.wire import dhcp, domain, ethernet, ipv4, udp

if TYPE_CHECKING:
    from bucatini.services.config import ServiceConfig

HEADERS = ipv4.HEADER + udp.HEADER  # bytes
MESSAGE_MIN = 576 - HEADERS  # RFC 2131 §2: what every client must take
MESSAGE_MAX = 1500 - HEADERS  # what fits an Ethernet frame


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a message, or None. Raises WireError."""
    packet = ipv4.IPv4.parse(frame.payload)
    if packet.protocol != ipv4.PROTOCOL_UDP or packet.is_fragment or not _is_for_us(config, packet.dst):
        return None
    datagram = udp.Udp.parse(packet.payload)  # its checksum may be left to offload
    if datagram.dport != dhcp.SERVER_PORT:
        return None
    request = dhcp.Dhcp.parse(datagram.payload)
    if request.op != dhcp.BOOTREQUEST or request.htype != dhcp.ETHERNET or request.hlen != 6:
        return None
    reply = _reply(config, request)
    if reply is None:
        return None
    dst, port = _destination(request, reply, packet.src)
    # A client without an address cannot answer ARP; chaddr is where it listens (RFC 2131 §4.1)
    mac = frame.src if any(request.giaddr) or ethernet.is_group(request.chaddr) else request.chaddr[:6]
    if dst == ipv4.BROADCAST:
        mac = ethernet.BROADCAST
    src = config.gateway4
    data = udp.Udp(dhcp.SERVER_PORT, port, reply.emit()).emit(src, dst)
    packed = ipv4.IPv4(src, dst, ipv4.PROTOCOL_UDP, data).emit()
    return ethernet.Ethernet(mac, config.mac, ethernet.ETHERTYPE_IPV4, packed).emit()


def _is_for_us(config: ServiceConfig, dst: bytes) -> bool:
    """Whether we are meant: by broadcast, of the network too, or by our address."""
    hosts = (1 << (32 - config.prefix4)) - 1
    directed = int.from_bytes(config.address4, "big") | hosts
    return dst in (ipv4.BROADCAST, config.gateway4, directed.to_bytes(4, "big")) or config.is_ours(dst)


def _destination(request: dhcp.Dhcp, reply: dhcp.Dhcp, src: bytes) -> tuple[bytes, int]:
    """Return address and port of the reply (RFC 2131 §4.1)."""
    if any(request.giaddr):
        return request.giaddr, dhcp.SERVER_PORT
    kind = reply.option(dhcp.MESSAGE_TYPE)
    if kind == bytes([dhcp.NAK]):
        return ipv4.BROADCAST, dhcp.CLIENT_PORT
    if any(request.ciaddr):
        return request.ciaddr, dhcp.CLIENT_PORT
    if request.flags & dhcp.BROADCAST_FLAG:
        return ipv4.BROADCAST, dhcp.CLIENT_PORT
    if any(reply.yiaddr):
        return reply.yiaddr, dhcp.CLIENT_PORT
    # An INFORM without ciaddr: to where it came from
    return (src if any(src) else ipv4.BROADCAST), dhcp.CLIENT_PORT


def _reply(config: ServiceConfig, request: dhcp.Dhcp) -> dhcp.Dhcp | None:
    """Decide what to say (RFC 2131 §4.3)."""
    kind = request.message_type
    server = request.address(dhcp.SERVER_IDENTIFIER)
    if server is not None and server != config.gateway4:
        return None  # the client took another server's offer
    if kind == 0:
        return _message(config, request, 0)
    if kind == dhcp.DISCOVER:
        rapid = request.option(dhcp.RAPID_COMMIT) is not None
        return _message(config, request, dhcp.ACK if rapid else dhcp.OFFER, rapid=rapid)
    if kind == dhcp.REQUEST:
        wanted = request.address(dhcp.REQUESTED_ADDRESS) or request.ciaddr
        if not any(wanted):
            return None  # RFC 2131 §4.3.2: one of the two must be there
        return _message(config, request, dhcp.ACK if wanted == config.address4 else dhcp.NAK)
    if kind == dhcp.INFORM:
        return _message(config, request, dhcp.ACK, inform=True)
    return None


def _message(
    config: ServiceConfig, request: dhcp.Dhcp, kind: int, *, rapid: bool = False, inform: bool = False
) -> dhcp.Dhcp:
    """Return an OFFER, ACK, NAK or BOOTP reply; RFC 2131 table 3 says what is in which."""
    leased = kind != dhcp.NAK and not inform
    options: list[tuple[int, bytes]] = []
    if kind:
        options += [(dhcp.MESSAGE_TYPE, bytes([kind])), (dhcp.SERVER_IDENTIFIER, config.gateway4)]
        identifier = request.option(dhcp.CLIENT_IDENTIFIER)
        if identifier is not None:  # RFC 6842 §3
            options.append((dhcp.CLIENT_IDENTIFIER, identifier))
        if rapid:
            options.append((dhcp.RAPID_COMMIT, b""))
        if leased:
            options.append((dhcp.LEASE_TIME, struct.pack("!I", dhcp.INFINITE)))
    if kind == dhcp.NAK:
        options.append((dhcp.MESSAGE, b"not the address of this guest"))
    else:
        options += _parameters(config, request)
    return dhcp.Dhcp(
        dhcp.BOOTREPLY,
        request.xid,
        request.chaddr,
        # RFC 2131 §4.3.2: so that a relay broadcasts a NAK
        flags=request.flags | (dhcp.BROADCAST_FLAG if kind == dhcp.NAK and any(request.giaddr) else 0),
        ciaddr=request.ciaddr if kind != dhcp.NAK else bytes(4),
        yiaddr=config.address4 if leased else bytes(4),
        giaddr=request.giaddr,
        options=_fitting(options, _room(request, kind)),
    )


def _parameters(config: ServiceConfig, request: dhcp.Dhcp) -> list[tuple[int, bytes]]:
    """Return the options that configure the client, the most needed first."""
    mask = 0xFFFFFFFF << (32 - config.prefix4) & 0xFFFFFFFF
    options = [(dhcp.SUBNET_MASK, struct.pack("!I", mask)), (dhcp.ROUTER, config.gateway4)]
    if not _same_network(config):
        # RFC 3442: the gateway on link, then the default route; a client that knows this option ignores option 3
        routes = ((config.gateway4, 32, bytes(4)), (bytes(4), 0, config.gateway4))
        options.append((dhcp.CLASSLESS_ROUTES, dhcp.classless_routes(routes)))
    if config.mtu >= 68:  # RFC 2132 §5.1
        options.append((dhcp.INTERFACE_MTU, struct.pack("!H", config.mtu)))
    if config.dns4:
        options.append((dhcp.DOMAIN_NAME_SERVER, b"".join(config.dns4)))
    if config.hostname:
        options.append((dhcp.HOST_NAME, config.hostname.encode()))
    if config.fqdn:
        options.append((dhcp.CLIENT_FQDN, _fqdn(request, config.fqdn)))
    # Long, so only for who asks (RFC 3397 §1)
    if config.search and dhcp.DOMAIN_SEARCH in (request.option(dhcp.PARAMETER_REQUEST_LIST) or b""):
        options.append((dhcp.DOMAIN_SEARCH, domain.emit_compressed(config.search)))
    return options


def _room(request: dhcp.Dhcp, kind: int) -> int:
    """Return how many bytes of options, without END, the client takes."""
    if kind == 0:
        message = dhcp.LENGTH_MIN
    else:
        asked = request.option(dhcp.MAXIMUM_MESSAGE_SIZE) or b""  # with IP and UDP headers, RFC 2132 §9.10
        message = min(max(int.from_bytes(asked, "big") - HEADERS, MESSAGE_MIN), MESSAGE_MAX)
    return message - dhcp.HEADER - len(dhcp.COOKIE) - 1


def _fitting(options: list[tuple[int, bytes]], room: int) -> dhcp.Options:
    """Return the options that fit in `room` bytes, first come, first served."""
    fitting = []
    for code, data in options:
        size = len(dhcp.emit_option(code, data))
        if size <= room:
            room -= size
            fitting.append((code, data))
    return tuple(fitting)


def _same_network(config: ServiceConfig) -> bool:
    shift = 32 - config.prefix4
    return int.from_bytes(config.address4, "big") >> shift == int.from_bytes(config.gateway4, "big") >> shift


def _fqdn(request: dhcp.Dhcp, name: str) -> bytes:
    """Return the FQDN option (RFC 4702 §2.1, §4).

    Encoded as the client encodes its own (E bit). We never update DNS (N bit); where the client wanted us to (S bit),
    that overrides it (O bit).
    """
    asked = request.option(dhcp.CLIENT_FQDN) or bytes([dhcp.FQDN_E])
    encoded = asked[0] & dhcp.FQDN_E
    flags = encoded | dhcp.FQDN_N | (dhcp.FQDN_O if asked[0] & dhcp.FQDN_S else 0)
    return bytes([flags, 255, 255]) + (domain.emit(name) if encoded else name.encode())
