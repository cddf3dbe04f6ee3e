"""From settings and the host's view to the plan."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bucatini.errors import UsageError
from bucatini.plan.plan import (
    IFA_F_NOPREFIXROUTE,
    IFA_F_TEMPORARY,
    LOCAL_ADDRESS4,
    LOCAL_GATEWAY4,
    LOCAL_GATEWAY6,
    Address,
    HostFamily,
    HostView,
    Plan,
    PlanFamily,
    Route,
    in_prefix,
    make_plan,
)
from bucatini.plan.settings import Settings

FLAG = IFA_F_NOPREFIXROUTE
V4 = HostFamily(
    2, "eth0",
    (Address("192.0.2.2", 24, flags=FLAG), Address("192.0.2.3", 24, flags=FLAG)),
    (Route(None, 0, "192.0.2.1", source="192.0.2.2"), Route("192.0.2.0", 24, None, source="192.0.2.2")),
    "192.0.2.1",
)  # fmt: skip
V6 = HostFamily(
    2, "eth0", (Address("2001:db8::2", 64),),
    (Route(None, 0, "fe80::9"), Route("2001:db8::", 64, None)), "fe80::9",
)  # fmt: skip
NOTHING = HostFamily(0, "", (), (), None)
HOST = HostView(V4, V6, b"\x02\0\0\0\0\1", ("203.0.113.53",), ("example.org",))


def plan(host: HostView = HOST, **settings: Any) -> Plan:
    return make_plan(Settings(**settings), host)


def v4(host: HostView = HOST, **settings: Any) -> PlanFamily:
    family = plan(host, **settings).v4
    assert family is not None
    return family


def v6(host: HostView = HOST, **settings: Any) -> PlanFamily:
    family = plan(host, **settings).v6
    assert family is not None
    return family


def test_by_default_the_guest_is_what_the_host_is() -> None:
    made = plan()
    assert (v4().address, v4().prefix) == ("192.0.2.2", 24)
    assert v4().addresses == V4.addresses
    assert v4().gateway == v4().our_address == v4().map_host_loopback == "192.0.2.1"
    assert (v6().address, v6().gateway) == ("2001:db8::2", "fe80::9")
    assert (made.ifname, made.mtu, made.warnings) == ("eth0", 65520, ())


def test_what_is_on_link_comes_before_what_is_behind_a_gateway() -> None:
    assert [route.destination for route in v4().routes] == ["192.0.2.0", None]


def test_D12_with_nothing_but_lo_there_is_a_local_mode_and_one_warning() -> None:
    made = plan(HostView(NOTHING, NOTHING, None, (), ()))
    assert made.v4 is not None
    assert made.v6 is not None
    assert (made.v4.address, made.v4.gateway) == (LOCAL_ADDRESS4, LOCAL_GATEWAY4)
    assert (made.v6.address, made.v6.gateway) == (None, LOCAL_GATEWAY6)
    assert made.ifname == "tap0"
    assert len(made.warnings) == 1


def test_D9_without_ipv6_there_is_none() -> None:
    assert plan(HOST._replace(v6=None)).v6 is None


def test_D11_an_address_of_one_version_leaves_the_other_as_it_was() -> None:
    made = plan(address4="10.1.2.3", prefix4=24)
    assert made.v4 is not None
    assert (made.v4.explicit, made.v4.addresses) == (True, (Address("10.1.2.3", 24),))
    assert made.v6 == v6()
    assert not v6().explicit


def test_no_version_at_all_is_refused() -> None:
    with pytest.raises(UsageError):
        plan(HostView(None, None, None, (), ()))


@pytest.mark.parametrize(
    ("address", "prefix"), [("10.1.2.3", 8), ("172.16.0.1", 16), ("198.51.100.1", 24), ("192.0.2.3", 24)]
)
def test_an_unknown_netmask_is_that_of_the_class_or_of_the_host(address: str, prefix: int) -> None:
    assert v4(address4=address).prefix == prefix


def test_a_gateway_outside_the_network_is_put_on_the_link_first() -> None:
    family = v4(address4="10.1.2.3", prefix4=24, gateway4="10.9.9.9")
    assert family.routes == (Route("10.9.9.9", 32, None), Route(None, 0, "10.9.9.9"))
    assert v6(gateway6="2001:db8:9::1").routes[0] == Route("2001:db8:9::1", 128, None)


def test_a_gateway_inside_the_network_needs_the_route_that_comes_with_the_address() -> None:
    family = v4(gateway4="192.0.2.9")
    assert family.routes == (Route(None, 0, "192.0.2.9"),)
    assert not any(address.flags & FLAG for address in family.addresses)
    assert all(address.flags & FLAG for address in v4().addresses)


def test_options_forbid_copies() -> None:
    assert v4(copy_routes=False).routes == (Route(None, 0, "192.0.2.1"),)
    assert v4(copy_addrs=False).addresses == (Address("192.0.2.2", 24),)
    # A copied route must not ask for a source that was not copied
    assert {route.source for route in v4(address4="192.0.2.77", prefix4=24).routes} == {None}


def test_a_guest_is_not_its_own_gateway() -> None:
    with pytest.raises(UsageError, match=r"10\.0\.0\.1"):
        plan(address4="10.0.0.1", gateway4="10.0.0.1")


def test_D13_a_host_without_default_route_gets_the_guest_one() -> None:
    host = HOST._replace(v4=V4._replace(routes=(Route("192.0.2.0", 24, None),), gateway=None))
    assert v4(host).routes[-2:] == (Route(LOCAL_GATEWAY4, 32, None), Route(None, 0, LOCAL_GATEWAY4))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "192.0.2.1"),
        ({"no_map_gw": True}, None),
        ({"map_host_loopback": ()}, None),
        ({"map_host_loopback": ("10.0.0.1",)}, "10.0.0.1"),
        ({"map_host_loopback": ("2001:db8::7",), "no_map_gw": True}, None),
    ],
)
def test_the_hosts_loopback_is_mapped_as_asked(settings: dict[str, Any], expected: str | None) -> None:
    assert v4(**settings).map_host_loopback == expected


def test_D1_a_stub_on_the_loopback_is_announced_by_what_maps_to_it() -> None:
    host = HOST._replace(nameservers=("127.0.0.53",))
    family = v4(host, dhcp_dns=True, dns_forward4="169.254.1.1", no_map_gw=True)
    assert (family.dns, family.dns_host) == (("169.254.1.1",), "127.0.0.53")
    assert v4(host, dhcp_dns=True).dns == ("192.0.2.1",)
    assert v4(host, dhcp_dns=True, no_map_gw=True).dns == ()
    assert plan(host, dns_forward4="169.254.1.1", no_map_gw=True).warnings == ()


@pytest.mark.parametrize("dhcp_dns", [True, False])
@pytest.mark.parametrize("server", ["127.0.0.53", "192.0.2.2"])  # a stub; a server on the host itself
def test_D1_queries_to_what_maps_to_the_loopback_go_to_the_resolver_itself(server: str, dhcp_dns: bool) -> None:
    host = HOST._replace(nameservers=(server, "203.0.113.53"))
    family = v4(host, dhcp_dns=dhcp_dns)
    assert (family.dns_forward, family.dns_host) == ("192.0.2.1", server)
    assert family.dns == (("192.0.2.1", "203.0.113.53") if dhcp_dns else ())
    assert v4(host, no_map_gw=True).dns_forward is None
    assert v4(host, map_host_loopback=("10.0.0.1",)).dns_forward == "10.0.0.1"
    assert v4(HOST._replace(nameservers=("203.0.113.53", server))).dns_forward is None
    assert v4(HOST._replace(nameservers=(server, "192.0.2.1"))).dns_forward is None  # the gateway is one, too (D2)


def test_D1_a_server_on_the_host_is_reached_as_it_is_by_a_guest_with_another_address() -> None:
    family = v4(HOST._replace(nameservers=("192.0.2.2",)), dhcp_dns=True, address4="192.0.2.9")
    assert (family.dns_forward, family.dns) == (None, ("192.0.2.2",))


def test_the_hosts_address_that_lasts_stands_for_the_host() -> None:
    temporary, lasting = Address("2001:db8::aaaa", 64, flags=IFA_F_TEMPORARY), Address("2001:db8::2", 64)
    family = v6(HOST._replace(v6=V6._replace(addresses=(temporary, lasting))))
    assert (family.address, family.host_address) == ("2001:db8::aaaa", "2001:db8::2")
    assert v6(HOST._replace(v6=V6._replace(addresses=(temporary,)))).host_address == "2001:db8::aaaa"


def test_no_route_promises_more_than_the_link_has() -> None:
    routes = (Route(None, 0, "192.0.2.1", mtu=1500), Route("192.0.2.0", 24, None, mtu=1200))
    host = HOST._replace(v4=V4._replace(routes=routes))
    assert sorted(route.mtu for route in v4(host, mtu=1280).routes) == [1200, 1280]
    assert sorted(route.mtu for route in v4(host).routes) == [1200, 1500]
    assert sorted(route.mtu for route in v4(host, mtu=0).routes) == [1200, 1500]


@pytest.mark.parametrize("server", ["fe80::9", "fe80::9%eth0"])
def test_D2_the_gateway_may_be_the_resolver(server: str) -> None:
    assert v6(HOST._replace(nameservers=(server,))).resolver_is_gateway
    assert not v6().resolver_is_gateway


def test_a_small_mtu_switches_ipv6_off() -> None:
    made = plan(mtu=1279)
    assert made.v6 is None
    assert len(made.warnings) == 1
    assert plan(mtu=1280).v6 is not None
    with pytest.raises(UsageError, match="1279"):
        plan(mtu=1279, address6="2001:db8::5")


def test_names_are_taken_from_the_options_first() -> None:
    made = plan(ns_ifname="x0", ns_mac_addr=b"\x02\0\0\0\0\2", mtu=0, dhcp_search=True, search=("a.b",))
    assert (made.ifname, made.guest_mac, made.mtu, made.search) == ("x0", b"\x02\0\0\0\0\2", 0, ("a.b",))
    assert plan(dhcp_search=True).search == ("example.org",)
    assert plan(HOST._replace(v4=V4._replace(ifname="lo"), v6=None)).ifname == "tap0"


@given(st.ip_addresses(v=4), st.integers(1, 32))
def test_the_network_of_an_address_contains_it(address: Any, prefix: int) -> None:
    import ipaddress

    network = ipaddress.ip_network((int(address) >> (32 - prefix) << (32 - prefix), prefix))
    assert in_prefix(str(address), str(network.network_address), prefix)
    assert in_prefix("203.0.113.1", str(address), prefix) == (ipaddress.ip_address("203.0.113.1") in network)
