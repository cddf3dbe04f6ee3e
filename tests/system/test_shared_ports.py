"""Ports of UDP that several sockets of ours share: nobody else can, whoever starts the programs."""

import contextlib
import errno
import os
import socket
from typing import Any

import pytest

from system.machine import Machine, Passt
from system.namespaces import Namespace, wait_until
from system.topology import ANY, GATEWAY4, HOST, LOOPBACK, SERVER, Pasta, Topology
from system.users import User, only_root, only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
DATAGRAM = socket.SOCK_DGRAM
THIEF = User("thief", 64_123, 64_123)  # neither root, nor nobody, nor who runs the programs
STEAL = """
import socket, sys
port, server, server_port, *addresses = sys.argv[1:]
kept = []
for address in addresses:
    for connected in (False, True):
        for options in ((), (socket.SO_REUSEADDR,), (socket.SO_REUSEPORT,), (socket.SO_REUSEADDR, socket.SO_REUSEPORT)):
            made = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
            for option in options:
                made.setsockopt(socket.SOL_SOCKET, option, 1)
            try:
                made.bind((address, int(port)))
                if connected:
                    made.connect((server, int(server_port)))
                kept.append(made)
                print(0)
            except OSError as error:
                print(error.errno)
print("done", flush=True)
sys.stdin.read()
"""


def reply(data: bytes, _: Any) -> bytes:
    """Echo."""
    return data


class Thief:
    """Another user of the host, who tries in all ways to have a port, and keeps what he gets."""

    def __init__(self, python: str, topology: Topology, port: int, server: tuple[str, int], *addresses: str) -> None:
        arguments = [str(port), server[0], str(server[1]), *addresses]
        self.process = topology.host.start(python, "-I", "-S", "-c", STEAL, *arguments, user=THIEF, stdin=-1)
        assert self.process.stdout is not None
        self.results = [int(line) for line in iter(self.process.stdout.readline, "done\n")]

    def refused(self) -> bool:
        """Whether he was, each time."""
        return set(self.results) == {errno.EADDRINUSE}


def answers(guest: socket.socket, server: tuple[str, int]) -> None:
    """What the guest asks a server is answered."""
    for number in range(8):
        guest.sendto(b"%d" % number, server)
        assert guest.recv(100) == b"%d" % number


def forwards(client: socket.socket, guest: socket.socket) -> None:
    """What a client sends to a forward arrives, and the answer too."""
    for number in range(8):
        client.send(b"%d" % number)
        data, peer = guest.recvfrom(100)
        assert data == b"%d" % number
        guest.sendto(b"answer", peer)
        assert client.recv(100) == b"answer"


@both_versions
def test_no_other_user_gets_the_port_of_a_flow(pasta: Pasta, version: int) -> None:
    servers = [pasta.topology.server.serve_udp(SERVER[version], reply) for _ in range(3)]
    inside = pasta.guest("--config-net").open_socket(SERVER[version], DATAGRAM)
    inside.bind(("", 23456))
    for count in (1, 2):  # one that is alone, and one that shares its port
        for server in servers[:count]:
            answers(inside, (SERVER[version], server.port))
        for server in servers[:count]:
            addresses = ANY[version], HOST[version]
            thief = Thief(pasta.installation.python, pasta.topology, 23456, (SERVER[version], server.port), *addresses)
            answers(inside, (SERVER[version], server.port))
            assert thief.refused(), thief.results
    answers(inside, (SERVER[version], servers[2].port))
    assert {peer for server in servers for peer in server.peers} == {(HOST[version], 23456)}


@both_versions
def test_no_other_user_gets_the_port_of_a_forward_which_flows_share(pasta: Pasta, version: int) -> None:
    topology = pasta.topology
    server = topology.server.serve_udp(SERVER[version], reply)
    inside = pasta.guest("--config-net", "-u", "8080").bind(ANY[version], 8080)
    client = topology.server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version])
    addresses = ANY[version], HOST[version], LOOPBACK[version]
    for _ in range(2):
        thief = Thief(pasta.installation.python, topology, 8080, (SERVER[version], server.port), *addresses)
        forwards(client, inside)
        assert thief.refused(), thief.results
        answers(inside, (SERVER[version], server.port))
        forwards(client, inside)
    assert set(server.peers) == {(HOST[version], 8080)}


@both_versions
def test_no_other_user_gets_the_port_of_a_forward_of_passt_which_flows_share(
    passt: Passt, machine: Machine, version: int
) -> None:
    topology = passt.topology
    server = topology.server.serve_udp(SERVER[version], reply)
    passt.background("-u", "8080")
    machine.cable.connect(passt.socket)
    machine.configure()
    inside = machine.bind(HOST[version], 8080)
    addresses = ANY[version], HOST[version], LOOPBACK[version]
    thief = Thief(passt.installation.python, topology, 8080, (SERVER[version], server.port), *addresses)
    client = topology.server.connect(HOST[version], 8080, kind=DATAGRAM, source=SERVER[version])
    forwards(client, inside)
    answers(inside, (SERVER[version], server.port))
    forwards(client, inside)
    assert thief.refused(), thief.results
    assert set(server.peers) == {(HOST[version], 8080)}


@only_root
@pytest.mark.parametrize("runas", ["64124", "64124:64125", "0", "0:64125"])
def test_flows_share_the_port_of_a_forward_that_root_has_bound_whoever_it_becomes(pasta: Pasta, runas: str) -> None:
    server = pasta.topology.server.serve_udp(SERVER[4], reply)
    inside = pasta.guest("--config-net", "--runas", runas, "-u", "8080").bind(ANY[4], 8080)
    answers(inside, (SERVER[4], server.port))
    forwards(pasta.topology.server.connect(HOST[4], 8080, kind=DATAGRAM, source=SERVER[4]), inside)
    assert set(server.peers) == {(HOST[4], 8080)}


def is_bound(where: Namespace, port: int) -> bool:
    """Whether a port of UDP is taken."""
    try:
        where.bind(ANY[4], port).close()
    except OSError:
        return True
    return False


@both_versions
@pytest.mark.parametrize("options", [(), ("--no-isolation",)], ids=["", "open"])
def test_flows_share_a_low_port_that_forwards_itself(pasta: Pasta, version: int, options: tuple[str, ...]) -> None:
    """Bound by the binder, as the same user as the flows: seen where the port has become anybody's."""
    if pasta.user.uid:
        pasta.user = pasta.user._replace(granted="net_bind_service")
    guest = pasta.join("--config-net", "-u", "auto", "-T", "none", "-U", "none", *options)
    server = pasta.topology.server.serve_udp(SERVER[version], reply)
    inside = guest.bind(ANY[version], 800)
    wait_until(lambda: is_bound(pasta.topology.host, 800), "the forward", 3)
    pasta.topology.host.sysctl(net__ipv4__ip_unprivileged_port_start=0)
    answers(inside, (SERVER[version], server.port))
    forwards(pasta.topology.server.connect(HOST[version], 800, kind=DATAGRAM, source=SERVER[version]), inside)
    assert set(server.peers) == {(HOST[version], 800)}


@both_versions
def test_a_port_that_another_user_has_at_another_address_is_not_shared(pasta: Pasta, version: int) -> None:
    """He was there before the forward, which does not hide him: what the guest sends from there leaves elsewhere."""
    topology = pasta.topology
    server = topology.server.serve_udp(SERVER[version], reply)
    other = topology.host.bind(HOST[version], 8080)
    other.connect((SERVER[version], server.port))
    os.fchown(other.fileno(), THIEF.uid, THIEF.gid)
    forward = f"[{LOOPBACK[6]}]/8080" if version == 6 else f"{LOOPBACK[4]}/8080"
    guest = pasta.guest("--config-net", "-u", forward)
    inside = guest.bind(ANY[version], 8080)
    answers(inside, (SERVER[version], server.port))
    other.send(b"his")
    assert other.recv(100) == b"his"
    forwards(topology.host.connect(LOOPBACK[version], 8080, kind=DATAGRAM), inside)
    ports = [peer[1] for peer in server.peers]
    assert ports[-1] == 8080
    assert 8080 not in ports[:-1]


@both_versions
@pytest.mark.parametrize("joined", [False, True])
def test_flows_past_the_tap_share_the_port_of_a_forward_in_the_namespace(
    pasta: Pasta, joined: bool, version: int
) -> None:
    """The maker has made the sockets of both."""
    loopback, host = LOOPBACK[version], pasta.topology.host
    options = "--config-net", "-u", "7000", "-U", "7001:7002"
    guest = pasta.join(*options) if joined else pasta.guest(*options)
    server = guest.serve_udp(HOST[version], reply, port=7000)
    host.serve_udp(loopback, lambda data, _: data.upper(), port=7002)
    for port in (7003, 7001):
        client = host.open_socket(loopback, DATAGRAM)
        client.bind((loopback, port))
        client.connect((loopback, 7000))
        for _ in range(2):
            client.send(b"question")
            assert client.recv(100) == b"question"
            with guest.connect(loopback, 7001, kind=DATAGRAM) as other:
                other.send(b"question")
                assert other.recv(100) == b"QUESTION"
    assert {peer[1] for peer in server.peers} == {7003, 7001}


@only_unprivileged
@both_versions
@pytest.mark.parametrize("options", [(), ("-u", "5000"), ("-o",)])
def test_a_thousand_flows_share_a_port_and_keep_it(pasta: Pasta, options: tuple[str, ...], version: int) -> None:
    """Each gets its answers while others are opened; with an address to leave from they are bound to that one too."""
    if options == ("-o",):
        options = "-o", HOST[version]
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    servers = pasta.topology.server.inside(lambda: [socket.socket(family, DATAGRAM) for _ in range(1000)])
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(server)
            server.bind((SERVER[version], 0))
            server.settimeout(5)
        inside = pasta.guest("--config-net", *options).bind(ANY[version], 5000)
        for number, server in enumerate(servers):
            inside.sendto(b"question", server.getsockname())
            assert server.recvfrom(100)[1][:2] == (HOST[version], 5000)
            for one in {0, number // 2, number}:
                servers[one].sendto(b"%d" % one, (HOST[version], 5000))
                data, peer = inside.recvfrom(100)
                assert (data, peer[1]) == (b"%d" % one, servers[one].getsockname()[1])


@only_unprivileged
def test_a_broadcast_comes_once_to_a_forward_that_flows_share(pasta: Pasta) -> None:
    servers = [pasta.topology.server.serve_udp(SERVER[4], reply) for _ in range(3)]
    inside = pasta.guest("--config-net", "-u", "8080").bind(ANY[4], 8080)
    for server in servers:
        answers(inside, (SERVER[4], server.port))
    client = pasta.topology.server.bind(GATEWAY4)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
    for number in range(8):
        client.sendto(b"%d" % number, ("192.0.2.255", 8080))
    for number in range(8):
        assert inside.recvfrom(100) == (b"%d" % number, client.getsockname())
    inside.settimeout(0.2)
    with pytest.raises(TimeoutError):
        inside.recv(100)
