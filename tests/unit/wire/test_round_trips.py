"""Every format: what `emit` wrote `parse` returns; a message cut off anywhere, or noise, raises WireError alone."""

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucatini.errors import Malformed, Truncated, WireError
from bucatini.wire import arp, dhcp, dhcpv6, domain, ethernet, icmp, ipv4, ipv6, ndp, summary, tcp, udp

A4, B4 = bytes([192, 0, 2, 1]), bytes([192, 0, 2, 2])
A6, B6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "02")

mac = st.binary(min_size=6, max_size=6)
four = st.binary(min_size=4, max_size=4)
six = st.binary(min_size=16, max_size=16)
unicast6 = six.filter(lambda address: address[0] != 0xFF)
byte, word, long = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
some = st.binary(max_size=64)
names = st.lists(
    st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=".\\"), min_size=1, max_size=63),
    min_size=1,
    max_size=3,
).map(".".join)

ethernet_frames = st.builds(
    ethernet.Ethernet,
    mac,
    mac,
    st.integers(ethernet.ETHERTYPE_MIN, 0xFFFF).filter(lambda kind: kind not in {0x8100, 0x88A8}),
    some,
)
arps = st.builds(arp.Arp, word, mac, four, mac, four)
ipv4_packets = st.builds(
    ipv4.IPv4,
    four, four, byte, some, byte, byte, word, st.booleans(), st.booleans(),
    st.integers(0, 0x1FFF).map(lambda units: units * 8),
    st.integers(0, 10).flatmap(lambda words: st.binary(min_size=4 * words, max_size=4 * words)),
)  # fmt: skip
ipv6_packets = st.builds(ipv6.IPv6, six, six, byte, some, byte, byte, st.integers(0, 0xFFFFF))
eights = st.integers(0, 4).flatmap(lambda units: st.binary(min_size=8 * units + 6, max_size=8 * units + 6))
extensions = st.builds(ipv6.Extension, byte, eights)
fragments = st.builds(ipv6.Fragment, byte, st.integers(0, 0x1FFF).map(lambda n: n * 8), st.booleans(), long, some)
udps = st.builds(udp.Udp, word, word, some)
tcp_options = st.lists(
    st.one_of(
        st.just((tcp.OPTION_NOP, b"")),
        st.tuples(st.integers(2, 255), st.binary(max_size=6)),
    ),
    max_size=4,
).map(tuple)
tcps = st.builds(tcp.Tcp, word, word, long, long, byte, word, some, word, tcp_options)
icmps = st.builds(icmp.Icmp, byte, byte, long, some)
dhcps = st.builds(
    dhcp.Dhcp,
    st.sampled_from([dhcp.BOOTREQUEST, dhcp.BOOTREPLY]), long, six, byte, st.integers(0, 16), byte, word, word,
    four, four, four, four, st.binary(min_size=64, max_size=64), st.binary(min_size=128, max_size=128),
    st.lists(
        st.tuples(st.integers(1, 254).filter(lambda code: code != dhcp.OVERLOAD), st.binary(max_size=600)),
        max_size=4,
        unique_by=lambda option: option[0],
    ).map(tuple),
)  # fmt: skip
v6_options = st.lists(st.tuples(word, some), max_size=4).map(tuple)
dhcpv6s = st.builds(dhcpv6.Dhcpv6, st.integers(1, 11), st.binary(min_size=3, max_size=3), v6_options)
ia_addresses = st.builds(dhcpv6.IaAddress, six, long, long, v6_options)
nd_options = st.lists(
    st.one_of(
        st.builds(ndp.LinkLayerAddress, st.sampled_from([1, 2]), mac),
        st.builds(ndp.PrefixInformation, six, st.integers(0, 128), st.booleans(), st.booleans(), long, long),
        st.builds(ndp.Mtu, long),
        st.builds(ndp.Rdnss, long, st.lists(six, min_size=1, max_size=3).map(tuple)),
        st.builds(ndp.Dnssl, long, st.lists(names, min_size=1, max_size=3).map(tuple)),
        st.builds(ndp.RawOption, st.sampled_from([4, 6, 200]), eights),
    ),
    max_size=4,
).map(tuple)
flag = st.booleans()
nd_messages = st.one_of(
    st.builds(ndp.RouterSolicitation, nd_options),
    st.builds(ndp.RouterAdvertisement, byte, flag, flag, word, long, long, nd_options),
    st.builds(ndp.NeighborSolicitation, unicast6, nd_options),
    st.builds(ndp.NeighborAdvertisement, unicast6, flag, flag, flag, nd_options),
)

PLAIN: list[tuple[Any, Any]] = [
    (ethernet.Ethernet, ethernet_frames),
    (arp.Arp, arps),
    (ipv4.IPv4, ipv4_packets),
    (ipv6.IPv6, ipv6_packets),
    (ipv6.Extension, extensions),
    (ipv6.Fragment, fragments),
    (icmp.Icmp, icmps),
    (dhcp.Dhcp, dhcps),
    (dhcpv6.Dhcpv6, dhcpv6s),
    (dhcpv6.IaAddress, ia_addresses),
]


@pytest.mark.parametrize(("format_", "values"), PLAIN, ids=lambda item: getattr(item, "__name__", ""))
@given(data=st.data())
def test_what_emit_wrote_parse_returns(format_: Any, values: Any, data: st.DataObject) -> None:
    message = data.draw(values)
    assert format_.parse(message.emit()) == message
    assert isinstance(str(message), str)


@given(udps, st.sampled_from([(A4, B4), (A6, B6)]))
def test_udp(message: udp.Udp, ends: tuple[bytes, bytes]) -> None:
    data = message.emit(*ends)
    assert udp.Udp.parse(data, *ends) == message == udp.Udp.parse(data)
    assert udp.Udp.parse(data + b"padding", *ends) == message


@given(tcps, st.sampled_from([(A4, B4), (A6, B6)]))
def test_tcp(message: tcp.Tcp, ends: tuple[bytes, bytes]) -> None:
    data = message.emit(*ends)
    assert tcp.Tcp.parse(data, *ends) == message == tcp.Tcp.parse(data)
    assert str(message)


@given(icmps)
def test_icmpv6(message: icmp.Icmp) -> None:
    assert icmp.Icmp.parse(message.emit(A6, B6), A6, B6) == message


@given(st.sampled_from([4, 6]), st.booleans(), word, word, some)
def test_echo(version: int, reply: bool, identifier: int, sequence: int, data: bytes) -> None:
    echo = icmp.Echo(version, reply, identifier, sequence, data)
    assert icmp.Echo.parse(echo.emit(), version) == echo


@given(nd_messages)
def test_neighbour_discovery(message: Any) -> None:
    assert type(message).parse(icmp.Icmp.parse(message.emit().emit(A6, B6), A6, B6)) == message
    assert str(message)


@given(st.sampled_from([dhcpv6.IA_NA, dhcpv6.IA_TA, dhcpv6.IA_PD]), four, long, long, v6_options)
def test_identity_association(kind: int, iaid: bytes, t1: int, t2: int, options: dhcpv6.Options) -> None:
    times = (0, 0) if kind == dhcpv6.IA_TA else (t1, t2)
    association = dhcpv6.IdentityAssociation(kind, iaid, *times, options)
    assert dhcpv6.IdentityAssociation.parse(kind, association.emit()) == association


@given(st.lists(names, max_size=5).map(tuple))
def test_domain_names(list_: tuple[str, ...]) -> None:
    assert domain.parse_list(domain.emit_list(list_)) == list_
    compressed = domain.emit_compressed(list_)
    assert domain.parse_list(compressed, compressed=True) == list_
    assert len(compressed) <= len(domain.emit_list(list_))


@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=3))
def test_labels_of_any_bytes_survive_as_text(labels: list[bytes]) -> None:
    data = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    assert domain.emit(domain.parse(data)) == data


@pytest.mark.parametrize("name", ["", "a", "a\\\\", "a\\.", "a.b\\\\\\\\", "a\\\\\\."])
def test_the_dot_of_the_root_makes_no_difference(name: str) -> None:
    assert domain.emit(name + ".") == domain.emit(name)


# Complete messages, whose every front is one that ends too early
WHOLE: dict[str, tuple[Callable[[bytes], Any], bytes]] = {
    "ethernet": (ethernet.Ethernet.parse, ethernet.Ethernet(bytes(6), bytes(6), 0x800, b"").emit()),
    "arp": (arp.Arp.parse, arp.Arp(1, bytes(6), A4, bytes(6), B4).emit()),
    "ipv4": (ipv4.IPv4.parse, ipv4.IPv4(A4, B4, 17, b"payload", options=bytes(8)).emit()),
    "ipv6": (ipv6.IPv6.parse, ipv6.IPv6(A6, B6, 17, b"payload").emit()),
    "extension": (ipv6.Extension.parse, ipv6.Extension(17, bytes(14)).emit()),
    "fragment": (ipv6.Fragment.parse, ipv6.Fragment(17, 8, True, 1, b"").emit()),
    "udp": (udp.Udp.parse, udp.Udp(1, 2, b"payload").emit(A4, B4)),
    "tcp": (tcp.Tcp.parse, tcp.Tcp(1, 2, 3, 4, 16, 5, options=((2, b"\x05\xb4"),)).emit(A4, B4)),
    "icmp": (icmp.Icmp.parse, icmp.Icmp(8, 0, 1, b"").emit()),
    "name": (domain.parse, domain.emit("a.example")),
}


@pytest.mark.parametrize("name", WHOLE)
def test_every_front_of_a_message_is_truncated(name: str) -> None:
    parse, data = WHOLE[name]
    parse(data)
    for size in range(len(data)):
        with pytest.raises(Truncated):
            parse(data[:size])


PARSERS: dict[str, Callable[[bytes], Any]] = {
    **{name: parse for name, (parse, _) in WHOLE.items()},
    "dhcp": dhcp.Dhcp.parse,
    "dhcp with a cookie": lambda data: dhcp.Dhcp.parse(b"\x01\x01\x06" + bytes(233) + dhcp.COOKIE + data),
    "dhcpv6": dhcpv6.Dhcpv6.parse,
    "identity association": lambda data: dhcpv6.IdentityAssociation.parse(dhcpv6.IA_NA, data).addresses(),
    "names": domain.parse_list,
    "compressed names": lambda data: domain.parse_list(data, compressed=True),
    "nd options": ndp.parse_options,
    "router solicitation": lambda data: ndp.RouterSolicitation.parse(icmp.Icmp(133, 0, 0, data)),
    "router advertisement": lambda data: ndp.RouterAdvertisement.parse(icmp.Icmp(134, 0, 0, data)),
    "neighbour solicitation": lambda data: ndp.NeighborSolicitation.parse(icmp.Icmp(135, 0, 0, data)),
    "neighbour advertisement": lambda data: ndp.NeighborAdvertisement.parse(icmp.Icmp(136, 0, 0, data)),
    "upper layer": lambda data: ipv6.upper_layer(ipv6.IPv6(A6, B6, 0, data)),
}


@pytest.mark.parametrize("name", PARSERS)
@given(data=st.binary(max_size=400))
def test_noise_raises_nothing_but_wire_errors(name: str, data: bytes) -> None:
    with contextlib.suppress(WireError):
        str(PARSERS[name](data))


@given(st.binary(max_size=200), st.sampled_from([b"\x08\x00\x45", b"\x86\xdd\x60", b"\x08\x06", b""]))
def test_a_summary_never_raises(data: bytes, kind: bytes) -> None:
    line = summary.summarise(bytes(12) + kind + data)
    assert line
    assert "\n" not in line


def test_pointers_in_circles_end() -> None:
    for data in (b"\xc0\x00", b"\x01a\xc0\x00", b"\xc0\x02\xc0\x00"):
        with pytest.raises(Malformed):
            domain.parse_at(data, len(data) - 2, compressed=True)


def test_a_chain_of_extension_headers_has_an_end() -> None:
    header = bytes([0, 0, 1, 4, 0, 0, 0, 0])
    with pytest.raises(Malformed):
        ipv6.upper_layer(ipv6.IPv6(A6, B6, ipv6.HOP_BY_HOP, header * 64))


def test_a_source_route_is_refused() -> None:
    with pytest.raises(Malformed, match="segments left"):
        ipv6.upper_layer(ipv6.IPv6(A6, B6, ipv6.ROUTING, bytes([17, 0, 0, 1, 0, 0, 0, 0])))


@pytest.mark.parametrize("position", range(6))
def test_arp_of_other_networks_is_malformed(position: int) -> None:
    data = bytearray(arp.Arp(1, bytes(6), A4, bytes(6), B4).emit())
    data[position] ^= 2
    with pytest.raises(Malformed):
        arp.Arp.parse(bytes(data))


@pytest.mark.parametrize("bit", range(8 * 30))
def test_a_flipped_bit_of_a_datagram_is_seen(bit: int) -> None:
    data = bytearray(udp.Udp(1000, 2000, bytes(range(22))).emit(A6, B6))
    data[bit // 8] ^= 1 << bit % 8
    with pytest.raises(WireError):
        udp.Udp.parse(bytes(data), A6, B6)
