"""Hosts whose addresses and interfaces change while a guest is connected: laptops, or what is up before its uplink."""

import contextlib
import socket
from collections.abc import Callable

import pytest

from bucatini.host.netlink import Changes
from system.namespaces import echo, wait_until
from system.topology import (
    EXTRA,
    EXTRA4,
    EXTRA6,
    GATEWAY4,
    GATEWAY6,
    HOST4,
    HOST6,
    NEIGHBOUR4,
    NEIGHBOUR6,
    SERVER,
    Guest,
    Pasta,
)  # fmt: skip
from system.users import only_unprivileged

pytestmark = only_unprivileged

MAPPED = {4: "10.99.0.1", 6: "2001:db8:ffff::1"}
PORT = 7300


def answer(data: bytes, peer: object) -> bytes:
    return data


def served(guest: Guest, address: str, port: int) -> bool:
    """Whether a new connection is answered."""
    with contextlib.suppress(OSError), guest.connect(address, port, timeout=0.5) as connection:
        connection.sendall(b"x")
        return connection.recv(1) == b"x"
    return False


def asked(sock: socket.socket) -> bool:
    """Whether a datagram is answered."""
    with contextlib.suppress(OSError):
        sock.send(b"y")
        return sock.recv(1) == b"y"
    return False


def move(pasta: Pasta, version: int) -> None:
    """The host leaves its first network for the second, with one IP version."""
    if version == 4:
        lines = f"address delete {HOST4}/24 dev host0", f"route add default via {NEIGHBOUR4} dev extra0"
    else:
        lines = f"address delete {HOST6}/64 dev host0", f"route replace default via {NEIGHBOUR6} dev extra0"
    pasta.topology.host.ip(*lines)


@pytest.mark.parametrize("version", [4, 6])
def test_D15_what_is_new_and_what_goes_on_leaves_from_the_hosts_new_address(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    guest.settle()
    connections = pasta.topology.server.serve_tcp(SERVER[version], echo)
    datagrams = pasta.topology.server.serve_udp(SERVER[version], answer)
    with guest.open_socket(SERVER[version], socket.SOCK_DGRAM, timeout=0.5) as sock:
        sock.connect((SERVER[version], datagrams.port))
        assert asked(sock)
        move(pasta, version)
        assert served(guest, SERVER[version], connections.port)
        wait_until(lambda: asked(sock), "an answer to the old socket")
        assert datagrams.peers[-1] == (EXTRA[version], sock.getsockname()[1])


@pytest.mark.parametrize("version", [4, 6])
def test_D15_pings_with_an_identifier_that_was_used_before_go_on(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    guest.settle()
    ping = ["ping", "-c", "1", "-W", "1", "-e", "77", SERVER[version]]
    guest.run(*ping)
    move(pasta, version)
    wait_until(lambda: guest.run(*ping, check=False).returncode == 0, "an answer")


@pytest.mark.parametrize("version", [4, 6])
def test_D15_an_address_that_is_mapped_to_the_host_leads_to_its_new_address(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "--map-guest-addr", MAPPED[4], "--map-guest-addr", MAPPED[6])
    guest.settle()
    server = pasta.topology.host.serve_tcp({4: "0.0.0.0", 6: "::"}[version], echo, PORT)
    assert served(guest, MAPPED[version], PORT)
    move(pasta, version)
    wait_until(lambda: served(guest, MAPPED[version], PORT), "the host's new address")
    assert server.peers[-1][0].removeprefix("::ffff:") == EXTRA[version]


def test_a_change_that_leaves_the_address_where_it_was_ends_nothing(pasta: Pasta) -> None:
    """Interfaces of containers come and go all day. That all of it was seen is known by what changes at the end."""
    guest = pasta.guest("--config-net", "--debug")
    guest.settle()
    datagrams = pasta.topology.server.serve_udp(SERVER[4], answer)
    host = pasta.topology.host

    def told() -> list[str]:
        return [line.rpartition(" ")[2].strip() for line in guest.output if "the host's address is" in line]

    with guest.open_socket(SERVER[4], socket.SOCK_DGRAM) as sock:
        sock.connect((SERVER[4], datagrams.port))
        assert asked(sock)
        host.ip("link add other type bridge", "address add 10.88.0.1/24 dev other", "link set other up")
        host.ip("address add 192.0.2.99/24 dev host0", "link delete other", "address delete 192.0.2.99/24 dev host0")
        assert asked(sock)
        move(pasta, 6)
        wait_until(lambda: told() == [EXTRA6], "a look at the host")
        assert asked(sock)
        assert len(set(datagrams.peers)) == 1


CHANGES = {
    "an address": ("address add 10.88.0.1/24 dev extra0", True),
    "an address of IPv6": ("address add 2001:db8:88::1/64 dev extra0 nodad", True),
    "no address": (f"address delete {EXTRA4}/24 dev extra0", True),
    "a default route": (f"route add default via {NEIGHBOUR4} dev extra0 metric 7", True),
    "a default route of IPv6": (f"route add default via {NEIGHBOUR6} dev extra0 metric 7", True),
    "no default route": (f"route delete default via {GATEWAY4}", True),
    "another route": ("route add 10.99.0.0/16 dev extra0", False),
    "an interface": ("link add other type bridge", False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_addresses_and_default_routes_are_heard_of(pasta: Pasta, change: str) -> None:
    line, matters = CHANGES[change]
    changes = pasta.topology.host.inside(Changes)
    with changes.sock:
        assert not changes.seen()
        pasta.topology.host.ip(line)
        assert changes.seen() is matters
        assert not changes.seen()


def boot_late(pasta: Pasta, version: int) -> Callable[[], None]:
    """Take all addresses and routes away; returns what brings the first network, with one IP version."""
    host = pasta.topology.host
    host.ip("link set host0 down", "link set extra0 down", "address flush dev host0", "address flush dev extra0")

    def arrive() -> None:
        host.ip("link set host0 up")
        if version == 4:
            host.ip(f"address add {HOST4}/24 dev host0", f"route add default via {GATEWAY4} dev host0")
        else:
            host.ip(f"address add {HOST6}/64 dev host0 nodad", f"route add default via {GATEWAY6} dev host0")

    return arrive


@pytest.mark.parametrize("version", [4, 6])
def test_D16_a_namespace_that_was_there_before_the_uplink_is_connected_by_it(pasta: Pasta, version: int) -> None:
    arrive = boot_late(pasta, version)
    guest = pasta.guest("--config-net", "--map-guest-addr", MAPPED[4], "--map-guest-addr", MAPPED[6])
    assert not served(guest, SERVER[version], 9)
    arrive()
    connections = pasta.topology.server.serve_tcp(SERVER[version], echo)
    datagrams = pasta.topology.server.serve_udp(SERVER[version], answer)
    wait_until(lambda: served(guest, SERVER[version], connections.port), "a connection")
    with guest.open_socket(SERVER[version], socket.SOCK_DGRAM, timeout=0.5) as sock:
        sock.connect((SERVER[version], datagrams.port))
        wait_until(lambda: asked(sock), "an answer")
    pasta.topology.host.serve_tcp({4: "0.0.0.0", 6: "::"}[version], echo, PORT)
    wait_until(lambda: served(guest, MAPPED[version], PORT), "the host's own address")
