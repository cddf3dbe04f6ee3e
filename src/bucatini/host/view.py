"""What the host has, as start-up finds it: a template interface per IP version, its addresses and routes, resolvers.

The template is the interface asked for, else that of the default route with the lowest metric, else the first one with
any route; with none, the version is in local mode (`HostFamily.ifindex` 0). Nothing here changes the host.

A host may move from one network to another, or get its first one late: `HostWatch` knows what is its own (D15, D16).
"""

from __future__ import annotations

import errno

from bucatini.errors import UsageError
from bucatini.host import netlink, resolv
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING, NamedTuple
from bucatini.plan.plan import Address, HostFamily, HostView, Route, host_address

if TYPE_CHECKING:
    from bucatini.plan.settings import Settings

SCOPE_HOST = 254  # linux/rtnetlink.h


def look_at_host(settings: Settings) -> HostView:
    """Read the host's view as far as `settings` needs it.

    Raises:
        UsageError: an interface that was asked for does not exist.
        HostError: netlink is refused.
    """
    link = netlink.Netlink()
    try:
        links = {info.ifindex: info for info in link.links()}
        v4, v6 = _families(link, links, settings, ipv6=has_ipv6())
    finally:
        link.close()
    for option, name in (
        ("--interface", settings.interface),
        ("--outbound-if4", settings.outbound_if4),
        ("--outbound-if6", settings.outbound_if6),
    ):
        if name is not None and all(info.name != name for info in links.values()):
            raise UsageError(f"{option}: no interface '{name}' on this host")
    mac = None
    for family in (v4, v6):
        if family is not None and family.ifindex and mac is None:
            mac = links[family.ifindex].mac
    servers, search = resolv.read()
    return HostView(v4, v6, mac, servers, search)


def has_ipv6() -> bool:
    """Whether this kernel has IPv6 at all (it does not with ipv6.disable=1)."""
    try:
        sockets.socket(sockets.AF_INET6, sockets.SOCK_DGRAM | sockets.SOCK_CLOEXEC).close()
    except OSError as error:
        if error.errno == errno.EAFNOSUPPORT:
            return False
        raise
    return True


def _usable(family: int, address: Address) -> bool:
    if family == sockets.AF_INET:
        return address.scope < SCOPE_HOST
    return address.scope == netlink.RT_SCOPE_UNIVERSE and not address.flags & netlink.IFA_F_TENTATIVE


def _counts(family: int, route: Route) -> bool:
    """Whether a route says that the interface leads somewhere."""
    return family == sockets.AF_INET or route.destination is None or not route.destination.startswith(("fe80", "ff"))


def _families(
    link: netlink.Netlink, links: dict[int, netlink.LinkInfo], settings: Settings, *, ipv6: bool
) -> tuple[HostFamily | None, HostFamily | None]:
    """Return the templates of IPv4 and IPv6, None for what is off."""
    v4 = v6 = None
    if not settings.ipv6_only:
        v4 = _family(link, sockets.AF_INET, links, settings.interface or settings.outbound_if4)
    if not settings.ipv4_only and ipv6:
        v6 = _family(link, sockets.AF_INET6, links, settings.interface or settings.outbound_if6)
    return v4, v6


class Own(NamedTuple):
    """What is the host's own, of one IP version."""

    address: str  # empty: there is none
    ifindex: int  # of the template interface, 0: there is none


NOTHING = Own("", 0)


def own(family: HostFamily | None) -> Own:
    """Return what is the host's own according to a template."""
    return NOTHING if family is None else Own(host_address(family) or "", family.ifindex)


class HostWatch:
    """Knows when the host's own addresses may have changed, and what they are."""

    def __init__(self, settings: Settings) -> None:
        """Open what is needed; HostError."""
        self.settings = settings
        self.ipv6 = has_ipv6()
        self.changes = netlink.Changes()
        self.link = netlink.Netlink()

    def held(self) -> set[int]:
        """The descriptors."""
        return {self.changes.fileno(), self.link.sock.fileno()}

    def look(self) -> tuple[Own, Own]:
        """Return what is the host's own now, of IPv4 and IPv6; HostError."""
        links = {info.ifindex: info for info in self.link.links()}
        v4, v6 = _families(self.link, links, self.settings, ipv6=self.ipv6)
        return own(v4), own(v6)


def _family(link: netlink.Netlink, family: int, links: dict[int, netlink.LinkInfo], wanted: str | None) -> HostFamily:
    """Return the template of one IP version."""
    routes = [entry for entry in link.routes(family) if _counts(family, entry.route)]
    loopbacks = {index for index, info in links.items() if info.flags & netlink.IFF_LOOPBACK}
    index = 0
    if wanted is not None:
        index = next((info.ifindex for info in links.values() if info.name == wanted), 0)
    else:
        outward = [e for e in routes if e.hops[0].ifindex in links and e.hops[0].ifindex not in loopbacks]
        defaults = sorted((e for e in outward if e.route.destination is None), key=lambda e: e.route.metric)
        if defaults or outward:
            index = (defaults or outward)[0].hops[0].ifindex
    if not index:
        return HostFamily(0, "", (), (), None)
    mine: list[Route] = []
    gateways: list[tuple[int, str]] = []
    for entry in routes:
        for hop in entry.hops:
            if hop.ifindex == index:
                gateway, flags = hop.gateway, hop.flags & netlink.RTNH_F_ONLINK
                if gateway is None or netlink.family_of(gateway) != family:
                    gateway, flags = None, 0  # the kernel takes "onlink" with a gateway alone
                mine.append(entry.route._replace(gateway=gateway, flags=flags))
                if entry.route.destination is None and gateway is not None:
                    gateways.append((entry.route.metric, gateway))
                break
    found = [entry.address for entry in link.addresses(family) if entry.ifindex == index]
    usable = [address for address in found if _usable(family, address)]
    # Deprecated ones last, and IPv4 link-local ones behind others; else in the kernel's order
    usable.sort(key=lambda address: (bool(address.flags & netlink.IFA_F_DEPRECATED), address.scope))
    gateways.sort(key=lambda pair: pair[0])
    return HostFamily(index, links[index].name, tuple(usable), tuple(mine), gateways[0][1] if gateways else None)
