"""Configuring the guest's side, from inside its network namespace: loopback, the tap, addresses and routes.

Loopback always comes up. The tap gets its MAC address; with --config-net also MTU, addresses, routes and the state
"up". Addresses skip duplicate address detection and never expire: they are the host's own. A gateway that no route
leads to (the host has that route elsewhere) is told to be on the link, where it is as far as the guest can see. A
copied route that the kernel refuses all the same is left out and told of; the default route is not.
"""

from __future__ import annotations

import errno

from bucatini.errors import HostError
from bucatini.host.netlink import Netlink
from bucatini.lean import sockets
from bucatini.lean.record import TYPE_CHECKING
from bucatini.plan.plan import Plan, PlanFamily, Route

if TYPE_CHECKING:
    from bucatini.plan.settings import Settings


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl of this namespace where it exists and may be set."""
    try:
        with open(f"/proc/sys/net/{path}", "w") as file:
            file.write(value)
    except OSError:
        pass


def configure(plan: Plan, settings: Settings) -> tuple[bytes, list[str]]:
    """Configure loopback and the tap, if there is one; returns the tap's MAC address, and notes on what was left out.

    Raises:
        HostError: the kernel refuses something that must be.
    """
    notes: list[str] = []
    link = Netlink()
    try:
        links = {info.name: info for info in link.links()}
        link.set_link(links["lo"].ifindex, name="lo")
        if settings.splice_only:
            return bytes(6), notes
        tap = links[plan.ifname]
        if plan.guest_mac is not None:
            link.set_link(tap.ifindex, up=False, mac=plan.guest_mac, name=plan.ifname)
        # The addresses are the host's: no detection of duplicates, also not of the link-local one
        write_sysctl(f"ipv6/conf/{plan.ifname}/accept_dad", "0")
        write_sysctl(f"ipv6/conf/{plan.ifname}/dad_transmits", "0")
        if settings.config_net:
            # An autoconfigured address beside the copied ones would be the source of answers that nobody asked it for
            write_sysctl(f"ipv6/conf/{plan.ifname}/autoconf", "0")
            write_sysctl(f"ipv6/conf/{plan.ifname}/accept_ra", "0")
            if plan.v6 is not None:
                # A new namespace may have inherited it from the host (net.core.devconf_inherit_init_net)
                write_sysctl(f"ipv6/conf/{plan.ifname}/disable_ipv6", "0")
            link.set_link(tap.ifindex, mtu=plan.mtu or None, name=plan.ifname)
            for family in (plan.v4, plan.v6):
                if family is not None:
                    _family(link, tap.ifindex, family, notes)
        return plan.guest_mac or tap.mac or bytes(6), notes
    finally:
        link.close()


def _family(link: Netlink, index: int, family: PlanFamily, notes: list[str]) -> None:
    """Put the addresses and routes of one IP version on the tap."""
    version = sockets.AF_INET6 if ":" in family.gateway else sockets.AF_INET
    for address in family.addresses:
        link.add_address(index, address)
    for route in family.routes:
        try:
            _add_route(link, index, version, route)
        except HostError as error:
            if route.destination is None:
                raise
            notes.append(f"left out: {error}")


def _add_route(link: Netlink, index: int, version: int, route: Route) -> None:
    """Add a route; if nothing leads to its gateway, put that on the link first."""
    try:
        link.add_route(index, version, route)
    except HostError as error:
        if route.gateway is None or error.errno not in (errno.ENETUNREACH, errno.EHOSTUNREACH):
            raise
        link.add_route(index, version, Route(route.gateway, 128 if version == sockets.AF_INET6 else 32, None))
        link.add_route(index, version, route)
