"""The services, as a guest and as a hostile guest meet them."""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.all import DHCP6_Advertise, DHCP6_Reply, DHCP6OptIAAddress, Ether, ICMPv6NDOptMTU, ICMPv6NDOptPrefixInfo

from bucatini.services.config import ServiceConfig
from bucatini.services.ndp import LIFETIME, SECOND_NS
from bucatini.services.responder import Responder
from bucatini.wire import arp, dhcp, dhcpv6, domain, ethernet, icmp, ipv4, ipv6, ndp, udp

OURS, GUEST = bytes.fromhex("9a559a559a55"), bytes.fromhex("020000000001")
ADDRESS4, GATEWAY4 = bytes([192, 0, 2, 10]), bytes([192, 0, 2, 1])
ADDRESS6 = bytes.fromhex("20010db8000000000000000000000010")
LINK_LOCAL, OURS6 = bytes.fromhex("fe80" + "00" * 13 + "07"), bytes.fromhex("fe80" + "00" * 13 + "01")
ALL_NODES = bytes.fromhex("ff02" + "00" * 13 + "01")

CONFIG = ServiceConfig(
    mac=OURS,
    address4=ADDRESS4,
    prefix4=24,
    gateway4=GATEWAY4,
    address6=ADDRESS6,
    prefix6=64,
    ours6=OURS6,
    mtu=65520,
    dns4=(bytes([192, 0, 2, 53]),),
    dns6=(ADDRESS6[:15] + b"\x53",),
    search=("example.org", "lab.example.net"),
    hostname="box",
    fqdn="box.example.org",
)


def responder(config: ServiceConfig = CONFIG) -> Responder:
    return Responder(config, bytes)


def ask(frame: bytes, config: ServiceConfig = CONFIG) -> ethernet.Ethernet | None:
    replies = responder(config).on_frame(frame, 0)
    assert len(replies) <= 1
    return ethernet.Ethernet.parse(replies[0]) if replies else None


# ARP


def who_has(target: bytes, sender: bytes = ADDRESS4) -> bytes:
    message = arp.Arp(arp.REQUEST, GUEST, sender, bytes(6), target)
    return ethernet.Ethernet(ethernet.BROADCAST, GUEST, ethernet.ETHERTYPE_ARP, message.emit()).emit()


@pytest.mark.parametrize("target", [GATEWAY4, bytes([192, 0, 2, 77]), bytes([10, 1, 2, 3])])
def test_we_are_every_address_but_the_guests(target: bytes) -> None:
    frame = ask(who_has(target))
    assert frame is not None
    reply = arp.Arp.parse(frame.payload)
    assert reply == arp.Arp(arp.REPLY, OURS, target, GUEST, ADDRESS4)


@pytest.mark.parametrize(
    ("target", "sender"),
    [
        (ADDRESS4, bytes(4)),  # probe for what it is to have
        (bytes([192, 0, 2, 99]), bytes(4)),  # probe for anything
        (ADDRESS4, ADDRESS4),  # announcement
        (bytes([192, 0, 2, 99]), bytes([192, 0, 2, 99])),
        (bytes([224, 0, 0, 1]), ADDRESS4),
        (bytes([127, 0, 0, 1]), ADDRESS4),
    ],
)
def test_the_guests_own_addresses_are_not_claimed(target: bytes, sender: bytes) -> None:
    assert ask(who_has(target, sender)) is None


# Neighbour discovery


def over_ipv6(message: icmp.Icmp, src: bytes = LINK_LOCAL, dst: bytes = OURS6, hop_limit: int = 255) -> bytes:
    packet = ipv6.IPv6(src, dst, 58, message.emit(src, dst), hop_limit).emit()
    return ethernet.Ethernet(OURS, GUEST, ethernet.ETHERTYPE_IPV6, packet).emit()


def solicit(target: bytes, src: bytes = LINK_LOCAL) -> bytes:
    return over_ipv6(ndp.NeighborSolicitation(target).emit(), src)


def test_a_neighbour_is_answered_for() -> None:
    target = ADDRESS6[:15] + b"\x99"
    frame = ask(solicit(target))
    assert frame is not None
    packet = ipv6.IPv6.parse(frame.payload)
    reply = ndp.NeighborAdvertisement.parse(icmp.Icmp.parse(packet.payload, packet.src, packet.dst))
    assert (packet.hop_limit, packet.dst, frame.dst) == (255, LINK_LOCAL, GUEST)
    assert (reply.target, reply.solicited, reply.override) == (target, True, True)
    assert ndp.link_layer(reply.options, ndp.OPTION_TARGET_LINK_LAYER) == OURS


@pytest.mark.parametrize("target", [ADDRESS6, LINK_LOCAL, ADDRESS6[:15] + b"\x99"])
def test_duplicate_address_detection_is_never_answered(target: bytes) -> None:
    assert ask(solicit(target, src=bytes(16))) is None


def test_a_hop_limit_below_255_came_from_elsewhere() -> None:
    assert ask(over_ipv6(ndp.NeighborSolicitation(OURS6).emit(), hop_limit=254)) is None


def advertisement(config: ServiceConfig = CONFIG, src: bytes = LINK_LOCAL) -> tuple[bytes, ipv6.IPv6]:
    frame = ask(over_ipv6(ndp.RouterSolicitation().emit(), src), config)
    assert frame is not None
    return frame.emit(), ipv6.IPv6.parse(frame.payload)


def test_a_router_solicitation_gets_prefix_mtu_resolvers_and_search_list() -> None:
    raw, packet = advertisement()
    found = ndp.RouterAdvertisement.parse(icmp.Icmp.parse(packet.payload, packet.src, packet.dst))
    assert (found.lifetime, packet.dst) == (LIFETIME, LINK_LOCAL)
    kinds = {type(option): option for option in found.options}
    assert kinds[ndp.PrefixInformation] == ndp.PrefixInformation(ADDRESS6[:8] + bytes(8), 64, True, True)
    assert kinds[ndp.Mtu] == ndp.Mtu(65520)
    assert kinds[ndp.Rdnss] == ndp.Rdnss(ndp.INFINITE, CONFIG.dns6)
    assert kinds[ndp.Dnssl] == ndp.Dnssl(ndp.INFINITE, CONFIG.search)
    shown = Ether(raw)
    assert shown[ICMPv6NDOptPrefixInfo].prefixlen == 64
    assert shown[ICMPv6NDOptMTU].mtu == 65520


def test_a_solicitation_without_a_source_is_answered_to_everybody() -> None:
    assert advertisement(src=bytes(16))[1].dst == ALL_NODES


def test_D6_advertisements_come_unasked_long_before_the_route_expires() -> None:
    service = responder()
    now, sent = 0, []
    for _ in range(100):
        due = service.next_timeout()
        assert due is not None
        now = max(now, due)
        if service.on_timeout(now):
            sent.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sent)]
    assert sent[0] <= 2 * SECOND_NS
    assert max(gaps) < LIFETIME * SECOND_NS / 3
    assert min(gaps) >= 3 * SECOND_NS  # MIN_DELAY_BETWEEN_RAS, RFC 4861 §10


def test_what_is_switched_off_says_nothing() -> None:
    off = CONFIG._replace(ndp=False, dhcp=False, dhcpv6=False)
    assert ask(solicit(OURS6), off) is None
    assert responder(off).next_timeout() is None
    assert responder(CONFIG._replace(ra=False)).next_timeout() is None
    assert ask(over_ipv6(ndp.RouterSolicitation().emit()), CONFIG._replace(ra=False)) is None


# DHCP


def dhcp_request(kind: int, *options: tuple[int, bytes], ciaddr: bytes = bytes(4), flags: int = 0) -> bytes:
    all_options = ((dhcp.MESSAGE_TYPE, bytes([kind])), *options) if kind else options
    message = dhcp.Dhcp(dhcp.BOOTREQUEST, 0x1234, GUEST + bytes(10), flags=flags, ciaddr=ciaddr, options=all_options)
    src, dst = ciaddr, b"\xff" * 4
    packet = ipv4.IPv4(src, dst, 17, udp.Udp(68, 67, message.emit()).emit(src, dst)).emit()
    return ethernet.Ethernet(ethernet.BROADCAST, GUEST, ethernet.ETHERTYPE_IPV4, packet).emit()


def dhcp_reply(frame: bytes, config: ServiceConfig = CONFIG) -> tuple[ethernet.Ethernet, ipv4.IPv4, dhcp.Dhcp] | None:
    answer = ask(frame, config)
    if answer is None:
        return None
    packet = ipv4.IPv4.parse(answer.payload)
    return answer, packet, dhcp.Dhcp.parse(udp.Udp.parse(packet.payload, packet.src, packet.dst).payload)


def lease(frame: bytes, config: ServiceConfig = CONFIG) -> dhcp.Dhcp:
    found = dhcp_reply(frame, config)
    assert found is not None
    return found[2]


def test_D5_an_offer_has_the_message_type_first_and_all_that_is_to_be_known() -> None:
    offer = lease(dhcp_request(dhcp.DISCOVER, (dhcp.PARAMETER_REQUEST_LIST, bytes([dhcp.DOMAIN_SEARCH]))))
    assert offer.options[0] == (dhcp.MESSAGE_TYPE, bytes([dhcp.OFFER]))
    assert offer.yiaddr == ADDRESS4
    assert offer.option(dhcp.SUBNET_MASK) == bytes([255, 255, 255, 0])
    assert offer.option(dhcp.ROUTER) == GATEWAY4
    assert offer.option(dhcp.SERVER_IDENTIFIER) == GATEWAY4
    assert offer.option(dhcp.LEASE_TIME) == b"\xff" * 4
    assert offer.option(dhcp.INTERFACE_MTU) == struct.pack(">H", 65520)
    assert offer.option(dhcp.DOMAIN_NAME_SERVER) == CONFIG.dns4[0]
    assert offer.option(dhcp.HOST_NAME) == b"box"
    assert offer.option(dhcp.CLIENT_FQDN) == bytes([dhcp.FQDN_E | dhcp.FQDN_N, 255, 255]) + domain.emit(
        CONFIG.fqdn or ""
    )
    assert domain.parse_list(offer.option(dhcp.DOMAIN_SEARCH) or b"", compressed=True) == CONFIG.search
    assert offer.option(dhcp.CLASSLESS_ROUTES) is None


def test_D5_a_request_is_acknowledged_and_one_for_another_address_refused() -> None:
    good = lease(dhcp_request(dhcp.REQUEST, (dhcp.REQUESTED_ADDRESS, ADDRESS4)))
    assert (good.message_type, good.yiaddr) == (dhcp.ACK, ADDRESS4)
    renewing = lease(dhcp_request(dhcp.REQUEST, ciaddr=ADDRESS4))
    assert renewing.message_type == dhcp.ACK
    found = dhcp_reply(dhcp_request(dhcp.REQUEST, (dhcp.REQUESTED_ADDRESS, bytes([10, 0, 0, 1]))))
    assert found is not None
    frame, packet, bad = found
    assert (bad.message_type, bad.yiaddr) == (dhcp.NAK, bytes(4))
    assert (packet.dst, frame.dst) == (b"\xff" * 4, ethernet.BROADCAST)


def test_D5_bootp_is_answered() -> None:
    reply = lease(dhcp_request(0))
    assert (reply.yiaddr, reply.option(dhcp.MESSAGE_TYPE), reply.option(dhcp.LEASE_TIME)) == (ADDRESS4, None, None)


def test_inform_gets_no_address_and_no_lease() -> None:
    reply = lease(dhcp_request(dhcp.INFORM, ciaddr=bytes([192, 0, 2, 20])))
    assert (reply.message_type, reply.yiaddr, reply.option(dhcp.LEASE_TIME)) == (dhcp.ACK, bytes(4), None)


def test_rapid_commit_is_one_exchange() -> None:
    reply = lease(dhcp_request(dhcp.DISCOVER, (dhcp.RAPID_COMMIT, b"")))
    assert (reply.message_type, reply.option(dhcp.RAPID_COMMIT)) == (dhcp.ACK, b"")


def test_a_gateway_outside_the_subnet_comes_with_classless_routes() -> None:
    far = CONFIG._replace(gateway4=bytes([10, 0, 0, 1]))
    routes = lease(dhcp_request(dhcp.DISCOVER), far).option(dhcp.CLASSLESS_ROUTES)
    assert routes == bytes([32, 10, 0, 0, 1, 0, 0, 0, 0, 0, 10, 0, 0, 1])


@pytest.mark.parametrize(("flags", "dst"), [(0, ADDRESS4), (dhcp.BROADCAST_FLAG, b"\xff" * 4)])
def test_where_an_offer_goes(flags: int, dst: bytes) -> None:
    found = dhcp_reply(dhcp_request(dhcp.DISCOVER, flags=flags))
    assert found is not None
    assert found[1].dst == dst


def test_another_servers_client_and_what_needs_no_answer_get_none() -> None:
    other = (dhcp.SERVER_IDENTIFIER, bytes([10, 9, 9, 9]))
    assert dhcp_reply(dhcp_request(dhcp.REQUEST, (dhcp.REQUESTED_ADDRESS, ADDRESS4), other)) is None
    for kind in (dhcp.DECLINE, dhcp.RELEASE, dhcp.OFFER, dhcp.ACK, dhcp.NAK):
        assert dhcp_reply(dhcp_request(kind)) is None


def test_a_search_list_that_does_not_fit_is_left_out() -> None:
    long = CONFIG._replace(search=tuple(f"{i:060}.example{i}.org" for i in range(40)))
    answer = ask(dhcp_request(dhcp.DISCOVER), long)
    assert answer is not None
    assert len(answer.emit()) <= 1514


# DHCPv6

CLIENT = bytes.fromhex("00030001020000000001")


def dhcpv6_request(kind: int, *options: tuple[int, bytes], src: bytes = LINK_LOCAL) -> bytes:
    message = dhcpv6.Dhcpv6(kind, b"abc", ((dhcpv6.CLIENT_IDENTIFIER, CLIENT), *options)).emit()
    dst = dhcpv6.ALL_SERVERS
    packet = ipv6.IPv6(src, dst, 17, udp.Udp(546, 547, message).emit(src, dst)).emit()
    return ethernet.Ethernet(ipv6.multicast_mac(dst), GUEST, ethernet.ETHERTYPE_IPV6, packet).emit()


SERVER = (dhcpv6.SERVER_IDENTIFIER, dhcpv6.duid_ll(OURS))
IA = (dhcpv6.IA_NA, dhcpv6.IdentityAssociation(dhcpv6.IA_NA, b"iaid").emit())


def dhcpv6_reply(frame: bytes) -> tuple[bytes, ipv6.IPv6, dhcpv6.Dhcpv6] | None:
    answer = ask(frame)
    if answer is None:
        return None
    packet = ipv6.IPv6.parse(answer.payload)
    return answer.emit(), packet, dhcpv6.Dhcpv6.parse(udp.Udp.parse(packet.payload, packet.src, packet.dst).payload)


@pytest.mark.parametrize(
    ("kind", "options", "answer"),
    [
        (dhcpv6.SOLICIT, (IA,), dhcpv6.ADVERTISE),
        (dhcpv6.SOLICIT, (IA, (dhcpv6.RAPID_COMMIT, b"")), dhcpv6.REPLY),
        (dhcpv6.REQUEST, (IA, SERVER), dhcpv6.REPLY),
        (dhcpv6.RENEW, (IA, SERVER), dhcpv6.REPLY),
        (dhcpv6.REBIND, (IA,), dhcpv6.REPLY),
    ],
)
def test_D7_an_address_goes_to_where_the_request_came_from(
    kind: int, options: tuple[tuple[int, bytes], ...], answer: int
) -> None:
    found = dhcpv6_reply(dhcpv6_request(kind, *options))
    assert found is not None
    raw, packet, reply = found
    assert (packet.dst, packet.src, reply.type, reply.transaction) == (LINK_LOCAL, OURS6, answer, b"abc")
    association = dhcpv6.IdentityAssociation.parse(dhcpv6.IA_NA, reply.option(dhcpv6.IA_NA) or b"")
    assert association.iaid == b"iaid"
    assert association.addresses() == (dhcpv6.IaAddress(ADDRESS6, dhcpv6.INFINITE, dhcpv6.INFINITE),)
    assert reply.option(dhcpv6.CLIENT_IDENTIFIER) == CLIENT
    assert reply.option(dhcpv6.DNS_SERVERS) == CONFIG.dns6[0]
    shown = Ether(raw)
    assert shown.haslayer(DHCP6_Advertise if answer == dhcpv6.ADVERTISE else DHCP6_Reply)
    assert shown[DHCP6OptIAAddress].addr == "2001:db8::10"


def test_D7_search_domains_are_ended_one_by_one() -> None:
    found = dhcpv6_reply(dhcpv6_request(dhcpv6.INFORMATION_REQUEST))
    assert found is not None
    assert domain.parse_list(found[2].option(dhcpv6.DOMAIN_LIST) or b"") == CONFIG.search


def test_the_name_is_told_to_who_asks_for_it() -> None:
    found = dhcpv6_reply(dhcpv6_request(dhcpv6.SOLICIT, IA, (dhcpv6.CLIENT_FQDN, b"\0")))
    assert found is not None
    assert found[2].option(dhcpv6.CLIENT_FQDN) == bytes([dhcpv6.FQDN_N]) + domain.emit("box.example.org")


@pytest.mark.parametrize(
    ("address", "status"), [(ADDRESS6, dhcpv6.SUCCESS), (bytes.fromhex("fd00" + "00" * 14), dhcpv6.NOT_ON_LINK)]
)
def test_confirm_tells_whether_an_address_is_on_link(address: bytes, status: int) -> None:
    inside = (dhcpv6.IA_ADDRESS, dhcpv6.IaAddress(address, 1, 1).emit())
    asked = dhcpv6.IdentityAssociation(dhcpv6.IA_NA, b"iaid", options=(inside,)).emit()
    found = dhcpv6_reply(dhcpv6_request(dhcpv6.CONFIRM, (dhcpv6.IA_NA, asked)))
    assert found is not None
    assert (found[2].option(dhcpv6.STATUS_CODE) or b"")[:2] == struct.pack(">H", status)


def test_what_is_for_another_server_or_without_identity_is_ignored() -> None:
    other = (dhcpv6.SERVER_IDENTIFIER, b"\0\3\0\1other!")
    for kind in (dhcpv6.REQUEST, dhcpv6.RENEW, dhcpv6.RELEASE, dhcpv6.DECLINE):
        assert dhcpv6_reply(dhcpv6_request(kind, IA, other)) is None
        assert dhcpv6_reply(dhcpv6_request(kind, IA)) is None
    assert dhcpv6_reply(dhcpv6_request(dhcpv6.SOLICIT, IA, SERVER)) is None
    assert dhcpv6_reply(dhcpv6_request(dhcpv6.CONFIRM)) is None


def test_prefixes_temporary_and_further_addresses_are_not_to_be_had() -> None:
    temporary = (dhcpv6.IA_TA, b"temp")
    prefix = (dhcpv6.IA_PD, b"pref" + bytes(8))
    found = dhcpv6_reply(dhcpv6_request(dhcpv6.SOLICIT, IA, IA, temporary, prefix))
    assert found is not None
    kinds = [code for code, _ in found[2].options]
    assert kinds.count(dhcpv6.IA_NA) == 2
    given_ = [value for code, value in found[2].options if code == dhcpv6.IA_NA]
    assert not dhcpv6.IdentityAssociation.parse(dhcpv6.IA_NA, given_[1]).addresses()


# Hostile guests

SEEDS = [
    who_has(GATEWAY4),
    solicit(OURS6),
    over_ipv6(ndp.RouterSolicitation().emit()),
    dhcp_request(dhcp.DISCOVER),
    dhcp_request(dhcp.REQUEST, (dhcp.REQUESTED_ADDRESS, ADDRESS4), (dhcp.CLIENT_FQDN, b"\4\0\0\3box\0")),
    dhcpv6_request(dhcpv6.SOLICIT, IA, (dhcpv6.CLIENT_FQDN, b"\0")),
    dhcpv6_request(dhcpv6.RENEW, IA, SERVER),
]


def check(frame: bytes) -> None:
    replies = responder().on_frame(frame, 0)
    assert len(replies) <= 1
    assert all(len(reply) <= 1514 for reply in replies)


@settings(max_examples=500)
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 600),
)
def test_a_mutated_frame_is_answered_or_dropped(frame: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(frame)
    for at, value in changes:
        data[at % len(data)] = value
    check(bytes(data[:cut]) if cut < 300 else bytes(data))


@given(st.binary(max_size=300))
def test_any_bytes_are_answered_or_dropped(data: bytes) -> None:
    check(data)


# Discovery


def test_D18_a_silent_guest_is_asked_for_until_it_is_heard() -> None:
    silent = responder(CONFIG._replace(ra=False))
    assert silent.next_timeout() is None
    silent.discovery.begin()
    now, asked = 1, []
    while now < 10 * SECOND_NS:
        frames = silent.on_timeout(now)
        asked.append(now)
        request = arp.Arp.parse(ethernet.Ethernet.parse(frames[0]).payload)
        assert (request.operation, request.sender, request.target) == (arp.REQUEST, GATEWAY4, ADDRESS4)
        assert Ether(frames[1])["ICMPv6ND_NS"].tgt == "2001:db8::10"
        assert Ether(frames[1]).dst == "33:33:ff:00:00:10"
        at = silent.next_timeout()
        assert at is not None
        assert at > now
        assert silent.on_timeout(at - 1) == []
        now = at
    assert 6 <= len(asked) <= 10
    answer = arp.Arp(arp.REPLY, GUEST, ADDRESS4, OURS, GATEWAY4).emit()
    silent.on_frame(ethernet.Ethernet(OURS, GUEST, ethernet.ETHERTYPE_ARP, answer).emit(), now)
    assert silent.next_timeout() is None
    assert silent.on_timeout(now + 100 * SECOND_NS) == []


def test_D18_nobody_is_asked_for_without_an_address() -> None:
    silent = responder(CONFIG._replace(ra=False, v4=False, address6=b""))
    silent.discovery.begin()
    assert silent.on_timeout(1) == []
