"""`HostView` (what the host has) and `Plan` (what this instance does), and how the second follows from the first.

Pure data and rules: nothing here reads the host. `bucatini.host.view` makes a `HostView`, `make_plan` a `Plan`,
everything later (namespace, services, data path) takes its values from the `Plan` alone.
"""

from typing import NamedTuple

LOCAL_ADDRESS4 = "169.254.2.1"  # the guest's, when the host has no usable IPv4 interface
LOCAL_GATEWAY4 = "169.254.2.2"
LOCAL_GATEWAY6 = "fe80::1"
DEFAULT_MTU = 65520  # bytes
OUR_MAC = bytes.fromhex("9a559a559a55")


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
