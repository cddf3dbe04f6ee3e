"""Targets: what answers a hostile guest. Headers that a mutation would only break are made here, from a byte or two."""

import struct

from bucatini.errors import WireError
from bucatini.services.config import ServiceConfig
from bucatini.services.responder import Responder
from bucatini.wire import arp, checksum, dhcp, dhcpv6, ethernet, icmp, ipv4, ipv6, ndp

OURS, GUEST = bytes.fromhex("9a559a559a55"), bytes.fromhex("020000000001")
ADDRESS4, GATEWAY4 = bytes([192, 0, 2, 10]), bytes([192, 0, 2, 1])
ADDRESS6 = bytes.fromhex("20010db8000000000000000000000010")
LINK_LOCAL, OURS6 = bytes.fromhex("fe80" + "00" * 13 + "07"), bytes.fromhex("fe80" + "00" * 13 + "01")
FRAME_MAX = ethernet.HEADER + 1500
FRAME6_MAX = ethernet.HEADER + ipv6.MTU_MIN

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
    guest=frozenset({ADDRESS4, ADDRESS6}),
    ours=frozenset({GATEWAY4, OURS6}),
)
RESPONDER = Responder(CONFIG, bytes)  # remembers nothing that a frame says

_ETHER4 = ethernet.BROADCAST + GUEST + b"\x08\x00"
_ETHER6 = b"\x33\x33\0\1\0\2" + GUEST + b"\x86\xdd"
_DESTINATIONS4 = (ipv4.BROADCAST, GATEWAY4, bytes([192, 0, 2, 255]), bytes([192, 0, 2, 77]))
_SOURCES6 = (LINK_LOCAL, bytes(16), ADDRESS6, ipv6.ALL_NODES)
_TARGETS6 = (ADDRESS6[:15] + b"\x77", OURS6, ADDRESS6, LINK_LOCAL)


def ask(frame: bytes, limit: int) -> bytes | None:
    """Give a frame to the services; what they answer keeps its bounds."""
    replies = RESPONDER.on_frame(frame, 0)
    assert len(replies) <= 1, "more answers than questions"
    if not replies:
        return None
    assert ethernet.HEADER < len(replies[0]) <= limit, "size of an answer"
    assert replies[0][6:12] == OURS, "an answer in another's name"
    return replies[0]


def packet4(src: bytes, dst: bytes, payload: bytes) -> bytes:
    """An IPv4 packet with a UDP datagram to port 67."""
    head = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 28 + len(payload), 0, 0, 64, 17, 0, src, dst)
    return head[:10] + struct.pack("!H", checksum.internet(head)) + head[12:] + datagram(68, 67, payload)


def datagram(sport: int, dport: int, payload: bytes) -> bytes:
    """A datagram without a checksum: nobody behind the packet path looks at it."""
    return struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload


def packet6(src: bytes, dst: bytes, protocol: int, payload: bytes, hop_limit: int = 255) -> bytes:
    return struct.pack("!IHBB16s16s", 6 << 28, len(payload), protocol, hop_limit, src, dst) + payload


def fuzz_arp(data: bytes) -> None:
    """The message as it is."""
    reply = ask(_ETHER4[:12] + b"\x08\x06" + data, ethernet.HEADER + arp.LENGTH)
    if reply is not None:
        answer, asked = arp.Arp.parse(reply[14:]), arp.Arp.parse(data)
        assert answer.operation == arp.REPLY
        assert (answer.sender_mac, answer.sender) == (OURS, asked.target)
        assert answer.sender != ADDRESS4, "in the guest's own name"
        assert reply[:6] == GUEST
    try:
        message = arp.Arp.parse(data)
    except WireError:
        return
    assert arp.Arp.parse(message.emit()) == message
    str(message)


def fuzz_dhcp(data: bytes) -> None:
    """A byte for the header, then the options; in one case of it the whole message."""
    kind, data = data[:1], data[1:]
    bits = kind[0] if kind else 0
    if bits & 0x80:
        message = data
    else:
        names = bytes(192)
        if bits & 0x20:  # options in sname and file
            names, data = data[:16].ljust(64, b"\0") + data[16:48].ljust(128, b"\0"), data[48:]
        message = (
            struct.pack("!BBBBIHH", 1 + (bits & 1), 1, 6, 0, 0x12345678, 0, (bits & 2) << 14)
            + (ADDRESS4 if bits & 4 else bytes([10, 0, 0, 1]) if bits & 8 else bytes(4))
            + bytes(8)
            + (bytes([192, 0, 2, 3]) if bits & 0x10 else bytes(4))
            + GUEST
            + bytes(10)
            + names
            + dhcp.COOKIE
            + data
        )
    reply = ask(_ETHER4 + packet4(bytes(4), _DESTINATIONS4[bits >> 6 & 1], message), FRAME_MAX)
    try:
        asked = dhcp.Dhcp.parse(message)
    except WireError:
        assert reply is None
        return
    str(asked)
    assert dhcp.Dhcp.parse(asked.emit()) == asked
    if reply is None:
        return
    answer = dhcp.Dhcp.parse(reply[42:])
    assert (answer.op, answer.xid, answer.chaddr) == (dhcp.BOOTREPLY, asked.xid, asked.chaddr)
    assert answer.yiaddr in (bytes(4), ADDRESS4), "another address than the guest's"
    wanted = int.from_bytes(asked.option(dhcp.MAXIMUM_MESSAGE_SIZE) or b"", "big")
    assert len(reply) - ethernet.HEADER <= max(576, wanted), "longer than the client takes"


def fuzz_dhcpv6(data: bytes) -> None:
    """A byte for who is asked and which identifiers stand in front; then type, transaction and options."""
    bits = data[0] if data else 0
    message = data[1:5]
    if bits & 2:
        message += struct.pack("!HH", dhcpv6.CLIENT_IDENTIFIER, 10) + dhcpv6.duid_ll(GUEST)
    if bits & 4:
        message += struct.pack("!HH", dhcpv6.SERVER_IDENTIFIER, 10) + dhcpv6.duid_ll(OURS)
    message += data[5:]
    dst = OURS6 if bits & 1 else dhcpv6.ALL_SERVERS
    reply = ask(_ETHER6 + packet6(LINK_LOCAL, dst, 17, datagram(546, 547, message)), FRAME6_MAX)
    try:
        asked = dhcpv6.Dhcpv6.parse(message)
    except WireError:
        assert reply is None
        return
    str(asked)
    assert asked.emit() == message
    for code, value in asked.options:
        if code in (dhcpv6.IA_NA, dhcpv6.IA_TA, dhcpv6.IA_PD):
            try:
                association = dhcpv6.IdentityAssociation.parse(code, value)
                association.addresses()
            except WireError:
                continue
            assert association.emit() == value
    if reply is None:
        return
    answer = dhcpv6.Dhcpv6.parse(reply[62:])
    assert answer.type in (dhcpv6.ADVERTISE, dhcpv6.REPLY)
    assert answer.transaction == asked.transaction
    assert answer.option(dhcpv6.SERVER_IDENTIFIER) == dhcpv6.duid_ll(OURS)
    assert answer.option(dhcpv6.CLIENT_IDENTIFIER) == asked.option(dhcpv6.CLIENT_IDENTIFIER)


def fuzz_ndp(data: bytes) -> None:
    """A byte for type and source, one for code and hop limit; then what is behind the checksum, which is made."""
    bits, more = data[:1], data[1:2]
    kind = ndp.ROUTER_SOLICITATION + (bits[0] & 7) % 5 if bits else ndp.ROUTER_SOLICITATION
    src = _SOURCES6[bits[0] >> 3 & 3] if bits else LINK_LOCAL
    code = more[0] & 3 if more else 0
    body = data[2:]
    if bits and bits[0] & 0x20 and kind == ndp.NEIGHBOR_SOLICITATION:
        body = body[:4] + _TARGETS6[bits[0] >> 6] + body[4:]
    dst = ipv6.ALL_ROUTERS
    blank = struct.pack("!BBH", kind, code, 0) + body
    blank = blank[:2] + struct.pack("!H", checksum.transport(src, dst, 58, blank)) + blank[4:]
    reply = ask(_ETHER6 + packet6(src, dst, 58, blank, 64 if more and more[0] & 4 else 255), FRAME6_MAX)
    try:
        message = icmp.Icmp.parse(blank, src, dst)
        value = _FORMATS[kind].parse(message)
    except WireError:
        assert reply is None
        return
    str(value)
    assert _FORMATS[kind].parse(value.emit()) == value
    if reply is None:
        return
    packet = ipv6.IPv6.parse(reply[14:])
    answer = icmp.Icmp.parse(packet.payload, packet.src, packet.dst)
    assert answer.type == (kind + 1)
    if kind == ndp.NEIGHBOR_SOLICITATION:
        assert ndp.NeighborAdvertisement.parse(answer).target != ADDRESS6, "in the guest's own name"
    else:
        ndp.RouterAdvertisement.parse(answer)


_FORMATS = {
    ndp.ROUTER_SOLICITATION: ndp.RouterSolicitation,
    ndp.ROUTER_ADVERTISEMENT: ndp.RouterAdvertisement,
    ndp.NEIGHBOR_SOLICITATION: ndp.NeighborSolicitation,
    ndp.NEIGHBOR_ADVERTISEMENT: ndp.NeighborAdvertisement,
    ndp.REDIRECT: ndp.NeighborSolicitation,  # we read none: malformed, whatever it says
}


def seeds_arp() -> list[bytes]:
    return [
        arp.Arp(operation, GUEST, sender, bytes(6), target).emit()
        for operation in (arp.REQUEST, arp.REPLY)
        for sender in (ADDRESS4, bytes(4))
        for target in (GATEWAY4, ADDRESS4, bytes([192, 0, 2, 77]))
    ]


def seeds_dhcp() -> list[bytes]:
    asked = bytes([55, 4, 1, 3, 119, 121])
    more = bytes([57, 2, 2, 64, 61, 7, 1]) + GUEST + bytes([81, 3, 5, 0, 0, 80, 0])
    return [
        bytes([bits]) + bytes([53, 1, kind]) + asked + more + extra + b"\xff"
        for kind in (1, 3, 4, 7, 8)
        for bits in (0, 2, 4, 0x10, 0x40)
        for extra in (bytes([50, 4]) + ADDRESS4, bytes([54, 4]) + GATEWAY4)
    ] + [bytes([0x20]) + bytes([12, 2, 65, 66, 255]).ljust(16, b"\0") + bytes(32) + bytes([52, 1, 3, 53, 1, 1, 255])]


def seeds_dhcpv6() -> list[bytes]:
    address = dhcpv6.IaAddress(ADDRESS6, 1, 2).emit()
    inner = struct.pack("!HH", 5, len(address)) + address
    options = dhcpv6.emit_options(
        (
            (3, b"iaid" + bytes(8) + inner),
            (25, b"iaid" + bytes(8)),
            (6, b"\0\x17\0\x27"),
            (39, b"\0\x03box\0"),
            (14, b""),
        )
    )
    return [
        bytes([bits, kind]) + b"xid" + rest for kind in range(1, 12) for bits in (2, 6, 3) for rest in (options, b"")
    ]


def seeds_ndp() -> list[bytes]:
    option = bytes([1, 1]) + GUEST
    prefix = ndp.PrefixInformation(ADDRESS6[:8] + bytes(8), 64, True, True).emit()
    rest = prefix + ndp.Mtu(1500).emit() + ndp.Rdnss(1, (ADDRESS6,)).emit() + ndp.Dnssl(1, ("example.org",)).emit()
    return [
        bytes([0, 0]) + bytes(4) + option,
        bytes([8, 0]) + bytes(4),
        bytes([1, 0]) + bytes(12) + option + rest,
        *(bytes([2 | 0x20 | target << 6 | src << 3, 0]) + bytes(4) + option for target in range(4) for src in range(3)),
        bytes([2, 0]) + bytes(4) + ADDRESS6 + option,
        bytes([3, 0]) + bytes(4) + ADDRESS6 + option,
    ]
