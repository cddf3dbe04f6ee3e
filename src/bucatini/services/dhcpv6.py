"""DHCPv6: one address for one guest, for ever (RFC 8415).

Nothing is remembered. The server's DUID is made of our MAC address, so it is the same at every start.
"""

import struct

from bucatini.services.config import ServiceConfig
from bucatini.wire import dhcpv6, domain, ethernet, ipv4, ipv6, udp

IA_MAX = 8  # identity associations answered in one message
SEARCH_MAX = 700  # bytes of search list that fit

WITH_SERVER = (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.RELEASE, dhcpv6.DECLINE)


def server_id(config: ServiceConfig) -> bytes:
    """Return our DUID."""
    return dhcpv6.duid_ll(config.mac)


def answer(config: ServiceConfig, frame: ethernet.Ethernet) -> bytes | None:
    """Return the reply to a message, or None. Raises WireError."""
    packet = ipv6.IPv6.parse(frame.payload)
    if packet.next_header != ipv4.PROTOCOL_UDP or not any(packet.src):
        return None
    datagram = udp.Udp.parse(packet.payload)  # its checksum may be left to offload
    if datagram.dport != dhcpv6.SERVER_PORT:
        return None
    request = dhcpv6.Dhcpv6.parse(datagram.payload)
    reply = _reply(config, request)
    if reply is None:
        return None
    # To where it came from (D7)
    data = udp.Udp(dhcpv6.SERVER_PORT, datagram.sport, reply.emit()).emit(config.ours6, packet.src)
    answered = ipv6.IPv6(config.ours6, packet.src, ipv4.PROTOCOL_UDP, data).emit()
    return ethernet.Ethernet(frame.src, config.mac, ethernet.ETHERTYPE_IPV6, answered).emit()


def _reply(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> dhcpv6.Dhcpv6 | None:
    """Decide what to say (RFC 8415 §16, §18.3)."""
    client = request.option(dhcpv6.CLIENT_IDENTIFIER)
    server = request.option(dhcpv6.SERVER_IDENTIFIER)
    kind = request.type
    if kind in WITH_SERVER and server != server_id(config):
        return None
    if kind in (dhcpv6.SOLICIT, dhcpv6.CONFIRM, dhcpv6.REBIND) and server is not None:
        return None
    if kind == dhcpv6.INFORMATION_REQUEST and server not in (None, server_id(config)):
        return None
    if client is None and kind != dhcpv6.INFORMATION_REQUEST:
        return None
    if client is not None and not 2 < len(client) <= 130:  # RFC 8415 §11.1
        return None
    options: list[tuple[int, bytes]] = [(dhcpv6.SERVER_IDENTIFIER, server_id(config))]
    if client is not None:
        options.append((dhcpv6.CLIENT_IDENTIFIER, client))
    answer_type = dhcpv6.REPLY
    if kind == dhcpv6.SOLICIT:
        if request.option(dhcpv6.RAPID_COMMIT) is not None:
            options.append((dhcpv6.RAPID_COMMIT, b""))
        else:
            answer_type = dhcpv6.ADVERTISE
        options += _associations(config, request)
    elif kind in (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.REBIND):
        options += _associations(config, request)
    elif kind == dhcpv6.CONFIRM:
        code = _confirm(config, request)
        if code is None:
            return None
        text = "all addresses on link" if code == dhcpv6.SUCCESS else "not on link"
        options.append(dhcpv6.status(code, text))
    elif kind in (dhcpv6.RELEASE, dhcpv6.DECLINE):
        options.append(dhcpv6.status(dhcpv6.SUCCESS, "noted"))
        return dhcpv6.Dhcpv6(answer_type, request.transaction, tuple(options))
    elif kind != dhcpv6.INFORMATION_REQUEST:
        return None
    options += _names(config, request)
    return dhcpv6.Dhcpv6(answer_type, request.transaction, tuple(options))


def _associations(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> list[tuple[int, bytes]]:
    """Answer every identity association: the first for addresses gets ours, others learn that there is no more."""
    result: list[tuple[int, bytes]] = []
    given = False
    for code, value in request.options:
        if len(result) == IA_MAX:
            break
        if code == dhcpv6.IA_NA and len(value) >= 12:
            if config.address6 and not given:
                given = True
                ours = dhcpv6.IaAddress(config.address6, dhcpv6.INFINITE, dhcpv6.INFINITE)
                inner = [(dhcpv6.IA_ADDRESS, ours.emit())]
                inner += [
                    (dhcpv6.IA_ADDRESS, old + bytes(8))  # lifetimes zero: not on this link any more
                    for old in _addresses(value[12:])[:IA_MAX]
                    if old != config.address6 and request.type in (dhcpv6.RENEW, dhcpv6.REBIND)
                ]
            else:
                inner = [dhcpv6.status(dhcpv6.NO_ADDRS_AVAIL, "no address")]
            times = struct.pack(">II", 0, 0)  # T1, T2: the client's choice
            result.append((code, value[:4] + times + dhcpv6.emit_options(tuple(inner))))
        elif code == dhcpv6.IA_TA and len(value) >= 4:
            inner = [dhcpv6.status(dhcpv6.NO_ADDRS_AVAIL, "no temporary address")]
            result.append((code, value[:4] + dhcpv6.emit_options(tuple(inner))))
        elif code == dhcpv6.IA_PD and len(value) >= 12:
            inner = [dhcpv6.status(dhcpv6.NO_PREFIX_AVAIL, "no prefix")]
            result.append((code, value[:4] + bytes(8) + dhcpv6.emit_options(tuple(inner))))
    return result


def _addresses(data: bytes) -> list[bytes]:
    """Return the addresses inside an identity association. Raises Truncated."""
    return [value[:16] for code, value in dhcpv6.parse_options(data) if code == dhcpv6.IA_ADDRESS and len(value) >= 24]


def _confirm(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> int | None:
    """Return the status of a CONFIRM; None: it names no address, so there is no answer (RFC 8415 §18.3.3)."""
    named = [
        address
        for code, value in request.options
        if code == dhcpv6.IA_NA and len(value) >= 12
        for address in _addresses(value[12:])
    ]
    if not named:
        return None
    shift = 128 - config.prefix6
    network = int.from_bytes(config.address6, "big") >> shift if config.address6 else None
    on_link = all(int.from_bytes(address, "big") >> shift == network for address in named)
    return dhcpv6.SUCCESS if on_link else dhcpv6.NOT_ON_LINK


def _names(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> list[tuple[int, bytes]]:
    """Return name servers, search list and the client's name."""
    options = []
    if config.dns6:
        options.append((dhcpv6.DNS_SERVERS, b"".join(config.dns6[:16])))
    if config.search:
        names = b""
        for name in config.search:
            raw = domain.emit(name)
            if len(names) + len(raw) <= SEARCH_MAX:
                names += raw
        options.append((dhcpv6.DOMAIN_LIST, names))
    if config.fqdn and request.option(dhcpv6.CLIENT_FQDN) is not None:
        options.append((dhcpv6.CLIENT_FQDN, bytes([dhcpv6.FQDN_N]) + domain.emit(config.fqdn)))
    return options
