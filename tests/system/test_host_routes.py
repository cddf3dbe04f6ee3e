"""Hosts as users have them: what start-up makes of their addresses and routes (D13, D11)."""

import json

import pytest

from system.topology import HOST4, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged


def guest_routes(pasta: Pasta, *options: str) -> dict[str, dict[str, object]]:
    """Destination -> route, IPv4, as the guest has them."""
    result = pasta.run("-q", "--config-net", *options, command=["ip", "-j", "route"])
    return {route["dst"]: route for route in json.loads(result.stdout)}


def on_host(pasta: Pasta, *commands: str) -> None:
    for command in commands:
        pasta.topology.host.run(*command.split())


def test_D13_of_a_multipath_route_the_heaviest_hop_is_the_gateway(pasta: Pasta) -> None:
    gateway = guest_routes(pasta)["default"]["gateway"]
    network = str(gateway).rpartition(".")[0]
    heavy = f"{network}.77"
    on_host(
        pasta,
        f"ip route replace default nexthop via {gateway} dev host0 weight 1 nexthop via {heavy} dev host0 weight 5",
    )
    assert guest_routes(pasta)["default"]["gateway"] == heavy


def test_D13_next_hop_objects_are_resolved(pasta: Pasta) -> None:
    gateway = guest_routes(pasta)["default"]["gateway"]
    on_host(
        pasta,
        f"ip nexthop add id 7 via {gateway} dev host0",
        "ip route replace default nhid 7",
        "ip nexthop add id 8 group 7",
        "ip route add 198.18.7.0/24 nhid 8",
    )
    routes = guest_routes(pasta)
    assert routes["default"]["gateway"] == gateway
    assert routes["198.18.7.0/24"]["gateway"] == gateway


def test_D13_addresses_without_a_prefix_route(pasta: Pasta) -> None:
    gateway = guest_routes(pasta)["default"]["gateway"]
    prefix = json.loads(pasta.topology.host.run("ip", "-j", "-4", "addr", "show", "dev", "host0").stdout)
    length = next(a["prefixlen"] for link in prefix for a in link.get("addr_info", []) if a["local"] == HOST4)
    on_host(
        pasta,
        f"ip addr del {HOST4}/{length} dev host0",
        f"ip addr add {HOST4}/{length} dev host0 noprefixroute",
        f"ip route add {gateway} dev host0 metric 100",
        f"ip route add default via {gateway} dev host0 metric 100",
    )
    routes = guest_routes(pasta)
    assert routes["default"]["gateway"] == gateway
    assert str(gateway) in routes


def test_D13_a_host_without_a_default_route(pasta: Pasta) -> None:
    on_host(pasta, "ip route del default")
    assert pasta.run("-q", "--config-net", command=["true"]).returncode == 0


def test_D13_a_template_without_a_mac_address(pasta: Pasta) -> None:
    on_host(
        pasta,
        "ip tuntap add mode tun name tun7",
        "ip addr add 10.8.0.2/24 dev tun7",
        "ip link set tun7 up",
        "ip route replace default dev tun7",
    )
    result = pasta.run("-q", "--config-net", command=["ip", "-j", "addr", "show", "dev", "tun7"])
    shown = json.loads(result.stdout)[0]
    assert "10.8.0.2" in [address.get("local") for address in shown["addr_info"]]
    assert "default" in guest_routes(pasta)


def test_D11_an_ipv4_address_of_ones_own_leaves_ipv6_as_it_is(pasta: Pasta) -> None:
    result = pasta.run("-q", "--config-net", "-a", "10.99.0.2/24", "-g", "10.99.0.1", command=["ip", "-j", "addr"])
    addresses = [a["local"] for link in json.loads(result.stdout) for a in link.get("addr_info", []) if "local" in a]
    assert "10.99.0.2" in addresses
    assert HOST4 not in addresses
    assert any(address.startswith("2001:db8") for address in addresses)


@pytest.mark.parametrize(("option", "count"), [((), 2), (("--no-copy-addrs",), 1)])
def test_all_addresses_of_the_template_are_copied(pasta: Pasta, option: tuple[str, ...], count: int) -> None:
    on_host(pasta, "ip addr add 192.0.2.201/24 dev host0")
    result = pasta.run("-q", "--config-net", *option, command=["ip", "-j", "-4", "addr", "show", "scope", "global"])
    addresses = [a["local"] for link in json.loads(result.stdout) for a in link.get("addr_info", []) if "local" in a]
    assert (len(addresses) >= count) if count > 1 else (addresses == [HOST4])
    assert ("192.0.2.201" in addresses) == (count > 1)
