"""A small rtnetlink client (rtnetlink(7), netlink(7)): links, addresses, routes and next hops, read and set.

Purpose. Start-up reads the host's view and configures the tap. It must be quick to import, so a general netlink library
is not used. What it does not do: events, policy rules, traffic control.

A socket belongs to the network namespace in which it was opened. Every attribute is checked against the message it is
in; the kernel's errors become `HostError`; a dump that was interrupted by a change is repeated.
"""

import errno
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from bucatini.errors import HostError
from bucatini.plan.plan import Address, Route

NETLINK_ROUTE = 0  # linux/netlink.h
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
RTM_GETADDR = 22
RTM_NEWROUTE = 24
RTM_GETROUTE = 26
RTM_GETNEXTHOP = 106

IFLA_ADDRESS = 1  # linux/if_link.h
IFLA_IFNAME = 3
IFLA_MTU = 4
IFF_UP = 1
IFF_LOOPBACK = 8

IFA_ADDRESS = 1  # linux/if_addr.h
IFA_LOCAL = 2
IFA_BROADCAST = 4
IFA_CACHEINFO = 6
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
    return socket.inet_pton(family_of(address), address.partition("%")[0])


def family_of(address: str) -> int:
    """Return AF_INET or AF_INET6."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _unpack(family: int, value: bytes) -> str | None:
    """Return an address as text, None when its length is not the family's."""
    if len(value) != (4 if family == socket.AF_INET else 16):
        return None
    return socket.inet_ntop(family, value)


class Netlink:
    """A socket to the kernel's routing tables, of the namespace it is made in."""

    def __init__(self, fd: int | None = None) -> None:
        """Open a socket, or take one over that was opened in another namespace."""
        if fd is not None:
            self.sock = socket.socket(fileno=fd)
        else:
            try:
                self.sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_ROUTE)
                self.sock.setsockopt(270, 12, 1)  # SOL_NETLINK, NETLINK_GET_STRICT_CHK
                self.sock.bind((0, 0))
            except OSError as error:
                raise HostError("open a netlink socket", error.errno or 0) from None
        self.sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self.sock.close()

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self.sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, flags | NLM_F_REQUEST, self.sequence, 0)
        self.sock.send(header + body)

    def _messages(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield type, flags and body of the messages that answer the last request, one datagram."""
        data = self.sock.recv(1 << 20)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, at)
            if length < 16 or at + length > len(data):
                return
            if sequence == self.sequence:
                yield kind, flags, data[at + 16 : at + length]
            at += (length + 3) & ~3

    def request(self, kind: int, flags: int, body: bytes, doing: str) -> None:
        """Send a request and wait for its acknowledgement; HostError when it is refused."""
        self._send(kind, flags | NLM_F_ACK, body)
        while True:
            for answer, _, payload in self._messages():
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
        self._send(kind, NLM_F_DUMP, body)
        result: list[bytes] = []
        interrupted = False
        while True:
            for answer, flags, payload in self._messages():
                interrupted |= bool(flags & NLM_F_DUMP_INTR)
                if answer in (NLMSG_DONE, NLMSG_ERROR):
                    code = struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else 0
                    if code:
                        if -code in (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.EINVAL):
                            return [], False  # a kernel without it (ipv6.disable=1, no next hop objects)
                        raise HostError(doing, -code)
                    return result, interrupted
                result.append(payload)

    # Reading

    def links(self) -> list[LinkInfo]:
        """Return all interfaces."""
        result = []
        for body in self.dump(RTM_GETLINK, struct.pack("=BxHiII", 0, 0, 0, 0, 0), "list interfaces"):
            if len(body) < 16:
                continue
            _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
            found = dict(attributes(body[16:]))
            mac = found.get(IFLA_ADDRESS, b"")
            name = found.get(IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
            mtu = int.from_bytes(found.get(IFLA_MTU, b""), "little")
            result.append(LinkInfo(index, name, flags, mtu, mac if len(mac) == 6 and any(mac) else None))
        return result

    def addresses(self, family: int) -> list[HostAddress]:
        """Return all addresses of a family, in the kernel's order (primary ones first)."""
        result = []
        for body in self.dump(RTM_GETADDR, struct.pack("=BBBBi", family, 0, 0, 0, 0), "list addresses"):
            if len(body) < 8:
                continue
            of, prefix, flags, scope, index = struct.unpack_from("=BBBBi", body)
            found = dict(attributes(body[8:]))
            text = _unpack(of, found.get(IFA_LOCAL) or found.get(IFA_ADDRESS, b""))
            if of != family or text is None:
                continue
            if len(found.get(IFA_FLAGS, b"")) == 4:
                flags = struct.unpack("=I", found[IFA_FLAGS])[0]
            broadcast = _unpack(of, found.get(IFA_BROADCAST, b""))
            result.append(HostAddress(index, Address(text, prefix, scope, flags, broadcast)))
        return result

    def routes(self, family: int) -> list[HostRoute]:
        """Return the unicast routes of the main table of a family; dead next hops are left out."""
        result = []
        objects: dict[int, tuple[Hop, ...]] | None = None
        body = struct.pack("=BBBBBBBBI", family, 0, 0, 0, 0, 0, 0, 0, 0)
        for message in self.dump(RTM_GETROUTE, body, "list routes"):
            if len(message) < 12:
                continue
            of, length, _, _, table, protocol, scope, kind, flags = struct.unpack_from("=BBBBBBBBI", message)
            found = dict(attributes(message[12:]))
            if len(found.get(RTA_TABLE, b"")) == 4:
                table = struct.unpack("=I", found[RTA_TABLE])[0]
            if of != family or kind != RTN_UNICAST or table != RT_TABLE_MAIN:
                continue
            if len(found.get(RTA_NH_ID, b"")) == 4 and RTA_OIF not in found and RTA_MULTIPATH not in found:
                if objects is None:
                    objects = self._next_hops()
                hops = objects.get(struct.unpack("=I", found[RTA_NH_ID])[0], ())
            else:
                hops = _hops(family, found, flags)
            alive = [hop for hop in hops if not hop.flags & RTNH_F_DEAD]
            alive.sort(key=lambda hop: -hop.weight)
            if not alive:
                continue
            route = Route(
                destination=_unpack(of, found.get(RTA_DST, b"")) if length else None,
                prefix=length,
                gateway=alive[0].gateway,
                metric=struct.unpack("=I", found[RTA_PRIORITY])[0] if len(found.get(RTA_PRIORITY, b"")) == 4 else 0,
                source=_unpack(of, found.get(RTA_PREFSRC, b"")),
                scope=scope,
                protocol=protocol,
                flags=alive[0].flags & RTNH_F_ONLINK,
                mtu=_route_mtu(found.get(RTA_METRICS, b"")),
            )
            result.append(HostRoute(route, tuple(alive)))
        return result

    def _next_hops(self) -> dict[int, tuple[Hop, ...]]:
        """Return the next hop objects by id, groups resolved."""
        single: dict[int, Hop] = {}
        groups: dict[int, list[tuple[int, int]]] = {}
        for body in self.dump(RTM_GETNEXTHOP, struct.pack("=BBBBI", 0, 0, 0, 0, 0), "list next hops"):
            if len(body) < 8:
                continue
            family, _, _, _, flags = struct.unpack_from("=BBBBI", body)
            found = dict(attributes(body[8:]))
            if len(found.get(NHA_ID, b"")) != 4:
                continue
            key = struct.unpack("=I", found[NHA_ID])[0]
            if NHA_GROUP in found:
                data = found[NHA_GROUP]
                groups[key] = [
                    (member, weight + 1)
                    for member, weight in (struct.unpack_from("=IB", data, at) for at in range(0, len(data) - 7, 8))
                ]
            elif len(found.get(NHA_OIF, b"")) == 4:
                gateway = _unpack(family, found[NHA_GATEWAY]) if NHA_GATEWAY in found else None
                single[key] = Hop(struct.unpack("=I", found[NHA_OIF])[0], gateway, 1, flags)
        result: dict[int, tuple[Hop, ...]] = {key: (hop,) for key, hop in single.items()}
        for key, members in groups.items():
            result[key] = tuple(
                single[member]._replace(weight=weight) for member, weight in members if member in single
            )
        return result

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
        if address.broadcast and family == socket.AF_INET:
            body += attribute(IFA_BROADCAST, pack(address.broadcast))
        self.request(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE, body, f"add address {address.address}/{address.prefix}")

    def add_route(self, index: int, family: int, route: Route) -> None:
        """Add a route over the interface."""
        scope = RT_SCOPE_LINK if family == socket.AF_INET and route.gateway is None else RT_SCOPE_UNIVERSE
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
        where = f"{route.destination or 'default'}/{route.prefix}" if route.destination else "default"
        self.request(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, body, f"add route {where}")


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
    if len(found.get(RTA_OIF, b"")) != 4:
        return ()
    return (Hop(struct.unpack("=i", found[RTA_OIF])[0], _gateway(family, found), 1, flags),)


def _gateway(family: int, found: dict[int, bytes]) -> str | None:
    if RTA_GATEWAY in found:
        return _unpack(family, found[RTA_GATEWAY])
    if len(found.get(RTA_VIA, b"")) > 2:
        of = struct.unpack_from("=H", found[RTA_VIA])[0]
        return _unpack(of, found[RTA_VIA][2:]) if of in (socket.AF_INET, socket.AF_INET6) else None
    return None


def _route_mtu(metrics: bytes) -> int:
    value = dict(attributes(metrics)).get(RTAX_MTU, b"")
    return int(struct.unpack("=I", value)[0]) if len(value) == 4 else 0
