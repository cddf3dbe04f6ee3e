"""Targets: text and messages from this side: domain names, resolv.conf, port specifications, netlink, /proc/net."""

import socket
import struct

from bucatini.errors import UsageError, WireError
from bucatini.host import listeners, netlink, resolv
from bucatini.plan import ports
from bucatini.wire import domain

FAMILIES = (socket.AF_INET, socket.AF_INET6)


def fuzz_dns(data: bytes) -> None:
    """Names on the wire, plain and compressed; names as text; resolv.conf. (Queries and answers nobody here reads.)"""
    mode, data = data[:1], data[1:]
    if not mode or mode[0] & 3 < 2:
        _names(data, compressed=bool(mode) and mode[0] & 3 == 1)
    elif mode[0] & 3 == 2:
        _name_text(data.decode("utf-8", "surrogateescape"))  # as an argument is decoded
    else:
        _resolv_conf(data.decode("utf-8", "replace"))  # as the file is


def _names(data: bytes, *, compressed: bool) -> None:
    try:
        names = domain.parse_list(data, compressed=compressed)
    except WireError:
        return
    for name in names:
        assert domain.parse(domain.emit(name)) == name
    assert domain.parse_list(domain.emit_list(names)) == names
    packed = domain.emit_compressed(names)
    assert domain.parse_list(packed, compressed=True) == names
    assert len(packed) <= len(domain.emit_list(names))


def _name_text(name: str) -> None:
    try:
        raw = domain.emit(name)
    except WireError:
        return
    assert len(raw) <= domain.NAME_MAX
    assert domain.emit(domain.parse(raw)) == raw
    if name and raw != b"\0" and not name.endswith("."):
        assert domain.emit(name + ".") == raw, "a dot at the end makes a difference"


def _resolv_conf(text: str) -> None:
    servers, search = resolv.parse(text)
    assert len(set(servers)) == len(servers)
    for server in servers:
        bare = server.partition("%")[0]
        socket.inet_pton(socket.AF_INET6 if ":" in bare else socket.AF_INET, bare)
    for name in search:
        assert name
        assert name == name.strip()
        _name_text(name)


def fuzz_ports(data: bytes) -> None:
    """A byte for the option, then specifications between zeros, which no argument can hold."""
    option = ("-t", "-u", "-T", "-U")[data[0] & 3 if data else 0]
    specs = []
    for value in data[1:].split(b"\0", 4)[:4]:
        try:
            spec = ports.parse_forward(option, value.decode("utf-8", "surrogateescape"))
        except UsageError as error:
            _is_a_line(str(error))
            continue
        for entry in spec.ranges:
            assert 0 < entry.first <= entry.last <= ports.PORT_MAX
            assert 0 < entry.to <= entry.to + entry.last - entry.first <= ports.PORT_MAX
        specs.append(spec)
    try:
        rules = ports.rules(specs, 6, (32768, 60999))
    except UsageError as error:
        _is_a_line(str(error))
        return
    for at, rule in enumerate(rules):
        assert 0 < rule.first <= rule.last <= ports.PORT_MAX
        assert 0 < rule.to <= rule.to + rule.last - rule.first <= ports.PORT_MAX
        for other in rules[:at]:
            if (other.address, other.interface) == (rule.address, rule.interface):
                assert other.last < rule.first or rule.last < other.first, "a port of an address twice"


def _is_a_line(text: str) -> None:
    assert text.isprintable(), "an error of more than a line"


def fuzz_netlink(data: bytes) -> None:
    """A byte for what it is: a datagram of messages, the body of one, of a bound socket, or a table of /proc/net."""
    mode, data = data[0] & 3 if data else 0, data[1:]
    if mode == 0:
        bodies = [body for _, _, body in netlink.messages(data, None)]
        assert sum(map(len, bodies)) <= len(data)
        assert len(list(netlink.messages(data, 7))) <= len(bodies)
        for body in bodies:
            _bodies(body)
        netlink.resolve_next_hops(bodies)
    elif mode == 1:
        _bodies(data)
        for hops in netlink.resolve_next_hops([data]).values():
            assert all(hop.weight > 0 for hop in hops)
    elif mode == 2:
        found = list(netlink.attributes(data))
        assert sum(4 + len(value) for _, value in found) <= len(data)
        again = b"".join(netlink.attribute(kind, value) for kind, value in found)
        assert list(netlink.attributes(again)) == found
        _check(listeners.parse_message(6, data))
    else:
        for version in (4, 6):
            for line in data.decode("ascii", "replace").splitlines():
                _check(listeners.parse_line(17, version, line))


def _bodies(body: bytes) -> None:
    link = netlink.parse_link(body)
    assert link is None or link.mac is None or len(link.mac) == 6
    for family in FAMILIES:
        address = netlink.parse_address(family, body)
        if address is not None:
            _fits(family, address.address.address, address.address.prefix)
        parsed = netlink.parse_route(family, body)
        if parsed is not None:
            route, hops, _ = parsed
            _fits(family, route.destination, route.prefix)
            for hop in hops:
                assert hop.weight > 0
                assert hop.gateway is None or netlink.pack(hop.gateway)


def _fits(family: int, address: str | None, prefix: int) -> None:
    assert address is None or netlink.family_of(address) == family
    assert prefix <= (32 if family == socket.AF_INET else 128)


def _check(listener: listeners.Listener | None) -> None:
    if listener is not None:
        assert 0 < listener.port <= 65535, "no port"
        assert len(listener.address) == (4 if listener.version == 4 else 16)
        listeners.is_loopback(listener.address)


def seeds_dns() -> list[bytes]:
    name = domain.emit("www.example.org")
    return [
        b"\0" + name + domain.emit("a"),
        b"\1" + name + b"\x04mail\xc0\x04" + b"\xc0\x00",
        b"\2www.example.org",
        b"\2a\\.b\\\\.\\065\\255.x",
        b"\2" + "dömain.ex".encode(),
        b"\3nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch a.example b # c\ndomain x\noptions ndots:1\n",
    ]


def seeds_ports() -> list[bytes]:
    texts = [
        "none", "8080", "8080:80", "1-9:11-19", "~80", "all", "auto", "all,~80-90", "192.0.2.1/22", "::1%lo/22",
        "%eth0/80-90", "[2001:db8::1]/80:[2001:db8::2]/81", "80:192.0.2.9", "80:192.0.2.9/81", "80-82:[::1]/90-92",
        "all:192.0.2.3", "auto,~1-1000", "1,2,3-5", "8080\0all", "80\x0080:81", "192.0.2.1/80\0all,~80",
        "80:192.0.2.7\x00192.0.2.1/80", "%lo/80\0all", "1-10\x005-6:5",
    ]  # fmt: skip
    return [bytes([at & 3]) + text.encode() for at, text in enumerate(texts)] + [b"\2" + texts[8].encode()]


def seeds_netlink() -> list[bytes]:
    at = netlink.attribute
    four, six = bytes([192, 0, 2, 1]), bytes.fromhex("20010db8" + "00" * 11 + "01")
    link = struct.pack("=BxHiII", 0, 1, 2, 1, 0) + at(3, b"eth0\0") + at(4, struct.pack("=I", 1500)) + at(1, b"\2" * 6)
    address = struct.pack("=BBBBi", 2, 24, 0x80, 0, 2) + at(2, four) + at(1, four) + at(4, four) + at(8, b"\x80\2\0\0")
    route = struct.pack("=BBBBBBBBI", 2, 24, 0, 0, 254, 3, 0, 1, 0) + at(1, four)
    hop = struct.pack("=HBBi", 16, 0, 1, 2) + at(5, four)
    route6 = struct.pack("=BBBBBBBBI", 10, 64, 0, 0, 254, 3, 0, 1, 0) + at(1, six) + at(5, six) + at(4, b"\2\0\0\0")
    routes = [
        route + at(4, b"\2\0\0\0") + at(5, four) + at(6, bytes(4)) + at(7, four) + at(8, at(2, bytes(4))),
        route + at(9, hop * 2),
        route + at(4, b"\2\0\0\0") + at(18, b"\x0a\0" + six),
        route + at(30, b"\7\0\0\0") + at(15, b"\xfe\0\0\0"),
        route6,
    ]
    object_ = struct.pack("=BBBBI", 2, 0, 0, 0, 0) + at(1, b"\7\0\0\0") + at(5, b"\2\0\0\0") + at(6, four)
    group = struct.pack("=BBBBI", 0, 0, 0, 0, 0) + at(1, b"\x08\0\0\0") + at(2, struct.pack("=IBBH", 7, 3, 0, 0))
    bodies = [link, address, *routes, object_, group]
    datagram = b"".join(
        struct.pack("=IHHII", 16 + len(body), 16, 0, 7, 0) + body + bytes(-len(body) % 4) for body in (object_, group)
    )
    bound = bytes([10, 10, 0, 0, 0, 80]) + bytes(66) + at(11, b"\1")
    bound4 = bytes([2, 10, 0, 0, 0, 80, 0, 0]) + four + bytes(60)
    table = (
        b"  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        b"   0: 0100007F:0035 00000000:0000 07 00000000:00000000 00:00000000 00000000   102        0 12345 2\n"
        b"   1: 00000000000000000000000001000000:0035 0:0000 07 0:0 00:0 0 102 0 12346 2\n"
    )
    return [b"\0" + datagram, *(b"\1" + body for body in bodies), b"\2" + bound, b"\2" + bound4, b"\3" + table]
