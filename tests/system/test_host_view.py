"""What is found on hosts of every kind, and what of it arrives in the namespace (D9, D13, D14)."""

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from bucatini.host import netlink, view
from bucatini.host.view import look_at_host
from bucatini.lean import sockets
from bucatini.plan.plan import HostView
from bucatini.plan.settings import Settings
from system.namespaces import NamedNamespace
from system.topology import GATEWAY4, HOST4, Pasta
from system.users import only_unprivileged

NUMBERS = iter(range(1000))


@pytest.fixture
def host(clean: None) -> Iterator[NamedNamespace]:
    """A host with two interfaces, up and without addresses."""
    with NamedNamespace(f"bucatini-{os.getpid()}-view-{next(NUMBERS)}") as made:
        made.sysctl(net__ipv6__conf__default__accept_dad=0, net__ipv6__conf__all__accept_dad=0)
        made.ip(
            "link set lo up",
            "link add one type veth peer name one-peer",
            "link add two type veth peer name two-peer",
            *(f"link set {name} up" for name in ("one", "one-peer", "two", "two-peer")),
        )
        yield made


def seen(host: NamedNamespace, **settings: Any) -> HostView:
    return host.inside(lambda: look_at_host(Settings(**settings)))


def test_D12_with_nothing_but_lo_there_is_no_template(host: NamedNamespace) -> None:
    found = seen(host)
    assert found.v4 is not None
    assert (found.v4.ifindex, found.v4.addresses, found.v4.gateway) == (0, (), None)
    assert found.mac is None


def test_the_default_route_of_least_metric_leads(host: NamedNamespace) -> None:
    host.ip(
        "address add 192.0.2.2/24 dev one", "address add 198.51.100.2/24 dev two",
        "route add default via 192.0.2.1 metric 200", "route add default via 198.51.100.1 metric 100",
    )  # fmt: skip
    found = seen(host).v4
    assert found is not None
    assert (found.ifname, found.gateway, found.addresses[0].address) == ("two", "198.51.100.1", "198.51.100.2")
    other = seen(host, interface="one").v4
    assert other is not None
    assert (other.ifname, other.gateway) == ("one", "192.0.2.1")


def test_D13_without_a_default_route_any_route_leads(host: NamedNamespace) -> None:
    host.ip("address add 198.51.100.2/24 dev two", "address add 2001:db8::2/64 dev two nodad")
    found = seen(host)
    assert found.v4 is not None
    assert found.v6 is not None
    assert (found.v4.ifname, found.v4.gateway) == ("two", None)
    assert (found.v6.ifname, found.v6.gateway) == ("two", None)


@pytest.mark.parametrize("objects", [False, True])
def test_D13_of_several_hops_the_heaviest_leads(host: NamedNamespace, objects: bool) -> None:
    host.ip("address add 192.0.2.2/24 dev one", "address add 198.51.100.2/24 dev two")
    if objects:
        host.ip(
            "nexthop add id 1 via 192.0.2.1 dev one", "nexthop add id 2 via 198.51.100.1 dev two",
            "nexthop add id 9 group 1,10/2,20", "route add default nhid 9",
        )  # fmt: skip
    else:
        host.ip("route add default nexthop via 192.0.2.1 dev one weight 10 nexthop via 198.51.100.1 dev two weight 20")
    found = seen(host).v4
    assert found is not None
    assert (found.ifname, found.gateway) == ("two", "198.51.100.1")


@pytest.mark.parametrize("compatible", [0, 1])
def test_D13_next_hop_objects_are_looked_up_where_routes_only_name_them(host: NamedNamespace, compatible: int) -> None:
    host.sysctl(net__ipv4__nexthop_compat_mode=compatible)
    host.ip(
        "address add 192.0.2.2/24 dev one", "address add 2001:db8::2/64 dev one nodad",
        "nexthop add id 4 via 192.0.2.1 dev one", "nexthop add id 6 via 2001:db8::1 dev one",
        "route add default nhid 4", "route add ::/0 nhid 6",
    )  # fmt: skip
    found = seen(host)
    assert found.v4 is not None
    assert found.v6 is not None
    assert (found.v4.gateway, found.v6.gateway) == ("192.0.2.1", "2001:db8::1")


def test_D13_dead_hops_do_not_lead(host: NamedNamespace) -> None:
    host.ip(
        "address add 192.0.2.2/24 dev one", "address add 198.51.100.2/24 dev two",
        "route add default nexthop via 192.0.2.1 dev one weight 20 nexthop via 198.51.100.1 dev two weight 10",
    )  # fmt: skip
    host.sysctl(net__ipv4__conf__one__ignore_routes_with_linkdown=1)
    host.ip("link set one-peer down")
    found = seen(host).v4
    assert found is not None
    assert (found.ifname, found.gateway) == ("two", "198.51.100.1")


def test_D13_a_tun_has_no_mac_and_needs_no_gateway(host: NamedNamespace) -> None:
    host.ip(
        "tuntap add dev tun7 mode tun", "link set tun7 up", "address add 10.8.0.2 peer 10.8.0.1/32 dev tun7",
        "route add default dev tun7",
    )  # fmt: skip
    found = seen(host, interface="tun7")
    assert found.v4 is not None
    assert (found.mac, found.v4.gateway) == (None, None)
    assert (found.v4.addresses[0].address, found.v4.addresses[0].prefix) == ("10.8.0.2", 32)


def test_deprecated_and_local_addresses_come_last_or_not_at_all(host: NamedNamespace) -> None:
    host.ip(
        "address add 169.254.7.7/16 dev one scope link", "address add 192.0.2.2/24 dev one",
        "address add 2001:db8::3/64 dev one nodad preferred_lft 0", "address add 2001:db8::2/64 dev one nodad",
    )  # fmt: skip
    found = seen(host)
    assert found.v4 is not None
    assert found.v6 is not None
    assert [a.address for a in found.v4.addresses] == ["192.0.2.2", "169.254.7.7"]
    assert [a.address for a in found.v6.addresses] == ["2001:db8::2", "2001:db8::3"]


def test_D9_without_ipv6_in_the_kernel_there_is_none(host: NamedNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sockets.socket

    def refusing(family: int = -1, *rest: Any, **more: Any) -> sockets.socket:
        if family == sockets.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest, **more)

    monkeypatch.setattr(sockets, "socket", refusing)
    assert not view.has_ipv6()
    assert seen(host).v6 is None


def test_a_large_host_is_read_whole_as_ip_and_pyroute2_read_it(host: NamedNamespace) -> None:
    host.ip(
        "address add 192.0.2.2/24 dev one",
        *(f"route add 10.{n >> 8}.{n & 255}.0/24 via 192.0.2.1 metric {n + 1}" for n in range(3000)),
        *(f"address add 2001:db8:{n:x}::1/64 dev two nodad" for n in range(500)),
    )

    def read() -> tuple[list[netlink.HostRoute], list[netlink.HostAddress]]:
        link = netlink.Netlink()
        try:
            return link.routes(socket.AF_INET), link.addresses(socket.AF_INET6)
        finally:
            link.close()

    routes, addresses = host.inside(read)
    shown = json.loads(host.run("ip", "-j", "-4", "route").stdout)
    assert {(r.route.destination, r.route.gateway, r.route.metric) for r in routes} == {
        (r["dst"].partition("/")[0], r.get("gateway"), r.get("metric", 0)) for r in shown
    }
    assert len(routes) == len(shown) == 3001

    def read_by_pyroute2() -> set[tuple[int, str, int, int]]:
        with IPRoute() as other:
            return {
                (m["index"], m.get_attr("IFA_ADDRESS"), m["prefixlen"], m.get_attr("IFA_FLAGS"))
                for m in other.get_addr(family=socket.AF_INET6)
            }

    # In a thread, not by its NetNS: that forks this process, in which other threads may hold locks
    assert {(a.ifindex, a.address.address, a.address.prefix, a.address.flags) for a in addresses} == host.inside(
        read_by_pyroute2
    )
    assert len(addresses) > 500


# What arrives


HOSTS = {
    "noprefixroute": (
        "address flush dev host0",
        f"address add {HOST4}/24 dev host0 noprefixroute",
        "route add 192.0.2.0/24 dev host0 metric 100",
        f"route add default via {GATEWAY4} dev host0 metric 100",
    ),
    "on-link gateway": (
        "address flush dev host0",
        "address add 10.7.7.7/32 dev host0",
        f"route add default via {GATEWAY4} dev host0 onlink",
    ),
    "multipath": (
        f"route replace default nexthop via {GATEWAY4} dev host0 weight 9 nexthop via 203.0.113.1 dev extra0",
    ),
    "next hop object": (f"nexthop add id 5 via {GATEWAY4} dev host0", "route replace default nhid 5"),
    "two default routes": (f"route add default via {GATEWAY4} dev host0 metric 500",),
    "no default route": ("route delete default",),
    "gateway of IPv6": ("route replace default via inet6 2001:db8::1 dev host0",),
    "on-link gateway of IPv6": ("route replace default via inet6 fe80::1 dev host0 onlink",),
}


@only_unprivileged
@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
    "options", [(), ("-g", "192.0.2.77"), ("--no-copy-routes",), ("-a", "10.1.2.3/24")], ids=" ".join
)
def test_D13_the_namespace_of_an_unusual_host_has_a_default_route(
    pasta: Pasta, name: str, options: tuple[str, ...]
) -> None:
    pasta.topology.host.ip(*HOSTS[name])
    result = pasta.run("-q", "--config-net", "-4", *options, command=["ip", "-j", "route", "get", "198.51.100.1"])
    assert result.stderr == ""
    assert json.loads(result.stdout)[0]["dev"] in {"host0", "extra0"}


def test_D14_addresses_do_not_expire_and_need_no_detection(pasta: Pasta) -> None:
    pasta.topology.host.ip(
        f"address change {HOST4}/24 dev host0 valid_lft 3600 preferred_lft 1800",
        "address change 2001:db8::2/64 dev host0 valid_lft 3600 preferred_lft 1800 nodad",
    )
    result = pasta.run("-q", "--config-net", command=["ip", "-j", "address", "show", "dev", "host0"])
    addresses = json.loads(result.stdout)[0]["addr_info"]
    assert {HOST4, "2001:db8::2"} <= {address["local"] for address in addresses}
    for address in addresses:
        assert address["valid_life_time"] == 0xFFFFFFFF
        assert address["preferred_life_time"] == 0xFFFFFFFF
        assert not address.get("tentative")


def test_a_small_mtu_is_met_without_ipv6(pasta: Pasta) -> None:
    result = pasta.run("-q", "--config-net", "-m", "1000", command=["ip", "-j", "link", "show", "dev", "host0"])
    assert json.loads(result.stdout)[0]["mtu"] == 1000
