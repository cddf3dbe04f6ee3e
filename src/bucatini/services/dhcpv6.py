"""DHCPv6: one address for one guest, for ever (RFC 8415).

Nothing is remembered. The server's DUID is made of our MAC address, so it is the same at every start. RELEASE and
DECLINE are confirmed and change nothing. A relay's messages are malformed to us: there is none between us and the
guest.

Size. A reply fits the smallest IPv6 MTU: identity associations and addresses are answered up to a limit, then
configuration is added in order of need, and what does not fit is left out.
"""

from __future__ import annotations

import struct

from bucatini.errors import Malformed
from bucatini.lean.record import TYPE_CHECKING
from bucatini.wire import dhcpv6, domain, ethernet, ipv4, ipv6, udp

if TYPE_CHECKING:
    from bucatini.services.config import ServiceConfig

MESSAGE_MAX = ipv6.MTU_MIN - ipv6.HEADER - udp.HEADER  # bytes
ASSOCIATION_MAX = 8  # answered in one message
ADDRESS_MAX = 8  # told to be no more of this link, in one message

WITH_SERVER = (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.RELEASE, dhcpv6.DECLINE)
WITHOUT_SERVER = (dhcpv6.SOLICIT, dhcpv6.CONFIRM, dhcpv6.REBIND)
ASSOCIATIONS = (dhcpv6.IA_NA, dhcpv6.IA_TA, dhcpv6.IA_PD)


def server_id(config: ServiceConfig) -> bytes:
    """Return our DUID."""
    return dhcpv6.duid_ll(config.mac)


def answer(config: ServiceConfig, frame: ethernet.Ethernet, packet: ipv6.IPv6, data: bytes) -> bytes | None:
    """Return the reply to a message, or None. Raises WireError.

    Args:
        data: the datagram.
    """
    datagram = udp.Udp.parse(data)  # its checksum may be left to offload
    if datagram.dport != dhcpv6.SERVER_PORT or not any(packet.src) or ipv6.is_multicast(packet.src):
        return None
    if packet.dst not in (dhcpv6.ALL_SERVERS, config.ours6):
        return None
    request = dhcpv6.Dhcpv6.parse(datagram.payload)
    reply = _reply(config, request, unicast=packet.dst != dhcpv6.ALL_SERVERS)
    if reply is None:
        return None
    # To where it came from (D7)
    payload = udp.Udp(dhcpv6.SERVER_PORT, dhcpv6.CLIENT_PORT, reply.emit()).emit(config.ours6, packet.src)
    answered = ipv6.IPv6(config.ours6, packet.src, ipv4.PROTOCOL_UDP, payload).emit()
    return ethernet.Ethernet(frame.src, config.mac, ethernet.ETHERTYPE_IPV6, answered).emit()


def _is_valid(config: ServiceConfig, request: dhcpv6.Dhcpv6, *, unicast: bool) -> bool:
    """Whether a server may answer at all (RFC 8415 §16)."""
    kind = request.type
    client = request.option(dhcpv6.CLIENT_IDENTIFIER)
    server = request.option(dhcpv6.SERVER_IDENTIFIER)
    if client is None:
        if kind != dhcpv6.INFORMATION_REQUEST:
            return False
    elif not 2 < len(client) <= dhcpv6.DUID_MAX:
        return False
    if kind in WITH_SERVER:
        return server == server_id(config)
    if unicast:
        return False
    if kind in WITHOUT_SERVER:
        return server is None
    return (
        kind == dhcpv6.INFORMATION_REQUEST
        and server in (None, server_id(config))
        and not any(code in ASSOCIATIONS for code, _ in request.options)
    )


def _reply(config: ServiceConfig, request: dhcpv6.Dhcpv6, *, unicast: bool) -> dhcpv6.Dhcpv6 | None:
    """Decide what to say (RFC 8415 §18.3)."""
    if not _is_valid(config, request, unicast=unicast):
        return None
    kind = request.type
    options: list[tuple[int, bytes]] = [(dhcpv6.SERVER_IDENTIFIER, server_id(config))]
    client = request.option(dhcpv6.CLIENT_IDENTIFIER)
    if client is not None:
        options.append((dhcpv6.CLIENT_IDENTIFIER, client))
    reply = dhcpv6.REPLY
    if unicast:
        # We never told the client to do that (RFC 8415 §18.4)
        options.append(dhcpv6.status(dhcpv6.USE_MULTICAST))
        return dhcpv6.Dhcpv6(reply, request.transaction, tuple(options))
    if kind == dhcpv6.SOLICIT:
        if request.option(dhcpv6.RAPID_COMMIT) is not None:
            options.append((dhcpv6.RAPID_COMMIT, b""))
        else:
            reply = dhcpv6.ADVERTISE
            options.append((dhcpv6.PREFERENCE, b"\xff"))  # §18.2.1: nobody else to wait for
        options += _associations(config, request)
    elif kind in (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.REBIND):
        options += _associations(config, request)
    elif kind == dhcpv6.CONFIRM:
        code = _confirm(config, request)
        if code is None:
            return None
        options.append(dhcpv6.status(code))
    elif kind in (dhcpv6.RELEASE, dhcpv6.DECLINE):
        options.append(dhcpv6.status(dhcpv6.SUCCESS))
        return dhcpv6.Dhcpv6(reply, request.transaction, tuple(options))
    room = MESSAGE_MAX - 4 - len(dhcpv6.emit_options(tuple(options)))
    options += _configuration(config, request, room)
    return dhcpv6.Dhcpv6(reply, request.transaction, tuple(options))


def _is_on_link(config: ServiceConfig, address: bytes) -> bool:
    """Whether the address is in the prefix of the guest's."""
    if not config.address6:
        return False
    shift = 128 - config.prefix6
    return int.from_bytes(address, "big") >> shift == int.from_bytes(config.address6, "big") >> shift


def _associations(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> list[tuple[int, bytes]]:
    """Answer the identity associations: one for addresses gets ours, others learn that there is no more.

    It is the one that has the address already, else the first.
    """
    asked = [dhcpv6.IdentityAssociation.parse(code, data) for code, data in request.options if code in ASSOCIATIONS][
        :ASSOCIATION_MAX
    ]
    lucky = -1
    for index, association in enumerate(asked):
        if association.kind == dhcpv6.IA_NA:
            if any(entry.address == config.address6 for entry in association.addresses()):
                lucky = index
                break
            if lucky < 0:
                lucky = index
    result = []
    for index, association in enumerate(asked):
        t = 0
        if association.kind == dhcpv6.IA_PD:
            inner = [dhcpv6.status(dhcpv6.NO_PREFIX_AVAIL)]
        elif index != lucky or not config.address6:
            inner = [dhcpv6.status(dhcpv6.NO_ADDRS_AVAIL)]
        else:
            inner, t = _lease(config, request.type, association)
        answered = association._replace(t1=t, t2=t, options=tuple(inner))
        result.append((association.kind, answered.emit()))
    return result


def _lease(
    config: ServiceConfig, kind: int, association: dhcpv6.IdentityAssociation
) -> tuple[list[tuple[int, bytes]], int]:
    """Return what is in the association that gets our address, and its T1 and T2 in seconds."""
    others = [entry.address for entry in association.addresses() if entry.address != config.address6][:ADDRESS_MAX]
    if kind == dhcpv6.REQUEST and not all(_is_on_link(config, address) for address in others):
        return [dhcpv6.status(dhcpv6.NOT_ON_LINK)], 0  # RFC 8415 §18.3.2
    leases = [dhcpv6.IaAddress(config.address6, dhcpv6.INFINITE, dhcpv6.INFINITE)]
    if kind in (dhcpv6.RENEW, dhcpv6.REBIND):
        leases += [dhcpv6.IaAddress(address, 0, 0) for address in others]  # not to be used any more, §18.3.4
    # RFC 8415 §21.4: with infinite lifetimes T1 and T2 are infinite too
    return [(dhcpv6.IA_ADDRESS, lease.emit()) for lease in leases], dhcpv6.INFINITE


def _confirm(config: ServiceConfig, request: dhcpv6.Dhcpv6) -> int | None:
    """Return the status of a CONFIRM; None: it names no address, so there is no answer (RFC 8415 §18.3.3)."""
    named = [
        entry.address
        for code, data in request.options
        if code in (dhcpv6.IA_NA, dhcpv6.IA_TA)
        for entry in dhcpv6.IdentityAssociation.parse(code, data).addresses()
    ]
    if not named:
        return None
    return dhcpv6.SUCCESS if all(_is_on_link(config, address) for address in named) else dhcpv6.NOT_ON_LINK


def _configuration(config: ServiceConfig, request: dhcpv6.Dhcpv6, room: int) -> list[tuple[int, bytes]]:
    """Return resolvers, the client's name and the search list, as far as they fit in `room` bytes.

    Departure: the name is told to who asks for it or sends its own; RFC 4704 §6 wants both, but who asks wants to know.
    """
    options: list[tuple[int, bytes]] = []
    if config.dns6:
        options.append((dhcpv6.DNS_SERVERS, b"".join(config.dns6)))
    if config.fqdn and (request.option(dhcpv6.CLIENT_FQDN) is not None or request.requested(dhcpv6.CLIENT_FQDN)):
        options.append((dhcpv6.CLIENT_FQDN, _fqdn(request, config.fqdn)))
    fitting = []
    for code, data in options:
        if 4 + len(data) <= room:
            room -= 4 + len(data)
            fitting.append((code, data))
    names = b""
    for name in config.search:
        raw = domain.emit(name)
        if 4 + len(names) + len(raw) > room:
            break
        names += raw
    if names:
        fitting.append((dhcpv6.DOMAIN_LIST, names))
    return fitting


def _fqdn(request: dhcpv6.Dhcpv6, name: str) -> bytes:
    """Return the contents of the FQDN option (RFC 4704 §4.1): we never update DNS, whatever the client wanted."""
    asked = request.option(dhcpv6.CLIENT_FQDN)
    if asked is not None and not asked:
        raise Malformed("DHCPv6 client FQDN without flags")
    overridden = asked is not None and asked[0] & dhcpv6.FQDN_S
    return struct.pack("!B", dhcpv6.FQDN_N | (dhcpv6.FQDN_O if overridden else 0)) + domain.emit(name)
