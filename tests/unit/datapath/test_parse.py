"""The compiled parser: what it accepts, what it refuses and by which counter, and that it agrees with `wire/`."""

from bucatini.datapath.counters import names
from bucatini.datapath.parse import parse_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from bucatini.errors import WireError
from bucatini.wire.ethernet import Ethernet
from bucatini.wire.ipv4 import IPv4
from bucatini.wire.ipv6 import IPv6
from bucatini.wire.tcp import Tcp
from bucatini.wire.udp import Udp

TCP, UDP, ECHO, SLOW, FRAGMENT = range(5)
MAC = bytes(6)
SRC4, DST4 = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2])
SRC6, DST6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "02")


def mapped(address: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + address if len(address) == 4 else address


def frame(packet: bytes, ethertype: int = 0x0800) -> bytes:
    return Ethernet(MAC, b"\x02" + MAC[1:], ethertype, packet).emit()


def udp4(payload: bytes = b"hello", sport: int = 1234, dport: int = 53, **fields: object) -> bytes:
    return frame(IPv4(SRC4, DST4, 17, Udp(sport, dport, payload).emit(SRC4, DST4), **fields).emit())  # type: ignore[arg-type]


def udp6(payload: bytes = b"hello") -> bytes:
    return frame(IPv6(SRC6, DST6, 17, Udp(1234, 53, payload).emit(SRC6, DST6)).emit(), 0x86DD)


def counter(result: object) -> str:
    assert isinstance(result, int), result
    return str(names()[result])


def test_a_datagram_is_taken_apart() -> None:
    for data, src, dst in ((udp4(), SRC4, DST4), (udp6(), SRC6, DST6)):
        found = parse_bytes(data)
        assert found["kind"] == UDP
        assert (found["src"], found["dst"]) == (mapped(src), mapped(dst))
        assert (found["sport"], found["dport"], found["payload"]) == (1234, 53, b"hello")


def test_padding_behind_the_packet_is_not_payload() -> None:
    assert parse_bytes(udp4() + bytes(30))["payload"] == b"hello"
    assert parse_bytes(udp6() + bytes(30))["payload"] == b"hello"


def test_L15_every_truncation_is_refused() -> None:
    for data in (udp4(), udp6()):
        for length in range(len(data)):
            assert counter(parse_bytes(data[:length])).startswith("drop_")


def test_a_wrong_checksum_is_refused_unless_it_was_left_to_offload() -> None:
    data = bytearray(udp4())
    data[-1] ^= 1
    assert counter(parse_bytes(bytes(data))) == "drop_l4_checksum"
    assert parse_bytes(bytes(data), vnet_flags=1)["kind"] == UDP
    data = bytearray(udp4())
    data[24] ^= 1
    assert counter(parse_bytes(bytes(data))) == "drop_ip_checksum"


def test_T29_port_zero_is_refused() -> None:
    assert counter(parse_bytes(udp4(sport=0))) == "drop_port_zero"
    assert counter(parse_bytes(udp4(dport=0))) == "drop_port_zero"


def test_services_go_to_the_slow_path() -> None:
    assert parse_bytes(udp4(sport=68, dport=67))["kind"] == SLOW
    assert parse_bytes(frame(bytes(28), 0x0806))["kind"] == SLOW


def test_other_ethertypes_and_vlan_tags_are_refused() -> None:
    for ethertype in (0x8100, 0x88A8, 0x0800 + 1, 0x05DC):
        assert counter(parse_bytes(frame(bytes(60), ethertype))) == "drop_ethertype"


def test_impossible_sources_are_refused() -> None:
    for source in (bytes([127, 0, 0, 1]), bytes([224, 0, 0, 1]), b"\xff" * 4):
        packet = IPv4(source, DST4, 17, Udp(1, 2, b"").emit(source, DST4)).emit()
        assert counter(parse_bytes(frame(packet))) == "drop_ip_address"
    for source in (bytes(15) + b"\x01", b"\xff\x02" + bytes(14), mapped(SRC4)):
        packet = IPv6(source, DST6, 17, Udp(1, 2, b"").emit(source, DST6)).emit()
        assert counter(parse_bytes(frame(packet, 0x86DD))) == "drop_ip_address"


def test_a_fragment_is_recognised() -> None:
    first = parse_bytes(frame(IPv4(SRC4, DST4, 17, bytes(24), more_fragments=True, identification=7).emit()))
    assert (first["kind"], first["id"], first["offset"], first["more"]) == (FRAGMENT, 7, 0, True)
    last = parse_bytes(frame(IPv4(SRC4, DST4, 17, bytes(9), offset=24, identification=7).emit()))
    assert (last["kind"], last["offset"], last["more"], last["data"]) == (FRAGMENT, 24, False, bytes(9))
    six = bytes([17, 0]) + (24 | 1).to_bytes(2, "big") + (9).to_bytes(4, "big") + bytes(16)
    found = parse_bytes(frame(IPv6(SRC6, DST6, 44, six).emit(), 0x86DD))
    assert (found["kind"], found["id"], found["offset"], found["more"]) == (FRAGMENT, 9, 24, True)


def test_extension_headers_are_walked_within_bounds() -> None:
    inner = Udp(5, 6, b"x").emit(SRC6, DST6)
    for count in range(8):
        chain = (bytes([60, 0]) + bytes(6)) * (count - 1) + bytes([17, 0]) + bytes(6) if count else b""
        packet = IPv6(SRC6, DST6, 60 if count else 17, chain + inner).emit()
        assert parse_bytes(frame(packet, 0x86DD))["kind"] == UDP
    chain = (bytes([60, 0]) + bytes(6)) * 20
    assert counter(parse_bytes(frame(IPv6(SRC6, DST6, 60, chain).emit(), 0x86DD))) == "drop_extension"
    assert counter(parse_bytes(frame(IPv6(SRC6, DST6, 60, bytes([17, 9])).emit(), 0x86DD))) == "drop_extension"


def test_a_superframe_without_a_size_is_refused() -> None:
    assert counter(parse_bytes(udp4(), gso_type=5, gso_size=0)) == "drop_oversize"


def test_a_superframe_has_as_many_datagrams_as_a_kernel_makes_at_most() -> None:
    assert parse_bytes(udp4(bytes(1280)), gso_type=5, gso_size=10)["kind"] == UDP
    assert counter(parse_bytes(udp4(bytes(1281)), gso_type=5, gso_size=10)) == "drop_oversize"


@settings(max_examples=400)
@given(st.binary(max_size=200), st.sampled_from([0x0800, 0x86DD, 0x0806]), st.booleans())
def test_L15_any_bytes_are_parsed_or_counted(data: bytes, ethertype: int, offloaded: bool) -> None:
    result = parse_bytes(frame(data, ethertype), vnet_flags=int(offloaded))
    assert isinstance(result, dict) or counter(result).startswith("drop_")


@settings(max_examples=300)
@given(st.binary(max_size=60), st.integers(0, 79), st.integers(0, 255), st.booleans())
def test_the_compiled_parser_agrees_with_the_reference(payload: bytes, at: int, value: int, six: bool) -> None:
    """A mutated frame is accepted by both or by neither, and means the same to both."""
    data = bytearray(udp6(payload) if six else udp4(payload))
    if at < len(data):
        data[at] = value
    result = parse_bytes(bytes(data))
    try:
        outer = Ethernet.parse(bytes(data))
        packet = IPv6.parse(outer.payload) if outer.ethertype == 0x86DD else IPv4.parse(outer.payload)
        protocol = packet.next_header if isinstance(packet, IPv6) else packet.protocol
        above = (Udp if protocol == 17 else Tcp).parse(packet.payload, packet.src, packet.dst)
    except WireError:
        assert isinstance(result, int)
        return
    if isinstance(result, dict) and result["kind"] in (TCP, UDP):
        assert result["src"] == mapped(packet.src)
        assert (result["sport"], result["dport"], result["payload"]) == (above.sport, above.dport, above.payload)
