"""The formats beside scapy's: what it builds we parse, what we emit it takes apart the same way."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers import dhcp as scapy_dhcp
from scapy.layers import dhcp6, inet, inet6, l2
from scapy.packet import Raw

from bucatini.wire import arp, dhcp, dhcpv6, ethernet, icmp, ipv4, ipv6, ndp, tcp, udp

A4, B4 = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
PACKED = {A4: bytes([192, 0, 2, 1]), B4: bytes([192, 0, 2, 2])}
PACKED |= {A6: bytes.fromhex("20010db8" + "00" * 11 + "01"), B6: bytes.fromhex("20010db8" + "00" * 11 + "02")}
MAC = "02:00:00:00:00:01"

word, long = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
data = st.binary(min_size=1, max_size=100)


def ip(version: int) -> Any:
    return inet.IP(src=A4, dst=B4) if version == 4 else inet6.IPv6(src=A6, dst=B6)


def ends(version: int) -> tuple[bytes, bytes]:
    return (PACKED[A4], PACKED[B4]) if version == 4 else (PACKED[A6], PACKED[B6])


def payload(version: int, packet: Any) -> bytes:
    if version == 4:
        return ipv4.IPv4.parse(bytes(packet)).payload
    return ipv6.IPv6.parse(bytes(packet)).payload


@pytest.mark.parametrize("version", [4, 6])
@given(word, word, data)
def test_udp(version: int, sport: int, dport: int, body: bytes) -> None:
    built = payload(version, ip(version) / inet.UDP(sport=sport, dport=dport) / Raw(body))
    assert udp.Udp.parse(built, *ends(version)) == udp.Udp(sport, dport, body)
    assert udp.Udp(sport, dport, body).emit(*ends(version)) == built


@pytest.mark.parametrize("version", [4, 6])
@given(word, word, long, long, st.integers(0, 255), word, data)
def test_tcp(version: int, sport: int, dport: int, seq: int, ack: int, flags: int, window: int, body: bytes) -> None:
    segment = inet.TCP(
        sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window,
        options=[("MSS", 1460), ("NOP", None), ("WScale", 7)],
    )  # fmt: skip
    built = payload(version, ip(version) / segment / Raw(body))
    ours = tcp.Tcp.parse(built, *ends(version))
    options = ((tcp.OPTION_MSS, b"\x05\xb4"), (tcp.OPTION_NOP, b""), (tcp.OPTION_WINDOW_SCALE, b"\x07"))
    assert ours == tcp.Tcp(sport, dport, seq, ack, flags, window, body, 0, options)
    assert ours.emit(*ends(version)) == built


@given(word, word, data)
def test_echo(identifier: int, sequence: int, body: bytes) -> None:
    built = payload(4, ip(4) / inet.ICMP(type=8, id=identifier, seq=sequence) / Raw(body))
    assert icmp.Echo(4, False, identifier, sequence, body).emit().emit() == built
    built = payload(6, ip(6) / inet6.ICMPv6EchoReply(id=identifier, seq=sequence, data=body))
    assert icmp.Echo(6, True, identifier, sequence, body).emit().emit(*ends(6)) == built


@given(word, st.booleans(), st.integers(0, 100), data)
def test_fragments(identification: int, more: bool, units: int, body: bytes) -> None:
    built = bytes(inet.IP(src=A4, dst=B4, proto=17, id=identification, flags=int(more), frag=units) / Raw(body))
    ours = ipv4.IPv4.parse(built)
    assert (ours.identification, ours.more_fragments, ours.offset, ours.payload) == (
        identification,
        more,
        units * 8,
        body,
    )
    assert ours.emit() == built
    header = inet6.IPv6ExtHdrFragment(nh=17, offset=units, m=int(more), id=identification)
    built = payload(6, ip(6) / header / Raw(body))
    six = ipv6.Fragment.parse(built)
    assert six == ipv6.Fragment(17, units * 8, more, identification, body)
    assert six.emit() == built


def test_arp() -> None:
    built = l2.Ether(src=MAC, dst="ff:ff:ff:ff:ff:ff") / l2.ARP(hwsrc=MAC, psrc=A4, pdst=B4)
    frame = ethernet.Ethernet.parse(bytes(built))
    message = arp.Arp.parse(frame.payload)
    assert frame.ethertype == ethernet.ETHERTYPE_ARP
    assert message == arp.Arp(arp.REQUEST, bytes.fromhex(MAC.replace(":", "")), PACKED[A4], bytes(6), PACKED[B4])
    assert message.emit() == bytes(built[l2.ARP])


def test_dhcp() -> None:
    options = [("message-type", "discover"), ("requested_addr", A4), ("param_req_list", [1, 3, 6]), "end"]
    bootp = scapy_dhcp.BOOTP(op=1, xid=0x1234, chaddr=bytes(6), flags="B")
    ours = dhcp.Dhcp.parse(bytes(bootp / scapy_dhcp.DHCP(options=options)))
    assert ours.message_type == dhcp.DISCOVER
    assert ours.address(dhcp.REQUESTED_ADDRESS) == PACKED[A4]
    assert ours.option(dhcp.PARAMETER_REQUEST_LIST) == bytes([1, 3, 6])
    assert ours.flags == dhcp.BROADCAST_FLAG
    reply = dhcp.Dhcp(
        dhcp.BOOTREPLY, 7, bytes(16), yiaddr=PACKED[A4],
        options=((dhcp.MESSAGE_TYPE, bytes([dhcp.OFFER])), (dhcp.ROUTER, PACKED[B4])),
    )  # fmt: skip
    theirs = scapy_dhcp.BOOTP(reply.emit())
    assert (theirs.op, theirs.xid, theirs.yiaddr) == (2, 7, A4)
    assert theirs[scapy_dhcp.DHCP].options[:2] == [("message-type", 2), ("router", B4)]


def test_dhcpv6() -> None:
    solicit = dhcp6.DHCP6_Solicit(trid=0x010203) / dhcp6.DHCP6OptClientId(duid=dhcp6.DUID_LL(lladdr=MAC))
    solicit /= dhcp6.DHCP6OptOptReq(reqopts=[23, 24]) / dhcp6.DHCP6OptIA_NA(iaid=5) / dhcp6.DHCP6OptRapidCommit()
    ours = dhcpv6.Dhcpv6.parse(bytes(solicit))
    assert (ours.type, ours.transaction) == (dhcpv6.SOLICIT, b"\1\2\3")
    assert ours.option(dhcpv6.CLIENT_IDENTIFIER) == dhcpv6.duid_ll(bytes.fromhex(MAC.replace(":", "")))
    assert ours.requested(dhcpv6.DNS_SERVERS)
    assert not ours.requested(dhcpv6.CLIENT_FQDN)
    assert ours.emit() == bytes(solicit)


def test_router_advertisement() -> None:
    options = (
        ndp.PrefixInformation(PACKED[A6][:8] + bytes(8), 64, on_link=True, autonomous=True),
        ndp.Mtu(65520),
        ndp.Rdnss(600, (PACKED[A6],)),
        ndp.Dnssl(600, ("example.org",)),
        ndp.LinkLayerAddress(ndp.OPTION_SOURCE_LINK_LAYER, bytes.fromhex(MAC.replace(":", ""))),
    )
    message = ndp.RouterAdvertisement(64, True, False, 1800, options=options)
    theirs = inet6.ICMPv6ND_RA(message.emit().emit(*ends(6)))
    assert (theirs.chlim, theirs.M, theirs.O, theirs.routerlifetime) == (64, 1, 0, 1800)
    prefix = theirs[inet6.ICMPv6NDOptPrefixInfo]
    assert (prefix.prefix, prefix.prefixlen, prefix.L, prefix.A) == ("2001:db8::", 64, 1, 1)
    assert theirs[inet6.ICMPv6NDOptMTU].mtu == 65520
    assert theirs[inet6.ICMPv6NDOptRDNSS].dns == [A6]
    assert theirs[inet6.ICMPv6NDOptDNSSL].searchlist == ["example.org."]
    assert theirs[inet6.ICMPv6NDOptSrcLLAddr].lladdr == MAC
