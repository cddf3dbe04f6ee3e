"""Target: the compiled parser against `wire/`; and what the compiled targets (`native.pyx`, `tcp.pyx`) begin with."""

import fuzz_native
from bucatini.datapath.parse import parse_bytes

from bucatini.errors import WireError
from bucatini.wire import icmp, tcp
from bucatini.wire.ethernet import ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet
from bucatini.wire.ipv4 import IPv4
from bucatini.wire.ipv6 import FRAGMENT, Fragment, IPv6, UpperLayer, upper_layer
from bucatini.wire.tcp import Tcp
from bucatini.wire.udp import Udp

KIND_TCP, KIND_UDP, KIND_ECHO, KIND_SLOW, KIND_FRAGMENT = range(5)
MAC = b"\x02\0\0\0\0\1"
A4, B4 = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 2])
A6, B6 = bytes.fromhex("20010db8" + "00" * 11 + "01"), bytes.fromhex("20010db8" + "00" * 11 + "02")


def mapped(address: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + address if len(address) == 4 else address


def fuzz_reference(data: bytes) -> None:
    """Bits, offload and frame as `fuzz_native.frame` takes them: accepted by both or neither, and it means the same."""
    if len(data) < 4:
        return
    frame = fuzz_native.completed(data[4:]) if data[0] & 2 else data[4:]
    found = parse_bytes(frame)
    try:
        outer = Ethernet.parse(frame)
        if outer.ethertype == ETHERTYPE_ARP:
            assert found == {"kind": KIND_SLOW, "version": 0}
            return
        if outer.ethertype == ETHERTYPE_IPV4:
            packet4 = IPv4.parse(outer.payload)
            src, dst, ttl, tos = packet4.src, packet4.dst, packet4.ttl, packet4.tos
            upper = UpperLayer(packet4.protocol, packet4.payload, ())
            part = Fragment(
                packet4.protocol, packet4.offset, packet4.more_fragments, packet4.identification, packet4.payload
            )
            fragmented = packet4.is_fragment
        elif outer.ethertype == ETHERTYPE_IPV6:
            packet6 = IPv6.parse(outer.payload)
            src, dst, ttl, tos = packet6.src, packet6.dst, packet6.hop_limit, packet6.traffic_class
            upper = upper_layer(packet6)
            fragmented = upper.protocol == FRAGMENT
            part = Fragment.parse(upper.payload) if fragmented else Fragment(0, 0, False, 0, b"")
        else:
            raise WireError
        if not fragmented:
            version = 4 if len(src) == 4 else 6
            above = _above(upper, src, dst, version)
    except WireError:
        assert isinstance(found, int), "accepted what the reference refuses"
        return
    if isinstance(found, int):
        assert _refused(src, dst, fragmented, None if fragmented else above, upper), "refused without a reason"
        return
    assert (found["src"], found["dst"], found["ttl"], found["tos"]) == (mapped(src), mapped(dst), ttl, tos)
    assert (found["kind"] == KIND_FRAGMENT) == fragmented
    if fragmented:
        assert part == (found["protocol"], found["offset"], found["more"], found["id"], found["data"])
        return
    assert found["protocol"] == upper.protocol
    if isinstance(above, icmp.Icmp):
        assert found["payload"] == above.body
        assert (found["sport"], found["dport"]) == (above.rest >> 16, above.rest & 0xFFFF)
        return
    assert above is not None
    assert (found["sport"], found["dport"], found["payload"]) == (above.sport, above.dport, above.payload)
    if isinstance(above, Tcp):
        assert (found["seq"], found["ack"], found["flags"], found["window"]) == above[2:6]


def _above(upper: UpperLayer, src: bytes, dst: bytes, version: int) -> Tcp | Udp | icmp.Icmp | None:
    """What the packet carries, None: a protocol that is not served."""
    if upper.protocol == 6:
        try:
            return Tcp.parse(upper.payload, src, dst)
        except WireError:
            # The packet path takes the options as they are, and reads them up to the fault
            header = (upper.payload[12] >> 4) * 4 if len(upper.payload) > 12 else 0
            if not 20 <= header <= len(upper.payload):
                raise
            blank = b"\1" * (header - 20)
            if tcp.checksum.transport(src, dst, 6, upper.payload):
                raise
            return Tcp.parse(upper.payload[:20] + blank + upper.payload[header:])
    if upper.protocol == 17:
        return Udp.parse(upper.payload, src, dst)
    if upper.protocol == (1 if version == 4 else 58):
        return icmp.Icmp.parse(upper.payload, *((src, dst) if version == 6 else ()))
    return None


def _refused(src: bytes, dst: bytes, fragmented: bool, above: Tcp | Udp | icmp.Icmp | None, upper: UpperLayer) -> bool:
    """Whether there is a reason to refuse what is well formed."""
    if len(src) == 4 and (src[0] == 127 or src[0] >> 4 == 14 or src == b"\xff" * 4):
        return True
    if len(src) == 16 and (src[0] == 0xFF or src == bytes(15) + b"\1"):
        return True
    if len(src) == 16 and any(a[:8] == bytes(8) and a[10] == 0xFF for a in (src, dst)):
        return True
    if fragmented:
        return False
    if above is None:
        return True
    if isinstance(above, icmp.Icmp):
        if above.type == (8 if len(src) == 4 else 128) and above.code == 0:
            return False
        return len(src) == 4 or not 133 <= above.type <= 137
    return above.sport == 0 or above.dport == 0


def seeds_frame() -> list[bytes]:
    packets: list[tuple[int, bytes]] = []
    options = ((2, b"\5\xb4"), (4, b""), (8, bytes(8)), (1, b""), (3, b"\7"))
    for src, dst in ((A4, B4), (A6, B6)):
        datagrams = (Udp(1234, 53, b"hello"), Udp(68, 67, b"x"), Udp(546, 547, b"x"))
        segments = (Tcp(1, 2, 3, 4, 2, 5, options=options), Tcp(1, 2, 3, 4, 24, 5, b"hello"))
        bodies = [(17, datagram.emit(src, dst)) for datagram in datagrams]
        bodies += [(6, segment.emit(src, dst)) for segment in segments]
        if len(src) == 4:
            bodies.append((1, icmp.Icmp(8, 0, 7, b"ping").emit()))
            packets += [(ETHERTYPE_IPV4, IPv4(src, dst, *body).emit()) for body in bodies]
            packets.append((ETHERTYPE_IPV4, IPv4(src, dst, 17, bytes(24), more_fragments=True, offset=8).emit()))
            packets.append((ETHERTYPE_IPV4, IPv4(src, dst, *bodies[0], options=bytes(8)).emit()))
        else:
            bodies += [(58, icmp.Icmp(kind, 0, 7, b"ping").emit(src, dst)) for kind in (128, 133, 135)]
            packets += [(ETHERTYPE_IPV6, IPv6(src, dst, *body).emit()) for body in bodies]
            chain = bytes([60, 0]) + bytes(6) + bytes([43, 0]) + bytes(6) + bytes([17, 0]) + bytes(6) + bodies[0][1]
            packets.append((ETHERTYPE_IPV6, IPv6(src, dst, 0, chain).emit()))
            part = bytes([17, 0, 0, 9, 0, 0, 0, 7]) + bytes(16)
            packets.append((ETHERTYPE_IPV6, IPv6(src, dst, 44, part).emit()))
    packets.append((ETHERTYPE_ARP, bytes(28)))
    frames = [Ethernet(MAC, MAC, kind, packet).emit() for kind, packet in packets]
    return [bytes([bits, 0, 0, 0]) + frame for frame in frames for bits in (2, 1)] + [b"\1\1\5\xb4" + frames[4]]


def seeds_fragments() -> list[bytes]:
    one = bytes([0x40, 0, 16, 0x40, 2, 16, 0, 4, 5])
    return [one, one[6:] + one[3:6] + one[:3], bytes([0xC1, 0, 4, 0x81, 4, 3]), one + one, bytes([0x42, 0, 8, 2, 1, 3])]


def seeds_options() -> list[bytes]:
    head = bytes([5, 180, 9, 1])
    syn = bytes([2, 4, 5, 180, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7])
    sack = bytes([1, 1, 5, 18]) + bytes(range(16))
    return [head + syn, head + syn + sack, head + bytes([4, 2]) + sack, head + bytes([3, 3, 200, 2, 4, 0, 1])]


def seeds_stream() -> list[bytes]:
    plain = bytes([20, 0, 0, 0, 16]) + bytes(16)
    return [b"\0\x1f" + plain * 3, b"\x83\1" + plain + b"\x80\x40" * 3, b"\x8f\x1f\xc0\x08\xc0\x09\x80\x20"]


def seeds_tcp() -> list[bytes]:
    both = bytes([0x1F, 0x3F, 0x58, 0x78, 0x45, 0x62, 0xFE, 0x86])
    lossy = bytes([0x1F, 0x1F, 0x45, 0x46, 0x47, 0x5F, 0xC0, 0x3F, 0x65, 0x67, 0x66, 0x78, 0x58, 0xC0])
    seeds = [
        both,
        both * 4,
        lossy,
        lossy * 3,
        both + bytes([0xE0, 0xFF, 0xE1, 0xFF]),
        bytes([0xA0, 0x1F, 0xFE, 0xA3, 0xC0]),
        bytes([0x3F, 0xFC, 0x3F, 0x78, 0x78, 0x58, 0xFC, 0xE1, 0xFE]),
        bytes([0x3F, 0x3F, 0x78, 0xFB, 0x1F, 0x58, 0x78, 0xC0, 0xFB, 0xFE]),
    ]
    return [bytes([how]) + seed for how in range(4) for seed in seeds]


def seeds_segments() -> list[bytes]:
    syn = bytes([2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7])
    start = bytes([0xA2, 1, 255, len(syn)]) + syn
    ack = bytes([0, 0x41, 0, 0, 0, 255, 0])
    data = bytes([0, 0x51, 0, 0, 2, 255, 0])
    return [
        start + ack + data * 3 + bytes([5, 13, 5]) + ack,
        start + ack + bytes([5, 5, 5]) + bytes([0, 0xC9, 0, 0, 0, 255, 0, 0, 1]) + bytes([0x61, 0x71]) + bytes([4, 4]),
        start + ack + bytes([0, 0x51, 0x81, 0, 32, 255, 0, 1]) + data + bytes([6]) + bytes([0, 0, 17, 0, 8, 0, 255]),
        bytes([0xA3, 1, 255, len(syn)]) + syn + ack + bytes([0, 0, 17, 0, 0, 0, 255, 6, 4, 4]),
    ]
