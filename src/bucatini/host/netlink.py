"""A small rtnetlink client (rtnetlink(7), netlink(7)): links, addresses, routes and next hops, read and set.

Purpose. Start-up reads the host's view and configures the tap. It must be quick to import, so a general netlink library
is not used. `Changes` tells of addresses and routes that change. What it does not do: policy rules, traffic control.

A socket belongs to the network namespace in which it was opened. Every attribute is checked against the message it is
in; the kernel's errors become `HostError`; a dump that was interrupted by a change is repeated.
"""

from __future__ import annotations

import errno
import struct
import sys

from bucatini.errors import HostError
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.plan import Address, Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# After the seal only to ask for sockets that are bound
# syscalls auto: sendto recvfrom
# syscalls lookout: sendto recvfrom

NETLINK_ROUTE = 0  # linux/netlink.h
NETLINK_GET_STRICT_CHK = 12
SOL_NETLINK = 270  # linux/socket.h
NLM_F_REQUEST = 0x001
NLM_F_ACK = 0x004
NLM_F_DUMP = 0x300
NLM_F_DUMP_INTR = 0x010
NLM_F_REPLACE = 0x100
NLM_F_CREATE = 0x400
NLMSG_ERROR = 2
NLMSG_DONE = 3

RTM_NEWLINK = 16  # linux/rtnetlink.h
RTM_GETLINK = 18
RTM_NEWADDR = 20
RTM_DELADDR = 21
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_DELROUTE = 25
RTM_GETROUTE = 26
RTM_GETNEXTHOP = 106

RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400

IFLA_ADDRESS = 1  # linux/if_link.h
IFLA_IFNAME = 3
IFLA_MTU = 4
IFF_UP = 1
IFF_LOOPBACK = 8

IFA_ADDRESS = 1  # linux/if_addr.h
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_FLAGS = 8
IFA_F_NODAD = 0x02
IFA_F_DEPRECATED = 0x20
IFA_F_TENTATIVE = 0x40
IFA_F_PERMANENT = 0x80
IFA_F_NOPREFIXROUTE = 0x200

RTA_DST = 1  # linux/rtnetlink.h
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_PRIORITY = 6
RTA_PREFSRC = 7
RTA_METRICS = 8
RTA_MULTIPATH = 9
RTA_TABLE = 15
RTA_VIA = 18
RTA_NH_ID = 30
RTAX_MTU = 2
RTNH_F_DEAD = 1
RTNH_F_ONLINK = 4
RTN_UNICAST = 1
RT_TABLE_MAIN = 254
RT_SCOPE_UNIVERSE = 0
RT_SCOPE_LINK = 253
RTPROT_BOOT = 3

NHA_ID = 1  # linux/nexthop.h
NHA_GROUP = 2
NHA_OIF = 5
NHA_GATEWAY = 6

DUMP_TRIES = 5
LEFT_OVER = 1 << 16  # datagrams: what the kernel left comes to an end, what the root of a namespace sends may not
DATAGRAM = 1 << 18  # bytes; the kernel fills 32 KiB, and more only for a single message that does not fit


class LinkInfo(NamedTuple):
    """A network interface."""

    ifindex: int
    name: str
    flags: int  # IFF_*
    mtu: int
    mac: bytes | None  # 6 bytes


class HostAddress(NamedTuple):
    """An address and the interface it is on."""

    ifindex: int
    address: Address


class Hop(NamedTuple):
    """One next hop."""

    ifindex: int
    gateway: str | None
    weight: int
    flags: int  # RTNH_F_*


class HostRoute(NamedTuple):
    """A route with its next hops; the first of `hops` is the heaviest."""

    route: Route
    hops: tuple[Hop, ...]


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield type and value of each attribute (struct rtattr); stops at the first that does not fit."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    """Return one attribute, padded."""
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def pack(address: str) -> bytes:
    """Return the 4 or 16 bytes of an address; a scope id is cut off."""
    return sockets.inet_pton(family_of(address), address.partition("%")[0])


def family_of(address: str) -> int:
    """Return AF_INET or AF_INET6."""
    return sockets.AF_INET6 if ":" in address else sockets.AF_INET


def _unpack(family: int, value: bytes) -> str | None:
    """Return an address as text, None when its length is not the family's."""
    if (family, len(value)) not in ((sockets.AF_INET, 4), (sockets.AF_INET6, 16)):
        return None
    return sockets.inet_ntop(family, value)


def messages(data: bytes, sequence: int | None) -> Iterator[tuple[int, int, bytes]]:
    """Yield type, flags and body of the messages that answer `sequence`, None: of all; ends where one does not fit."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, answered, _ = struct.unpack_from("=IHHII", data, at)
        if length < 16 or at + length > len(data):
            return
        if sequence is None or answered == sequence:
            yield kind, flags, data[at + 16 : at + length]
        at += (length + 3) & ~3


class Changes:
    """Hears when addresses and default routes change, in the namespace it is made in (rtnetlink(7))."""

    BATCH = 256  # messages taken at a time

    def __init__(self) -> None:
        groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
        kind = sockets.SOCK_RAW | sockets.SOCK_NONBLOCK | sockets.SOCK_CLOEXEC
        try:
            self.sock = sockets.socket(sockets.AF_NETLINK, kind, NETLINK_ROUTE)
            self.sock.bind((0, groups))
        except OSError as error:
            raise HostError("open a netlink socket", error.errno or 0) from None

    def fileno(self) -> int:
        return self.sock.fileno()

    def seen(self) -> bool:
        """Take what there is; whether any of it was such a change."""
        found = False
        for _ in range(self.BATCH):
            try:
                data = self.sock.recv(DATAGRAM)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # messages were lost
                    raise
                found = True
                continue
            for kind, _, body in messages(data, None):  # numbered as what the program sent that changed it
                default = kind in (RTM_NEWROUTE, RTM_DELROUTE) and len(body) > 1 and body[1] == 0  # rtm_dst_len
                found |= default or kind in (RTM_NEWADDR, RTM_DELADDR)
        return found


class Netlink:
    """A socket to the kernel's routing tables, of the namespace it is made in."""

    def __init__(self, fd: int | None = None) -> None:
        """Open a socket, or take one over that was opened in another namespace."""
        if fd is not None:
            self.sock = sockets.socket(fileno=fd)
        else:
            try:
                self.sock = sockets.socket(sockets.AF_NETLINK, sockets.SOCK_RAW | sockets.SOCK_CLOEXEC, NETLINK_ROUTE)
                self.sock.bind((0, 0))
            except OSError as error:
                raise HostError("open a netlink socket", error.errno or 0) from None
            try:
                self.sock.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
            except OSError:
                pass  # before Linux 4.20; what it filters is filtered here too
        self.sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _send(self, kind: int, flags: int, body: bytes, doing: str) -> None:
        self.sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, self.sequence, 0)
        try:
            self.sock.send(header + body)
        except OSError as error:
            raise HostError(doing, error.errno or 0) from None

    def _messages(self, doing: str) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and body of the messages that answer the last request, one datagram."""
        try:
            data, (port, _) = self.sock.recvfrom(DATAGRAM)
        except OSError as error:
            raise HostError(doing, error.errno or 0) from None
        if port == 0:  # the kernel; the root of a namespace may write to this socket too
            yield from messages(data, self.sequence)

    def request(self, kind: int, flags: int, body: bytes, doing: str) -> None:
        """Send a request and wait for its acknowledgement; HostError when it is refused."""
        self._send(kind, flags | NLM_F_ACK, body, doing)
        while True:
            for answer, _, payload in self._messages(doing):
                if answer == NLMSG_ERROR and len(payload) >= 4:
                    code = struct.unpack_from("=i", payload)[0]
                    if code:
                        raise HostError(doing, -code)
                    return

    def dump(self, kind: int, body: bytes, doing: str) -> list[bytes]:
        """Return the bodies of a dump."""
        for _ in range(DUMP_TRIES):
            result, interrupted = self._dump(kind, body, doing)
            if not interrupted:
                break
        return result

    def _dump(self, kind: int, body: bytes, doing: str) -> tuple[list[bytes], bool]:
        result: list[bytes] = []
        interrupted = False
        for bodies, changed in self.dump_in_parts(kind, body, doing):
            result += bodies
            interrupted |= changed
        return result, interrupted

    def dump_in_parts(self, kind: int, body: bytes, doing: str) -> Iterator[tuple[list[bytes], bool]]:
        """Yield the bodies of each datagram of a dump, and whether a change interrupted it, which is not repeated."""
        self._send(kind, NLM_F_DUMP, body, doing)
        done = False
        while not done:
            bodies: list[bytes] = []
            interrupted = False
            for answer, flags, payload in self._messages(doing):
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    code = struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    # A kernel may be without it (ipv6.disable=1, no next hop objects)
                    if code and -code not in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT):
                        raise HostError(doing, -code)
                    done = True
                    break
                bodies.append(payload)
            yield bodies, interrupted

    def discard(self, doing: str) -> Iterator[None]:
        """Read what is left of a dump that was given up, before which no other can begin; a turn for each datagram.

        The socket is one that does not wait (`setblocking`).
        """
        for _ in range(LEFT_OVER):
            try:
                self.sock.recvfrom(DATAGRAM)
            except BlockingIOError:
                return
            except OSError as error:
                raise HostError(doing, error.errno or 0) from None
            yield

    # Reading

    def links(self) -> list[LinkInfo]:
        """Return all interfaces."""
        result = []
        for body in self.dump(RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0), "list interfaces"):
            link = parse_link(body)
            if link is not None:
                result.append(link)
        return result

    def addresses(self, family: int) -> list[HostAddress]:
        """Return all addresses of a family, in the kernel's order (primary ones first)."""
        result = []
        for body in self.dump(RTM_GETADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0), "list addresses"):
            address = parse_address(family, body)
            if address is not None:
                result.append(address)
        return result

    def routes(self, family: int) -> list[HostRoute]:
        """Return the unicast routes of the main table of a family; dead next hops are left out."""
        result = []
        objects: dict[int, tuple[Hop, ...]] | None = None
        body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
        for message in self.dump(RTM_GETROUTE, body, "list routes"):
            parsed = parse_route(family, message)
            if parsed is None:
                continue
            route, hops, object_id = parsed
            if object_id:
                if objects is None:
                    objects = self._next_hops()
                hops = objects.get(object_id, ())
            alive = [hop for hop in hops if not hop.flags & RTNH_F_DEAD]
            alive.sort(key=lambda hop: -hop.weight)
            if alive:
                route = route._replace(gateway=alive[0].gateway, flags=alive[0].flags & RTNH_F_ONLINK)
                result.append(HostRoute(route, tuple(alive)))
        return result

    def _next_hops(self) -> dict[int, tuple[Hop, ...]]:
        """Return the next hop objects by id, groups resolved."""
        return resolve_next_hops(self.dump(RTM_GETNEXTHOP, struct.pack("=BBBBI", 0, 0, 0, 0, 0), "list next hops"))

    # Setting

    def set_link(
        self, index: int, *, up: bool = True, mtu: int | None = None, mac: bytes | None = None, name: str = "the link"
    ) -> None:
        """Bring an interface up, with MTU and MAC address."""
        flags = IFF_UP if up else 0
        body = struct.pack("=BxHiII", 0, 0, index, flags, flags)
        if mtu is not None:
            body += attribute(IFLA_MTU, struct.pack("=I", mtu))
        if mac is not None:
            body += attribute(IFLA_ADDRESS, mac)
        self.request(RTM_NEWLINK, 0, body, f"configure {name}")

    def add_address(self, index: int, address: Address) -> None:
        """Add an address: without duplicate address detection, valid for ever."""
        family = family_of(address.address)
        raw = pack(address.address)
        flags = IFA_F_NODAD | IFA_F_PERMANENT | (address.flags & IFA_F_NOPREFIXROUTE)
        body = struct.pack("=BBBBi", family, address.prefix, flags & 0xFF, address.scope, index)
        body += attribute(IFA_LOCAL, raw) + attribute(IFA_ADDRESS, raw) + attribute(IFA_FLAGS, struct.pack("=I", flags))
        if address.broadcast and family == sockets.AF_INET:
            body += attribute(IFA_BROADCAST, pack(address.broadcast))
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {address.address}/{address.prefix}")

    def add_route(self, index: int, family: int, route: Route) -> None:
        """Add a route over the interface."""
        scope = RT_SCOPE_LINK if family == sockets.AF_INET and route.gateway is None else RT_SCOPE_UNIVERSE
        body = struct.pack(
            "=BBBBBBBBI", family, route.prefix, 0, 0, RT_TABLE_MAIN, RTPROT_BOOT, scope, RTN_UNICAST, route.flags
        )
        if route.destination is not None:
            body += attribute(RTA_DST, pack(route.destination))
        if route.gateway is not None:
            if family_of(route.gateway) == family:
                body += attribute(RTA_GATEWAY, pack(route.gateway))
            else:
                body += attribute(RTA_VIA, struct.pack("=H", family_of(route.gateway)) + pack(route.gateway))
        if route.metric:
            body += attribute(RTA_PRIORITY, struct.pack("=I", route.metric))
        if route.source is not None:
            body += attribute(RTA_PREFSRC, pack(route.source))
        if route.mtu:
            body += attribute(RTA_METRICS, attribute(RTAX_MTU, struct.pack("=I", route.mtu)))
        body += attribute(RTA_OIF, struct.pack("=i", index))
        where = f"{route.destination}/{route.prefix}" if route.destination else "default"
        if route.gateway is not None:
            where += f" via {route.gateway}"
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add route {where}")


def _number(value: bytes | None) -> int | None:
    """Return a 32-bit attribute as a number, None when it is absent or of another length."""
    return None if value is None or len(value) != 4 else int.from_bytes(value, sys.byteorder)


def parse_link(body: bytes) -> LinkInfo | None:
    """Read an RTM_NEWLINK (struct ifinfomsg and attributes); None when it is none."""
    if len(body) < 16:
        return None
    _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
    found = dict(attributes(body[16:]))
    mac = found.get(IFLA_ADDRESS, b"")
    name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="surrogateescape")
    return LinkInfo(index, name, flags, _number(found.get(IFLA_MTU)) or 0, mac if len(mac) == 6 and any(mac) else None)


def parse_address(family: int, body: bytes) -> HostAddress | None:
    """Read an RTM_NEWADDR (struct ifaddrmsg and attributes); None when it is none of this family."""
    if len(body) < 8:
        return None
    of, prefix, flags, scope, index = struct.unpack_from("=BBBBi", body)
    found = dict(attributes(body[8:]))
    # Of a point-to-point link IFA_ADDRESS is the peer's
    text = _unpack(of, found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b""))
    if of != family or text is None or prefix > _bits(family):
        return None
    all_flags = _number(found.get(IFA_FLAGS))
    broadcast = _unpack(of, found.get(IFA_BROADCAST, b""))
    return HostAddress(index, Address(text, prefix, scope, flags if all_flags is None else all_flags, broadcast))


def parse_route(family: int, body: bytes) -> tuple[Route, tuple[Hop, ...], int] | None:
    """Read an RTM_NEWROUTE (struct rtmsg and attributes): the route, its next hops, or the next hop object it goes by.

    None when it is no unicast route of the main table of this family.
    """
    if len(body) < 12:
        return None
    of, length, _, _, short_table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", body)
    found = dict(attributes(body[12:]))
    table = _number(found.get(RTA_TABLE)) or short_table
    if of != family or kind != RTN_UNICAST or table != RT_TABLE_MAIN or length > _bits(family):
        return None
    destination = _unpack(of, found.get(RTA_DST, b"")) if length else None
    if length and destination is None:
        return None
    route = Route(
        destination=destination,
        prefix=length,
        gateway=None,
        metric=_number(found.get(RTA_PRIORITY)) or 0,
        source=_unpack(of, found.get(RTA_PREFSRC, b"")),
        scope=scope,
        protocol=protocol,
        mtu=_route_mtu(found.get(RTA_METRICS, b"")),
    )
    if RTA_OIF in found or RTA_MULTIPATH in found:
        return route, _hops(family, found, flags), 0
    return route, (), _number(found.get(RTA_NH_ID)) or 0


def resolve_next_hops(bodies: Iterable[bytes]) -> dict[int, tuple[Hop, ...]]:
    """Return the next hops by id out of RTM_NEWNEXTHOP messages (struct nhmsg and attributes), groups resolved."""
    single: dict[int, Hop] = {}
    groups: dict[int, list[tuple[int, int]]] = {}
    for body in bodies:
        if len(body) < 8:
            continue
        family, _, _, _, flags = struct.unpack_from("=BBBBI", body)
        found = dict(attributes(body[8:]))
        key = _number(found.get(NHA_ID))
        if key is None:
            continue
        device = _number(found.get(NHA_OIF))
        if NHA_GROUP in found:
            data = found[NHA_GROUP]  # struct nexthop_grp: id, weight - 1, and three bytes not needed here
            entries = (struct.unpack_from("=IB", data, at) for at in range(0, len(data) - 7, 8))
            groups[key] = [(member, weight + 1) for member, weight in entries]
        elif device is not None:
            single[key] = Hop(device, _unpack(family, found.get(NHA_GATEWAY, b"")), 1, flags)
    result: dict[int, tuple[Hop, ...]] = {key: (hop,) for key, hop in single.items()}
    for key, members in groups.items():
        result[key] = tuple(single[member]._replace(weight=weight) for member, weight in members if member in single)
    return result


def _bits(family: int) -> int:
    return 32 if family == sockets.AF_INET else 128


def _hops(family: int, found: dict[int, bytes], flags: int) -> tuple[Hop, ...]:
    """Return the next hops of a route message."""
    if RTA_MULTIPATH in found:
        data = found[RTA_MULTIPATH]
        at = 0
        hops = []
        while at + 8 <= len(data):
            length, hop_flags, weight, index = struct.unpack_from("=HBBi", data, at)
            if length < 8 or at + length > len(data):
                break
            inner = dict(attributes(data[at + 8 : at + length]))
            hops.append(Hop(index, _gateway(family, inner), weight + 1, hop_flags))
            at += (length + 3) & ~3
        return tuple(hops)
    device = _number(found.get(RTA_OIF))
    return () if device is None else (Hop(device, _gateway(family, found), 1, flags),)


def _gateway(family: int, found: dict[int, bytes]) -> str | None:
    if RTA_GATEWAY in found:
        return _unpack(family, found[RTA_GATEWAY])
    if len(found.get(RTA_VIA, b"")) > 2:
        of = struct.unpack_from("=H", found[RTA_VIA])[0]
        return _unpack(of, found[RTA_VIA][2:]) if of in (sockets.AF_INET, sockets.AF_INET6) else None
    return None


def _route_mtu(metrics: bytes) -> int:
    return _number(dict(attributes(metrics)).get(RTAX_MTU)) or 0
