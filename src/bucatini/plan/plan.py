"""`HostView` (what the host has) and `Plan` (what this instance does), and how the second follows from the first.

Pure data and rules: nothing here reads the host. `bucatini.host.view` makes a `HostView`, `make_plan` a `Plan`,
everything later (namespace, services, data path) takes its values from the `Plan` alone.
"""

from __future__ import annotations

from bucatini.errors import UsageError
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bucatini.plan.settings import Settings

LOCAL_ADDRESS4 = "169.254.2.1"  # the guest's, when the host has no usable IPv4 interface
LOCAL_GATEWAY4 = "169.254.2.2"
LOCAL_GATEWAY6 = "fe80::1"
DEFAULT_MTU = 65520  # bytes
OUR_MAC = bytes.fromhex("9a559a559a55")
IFA_F_TEMPORARY = 0x01  # linux/if_addr.h
IFA_F_NOPREFIXROUTE = 0x200
IPV6_MIN_MTU = 1280  # bytes, RFC 8200 §5


class Address(NamedTuple):
    """An address of an interface."""

    address: str
    prefix: int  # bits
    scope: int = 0  # RT_SCOPE_*
    flags: int = 0  # IFA_F_*
    broadcast: str | None = None


class Route(NamedTuple):
    """A route as rtnetlink gives it, with what a copy in the namespace needs."""

    destination: str | None  # None: default
    prefix: int
    gateway: str | None  # None: on link
    metric: int = 0
    source: str | None = None  # preferred source
    scope: int = 0
    table: int = 254
    protocol: int = 0
    type: int = 1
    flags: int = 0
    mtu: int = 0  # RTAX_MTU, 0: none


class HostFamily(NamedTuple):
    """The template for one IP version."""

    ifindex: int  # 0: no usable interface (local mode)
    ifname: str
    addresses: tuple[Address, ...]  # usable for the guest; the first is the guest's by default
    routes: tuple[Route, ...]
    gateway: str | None  # default gateway (multipath: the heaviest hop)


class HostView(NamedTuple):
    """What start-up found on the host."""

    v4: HostFamily | None  # None: the host has no IPv4, or it was not asked for
    v6: HostFamily | None
    mac: bytes | None  # of the template interface, 6 bytes; None: it has none
    nameservers: tuple[str, ...]  # of resolv.conf, in order
    search: tuple[str, ...]


class PlanFamily(NamedTuple):
    """One IP version of the instance."""

    address: str | None  # assigned to the guest; None: IPv6 without a global address
    prefix: int
    gateway: str  # default gateway the guest is told
    explicit: bool  # the address was given with -a: never learnt from the guest's traffic
    our_address: str  # what we answer for: IPv4 gateway; IPv6 our link-local address
    addresses: tuple[Address, ...]  # all that --config-net puts on the tap
    routes: tuple[Route, ...]  # all that --config-net installs
    scope_ifindex: int  # host interface for link-local IPv6 destinations, 0: none
    map_host_loopback: str | None  # guest traffic to it reaches the host's loopback
    map_guest_addr: str | None  # guest traffic to it reaches the host's address that the guest shadows
    host_address: str | None  # the host's own address that the guest shadows
    dns_forward: str | None  # ports 53 and 853 to it go to dns_host
    dns_host: str | None
    dns: tuple[str, ...]  # resolvers announced
    resolver_is_gateway: bool  # port 53 of the gateway is the real resolver's, not our loopback's (D2)
    outbound: str | None
    outbound_if: str | None


class Plan(NamedTuple):
    """What this instance does."""

    v4: PlanFamily | None
    v6: PlanFamily | None
    our_mac: bytes
    guest_mac: bytes | None  # of the tap, when we choose it
    ifname: str  # of the tap
    mtu: int  # of the tap and as announced, bytes; 0: announce none
    search: tuple[str, ...]  # search list announced
    warnings: tuple[str, ...]  # for the user, once


def make_plan(settings: Settings, host: HostView) -> Plan:
    """Combine what was asked for with what the host has.

    Raises:
        UsageError: the two do not go together; names the option and its value.
    """
    warnings: list[str] = []
    if host.v4 is None and host.v6 is None:
        raise UsageError("neither IPv4 nor IPv6 is left: this host has no IPv6, or both were switched off")
    our_mac = settings.mac_addr or OUR_MAC
    v4 = v6 = None
    if host.v4 is not None:
        v4 = _plan4(settings, host, host.v4, warnings)
    mtu = DEFAULT_MTU if settings.mtu is None else settings.mtu
    small = 0 < mtu < IPV6_MIN_MTU
    if small and host.v6 is not None:
        if v4 is None or settings.address6 is not None or settings.gateway6 is not None:
            raise UsageError(f"--mtu: '{mtu}' is too small for IPv6, which needs {IPV6_MIN_MTU}")
        warnings.append(f"IPv6 is off: an MTU of {mtu} is too small for it")
    elif host.v6 is not None:
        v6 = _plan6(settings, host, host.v6, our_mac, warnings)
    local = [f for f in (host.v4, host.v6) if f is not None]
    if all(not f.ifindex for f in local):
        warnings.append("no interface with a route on this host: local mode, only the host itself can be reached")
    template = next((f.ifname for f in local if f.ifindex and f.ifname != "lo"), "tap0")
    search = () if not settings.dhcp_search else host.search if settings.search is None else settings.search
    return Plan(
        v4=_within(v4, mtu),
        v6=_within(v6, mtu),
        our_mac=our_mac,
        guest_mac=settings.ns_mac_addr,
        ifname=settings.ns_ifname or template,
        mtu=mtu,
        search=search,
        warnings=tuple(warnings),
    )


def _within(family: PlanFamily | None, mtu: int) -> PlanFamily | None:
    """Let no route promise more than the link has (`mtu`, 0: whatever it has)."""
    if family is None or not mtu:
        return family
    return family._replace(routes=tuple(route._replace(mtu=min(route.mtu, mtu)) for route in family.routes))


def _is_v6(address: str) -> bool:
    return ":" in address


def _own_gateway(address: str | None, gateway: str) -> None:
    """Refuse a guest that would be its own gateway."""
    if address == gateway:
        raise UsageError(f"--gateway: '{gateway}' is the address of the namespace itself (--address)")


def _has_resolver(host: HostView, gateway: str) -> bool:
    """Whether the gateway is one of the host's resolvers; those of IPv6 may bear a scope id."""
    return any(server.partition("%")[0] == gateway for server in host.nameservers)


def _is_loopback(address: str) -> bool:
    return address == "::1" or address.startswith("127.")


def _bits(address: str) -> int:
    raw = sockets.inet_pton(sockets.AF_INET6 if _is_v6(address) else sockets.AF_INET, address.partition("%")[0])
    return int.from_bytes(raw, "big")


def in_prefix(address: str, network: str, prefix: int) -> bool:
    """Whether `address` is inside `network`/`prefix`; both of one IP version."""
    shift = (128 if _is_v6(address) else 32) - prefix
    return _bits(address) >> shift == _bits(network) >> shift


def _class_prefix(address: str) -> int:
    """Return the prefix length of the address's class (RFC 791 §2.3), as a last resort."""
    first = int(address.split(".", 1)[0])
    return 8 if first < 128 else 16 if first < 192 else 24 if first < 224 else 32


def _one(addresses: tuple[str, ...] | None, v6: bool) -> str | None:
    """Return the address of this version among those of a mapping."""
    return next((a for a in addresses or () if _is_v6(a) == v6), None)


def _loopback_map(settings: Settings, gateway: str) -> str | None:
    v6 = _is_v6(gateway)
    if settings.map_host_loopback is not None:
        chosen = _one(settings.map_host_loopback, v6)
        if chosen is not None or settings.map_host_loopback == ():
            return chosen
    return None if settings.no_map_gw else gateway


class _Names(NamedTuple):
    """Resolvers, of one IP version."""

    announced: tuple[str, ...]
    host: str | None  # the one that the host uses
    forward: str | None  # address whose queries go to that one


def _names(
    settings: Settings, host: HostView, v6: bool, own: set[str], mapped: str | None, warnings: list[str]
) -> _Names:
    """Find out which resolver the host uses, and how the guest reaches it.

    One on the host's loopback, or at an address that the guest has too (`own`), is not reached at its own address. It
    is where --dns-forward says, or else at the address that maps to the host's loopback (`mapped`), for queries alone:
    a stub need not listen on the loopback address that one leads to (127.0.0.53).
    """
    servers = [server for server in host.nameservers if _is_v6(server) == v6]
    asked, forward = (settings.dns_host6, settings.dns_forward6) if v6 else (settings.dns_host4, settings.dns_forward4)
    resolver = asked or (servers[0] if servers else None)
    if forward is not None and resolver is None:
        warnings.append(f"no name server of this IP version on the host: queries to {forward} will not be answered")

    def is_here(server: str) -> bool:
        return _is_loopback(server) or server in own

    if forward is None and resolver is not None and is_here(resolver) and mapped not in servers:
        forward = mapped  # unless it is a resolver itself, which is asked there (D2)
    if not settings.dhcp_dns:
        return _Names((), resolver, forward)
    if settings.dns is not None:
        return _Names(tuple(server for server in settings.dns if _is_v6(server) == v6), resolver, forward)
    announced = []
    for server in servers:
        seen = (forward or mapped) if is_here(server) else server
        if seen is not None and seen not in announced:
            announced.append(seen)
    return _Names(tuple(announced), resolver, forward)


def host_address(family: HostFamily) -> str | None:
    """Return the address of the host that lasts: not a temporary one of IPv6 (RFC 8981) where there are others."""
    lasting = [a for a in family.addresses if not _is_v6(a.address) or not a.flags & IFA_F_TEMPORARY]
    return next((a.address for a in lasting or family.addresses), None)


def _copies_routes(settings: Settings, family: HostFamily, gateway_given: bool) -> bool:
    return bool(family.ifindex) and settings.copy_routes and not gateway_given


def _addresses(
    own: tuple[Address, ...], settings: Settings, family: HostFamily, given: bool, gateway_given: bool
) -> tuple[Address, ...]:
    """Return the addresses for the namespace: the host's where they are copied, else `own`."""
    if given or not settings.copy_addrs or not family.addresses:
        return own
    if _copies_routes(settings, family, gateway_given):
        return family.addresses
    # The route to its own network comes with the address, as none is copied
    return tuple(a._replace(flags=a.flags & ~IFA_F_NOPREFIXROUTE) for a in family.addresses)


def _routes(
    settings: Settings, family: HostFamily, address: str | None, prefix: int, gateway: str, given: bool, kept: set[str]
) -> tuple[Route, ...]:
    """Return the routes for the namespace, in an order in which the kernel takes them: what is on link first."""
    length = 128 if _is_v6(gateway) else 32
    if _copies_routes(settings, family, given):
        routes = [r if r.source in kept else r._replace(source=None) for r in family.routes]
        routes.sort(key=lambda r: (r.gateway is not None, r.gateway is not None and r.destination is None, -r.prefix))
        if family.gateway is not None or any(r.destination is None for r in routes):
            return tuple(routes)
    else:
        routes = []
    linklocal = _is_v6(gateway) and gateway.startswith("fe80")
    if not linklocal and (address is None or not in_prefix(gateway, address, prefix)):
        routes.append(Route(gateway, length, None))
    routes.append(Route(None, 0, gateway))
    return tuple(routes)


def _plan4(settings: Settings, host: HostView, family: HostFamily, warnings: list[str]) -> PlanFamily:
    first = family.addresses[0] if family.addresses else None
    prefix = settings.prefix4
    if settings.address4 is not None:
        address = settings.address4
        if prefix is None:
            same = [a.prefix for a in family.addresses if a.address == address]
            prefix = same[0] if same else _class_prefix(address)
    elif first is not None:
        address, prefix = first.address, first.prefix if prefix is None else prefix
    else:
        address, prefix = LOCAL_ADDRESS4, 16 if prefix is None else prefix
    gateway = settings.gateway4 or family.gateway or LOCAL_GATEWAY4
    _own_gateway(address, gateway)
    given = settings.address4 is not None or settings.prefix4 is not None
    addresses = _addresses((Address(address, prefix),), settings, family, given, settings.gateway4 is not None)
    mapped = _loopback_map(settings, gateway)
    names = _names(settings, host, False, {address} | {a.address for a in addresses}, mapped, warnings)
    return PlanFamily(
        address=address,
        prefix=prefix,
        gateway=gateway,
        explicit=settings.address4 is not None,
        our_address=gateway,
        addresses=addresses,
        routes=_routes(
            settings, family, address, prefix, gateway, settings.gateway4 is not None, {a.address for a in addresses}
        ),
        scope_ifindex=family.ifindex,
        map_host_loopback=mapped,
        map_guest_addr=_one(settings.map_guest_addr, False),
        host_address=host_address(family),
        dns_forward=names.forward,
        dns_host=names.host,
        dns=names.announced,
        resolver_is_gateway=_has_resolver(host, gateway),
        outbound=settings.outbound4,
        outbound_if=settings.outbound_if4,
    )


def link_local_of(mac: bytes) -> str:
    """Return the link-local address of a MAC address (RFC 4291 appendix A)."""
    identifier = bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:]
    return sockets.inet_ntop(sockets.AF_INET6, b"\xfe\x80" + bytes(6) + identifier)


def _plan6(settings: Settings, host: HostView, family: HostFamily, our_mac: bytes, warnings: list[str]) -> PlanFamily:
    first = family.addresses[0] if family.addresses else None
    prefix = settings.prefix6
    if settings.address6 is not None:
        address: str | None = settings.address6
        if prefix is None:
            same = [a.prefix for a in family.addresses if a.address == address]
            prefix = same[0] if same else 64
    elif first is not None:
        address, prefix = first.address, first.prefix if prefix is None else prefix
    else:
        address, prefix = None, 64
    gateway = settings.gateway6 or family.gateway or LOCAL_GATEWAY6
    _own_gateway(address, gateway)
    own = () if address is None else (Address(address, prefix),)
    given = settings.address6 is not None
    addresses = _addresses(own, settings, family, given, settings.gateway6 is not None)
    mapped = _loopback_map(settings, gateway)
    names = _names(settings, host, True, {a.address for a in (*own, *addresses)}, mapped, warnings)
    return PlanFamily(
        address=address,
        prefix=prefix,
        gateway=gateway,
        explicit=settings.address6 is not None,
        our_address=gateway if gateway.startswith("fe80") else link_local_of(our_mac),
        addresses=addresses,
        routes=_routes(
            settings, family, address, prefix, gateway, settings.gateway6 is not None, {a.address for a in addresses}
        ),
        scope_ifindex=family.ifindex,
        map_host_loopback=mapped,
        map_guest_addr=_one(settings.map_guest_addr, True),
        host_address=host_address(family),
        dns_forward=names.forward,
        dns_host=names.host,
        dns=names.announced,
        resolver_is_gateway=_has_resolver(host, gateway),
        outbound=settings.outbound6,
        outbound_if=settings.outbound_if6,
    )
