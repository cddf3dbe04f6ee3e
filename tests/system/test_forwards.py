"""Forwards from the host to the guest: -t and -u with every form of port specification."""

import errno
import json
import re
import socket
from pathlib import Path
from typing import NamedTuple

import pytest

from system.namespaces import NamedNamespace, alive, receive, wait_until
from system.topology import ANY, EXTRA, HOST, HOST4, LOOPBACK, SERVER, SERVER4, Guest, Pasta
from system.users import only_root, only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
both_protocols = pytest.mark.parametrize("protocol", ["tcp", "udp"])
OTHER = {4: "192.0.2.77", 6: "2001:db8::77"}  # a second address of the guest


class Form(NamedTuple):
    """A port specification and what it does; {any}, {host} and {other} are addresses."""

    spec: str
    port: int  # on the host
    to: int  # in the guest
    closed: tuple[int, ...] = ()  # on the host, not forwarded


FORMS = [
    Form("8080", 8080, 8080, (8079, 8081)),
    Form("8080:80", 8080, 80, (80,)),
    Form("8080-8082", 8081, 8081, (8079, 8083)),
    Form("8080-8082:90-92", 8082, 92, (90, 8083)),
    Form("8080,8090:91", 8090, 91, (8081, 91)),
    Form("8080-8090,~8085", 8086, 8086, (8085,)),
    Form("~1-8079,~8081-65535", 8080, 8080, (8079, 8081)),
    Form("all", 8080, 8080),
    Form("{host}/8080", 8080, 8080, (8081,)),
    Form("{host}/8080-8080:80-80", 8080, 80, (80,)),
    Form("%host0/8080:80", 8080, 80, (80,)),
    Form("{host}%host0/8080", 8080, 8080, (8081,)),
    Form("{any}/8080:{other}/80", 8080, 80, (80,)),
]


@pytest.fixture(autouse=True)
def _few_ports(pasta: Pasta) -> None:
    """The kernel's ephemeral ports are not part of `all`: the more there are, the fewer are bound."""
    pasta.topology.host.sysctl(net__ipv4__ip_local_port_range="9000 65000")


def is_received(guest: Guest, address: str) -> bool:
    """Whether the guest's kernel takes packets for this address of its own.

    One without duplicate detection can be bound at once, but its route is made by a worker that waits for the lock of
    all interfaces: on a busy machine a datagram that comes before is lost, and nobody repeats it.
    """
    local = re.compile(rf"{socket.inet_pton(socket.AF_INET6, address).hex()} 80 ")
    routes = guest.inside(lambda: Path("/proc/thread-self/net/ipv6_route").read_text())
    return address == "::" or any(map(local.match, routes.splitlines()))


class Receiver:
    """A socket of the guest at which forwarded traffic arrives."""

    def __init__(self, guest: Guest, protocol: str, address: str, port: int) -> None:
        self.protocol = protocol
        if ":" in address:
            wait_until(lambda: is_received(guest, address), f"the kernel to take what comes for {address}")
        self.socket = guest.listen(address, port) if protocol == "tcp" else guest.bind(address, port)

    def exchange(self, client: socket.socket) -> tuple[str, int]:
        """The client's bytes come here and the answer reaches the client. Who the client was to the guest."""
        client.sendall(b"question")
        if self.protocol == "tcp":
            connection, peer = self.socket.accept()
            with connection:
                connection.settimeout(10)
                assert receive(connection, 8) == b"question"
                connection.sendall(b"answer")
        else:
            data, peer = self.socket.recvfrom(100)
            assert data == b"question"
            self.socket.sendto(b"answer", peer)
        assert receive(client, 6) == b"answer"
        return peer[:2]


def client_of(namespace: NamedNamespace, protocol: str, address: str, port: int, source: str | None) -> socket.socket:
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    return namespace.connect(address, port, kind=kind, source=source)


def option(protocol: str) -> str:
    return "-t" if protocol == "tcp" else "-u"


def assert_served(pasta: Pasta, guest: Guest, protocol: str, port: int) -> None:
    """A client of the server's namespace reaches the guest at a port of the host, over IPv4."""
    receiver = Receiver(guest, protocol, HOST4, port)
    receiver.exchange(client_of(pasta.topology.server, protocol, HOST4, port, SERVER4))


def refused(namespace: NamedNamespace, protocol: str, address: str, port: int) -> bool:
    """Whether nothing is there."""
    try:
        client = client_of(namespace, protocol, address, port, None)
        client.send(b"anybody?")
        client.recv(1)
    except ConnectionRefusedError:
        return True
    return False


@both_versions
@both_protocols
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.spec)
def test_L5_a_port_specification_forwards_what_it_says(pasta: Pasta, form: Form, protocol: str, version: int) -> None:
    bracketed = {4: "{}", 6: "[{}]"}[version]
    spec = form.spec.format(
        host=HOST[version], any=bracketed.format(ANY[version]), other=bracketed.format(OTHER[version])
    )
    guest = pasta.guest("--config-net", option(protocol), spec)
    address = OTHER[version] if "{other}" in form.spec else HOST[version]
    if address == OTHER[version]:
        guest.run("ip", "address", "add", address, "dev", "lo", *(["nodad"] if version == 6 else []))
    receiver = Receiver(guest, protocol, address, form.to)
    client = client_of(pasta.topology.server, protocol, HOST[version], form.port, SERVER[version])
    assert receiver.exchange(client) == (SERVER[version], client.getsockname()[1])
    for port in form.closed:
        assert refused(pasta.topology.server, protocol, HOST[version], port), port


@both_versions
@both_protocols
def test_an_address_or_an_interface_binds_nothing_else(pasta: Pasta, protocol: str, version: int) -> None:
    pasta.guest("--config-net", option(protocol), f"{HOST[version]}/8080", option(protocol), "%extra0/8081")
    assert refused(pasta.topology.server, protocol, EXTRA[version], 8080)
    assert refused(pasta.topology.server, protocol, HOST[version], 8081)


@both_versions
@both_protocols
def test_several_options_add_up(pasta: Pasta, protocol: str, version: int) -> None:
    guest = pasta.guest("--config-net", option(protocol), "8080:80", option(protocol), "8090-8091:90-91")
    for port, to in ((8080, 80), (8091, 91)):
        receiver = Receiver(guest, protocol, ANY[version], to)
        receiver.exchange(client_of(pasta.topology.server, protocol, HOST[version], port, SERVER[version]))


@both_versions
@both_protocols
def test_an_ipv6_address_may_stand_in_brackets(pasta: Pasta, protocol: str, version: int) -> None:
    spec = f"[{HOST[version]}]/8080:80" if version == 6 else f"{HOST[version]}/8080:80"
    guest = pasta.guest("--config-net", option(protocol), spec)
    receiver = Receiver(guest, protocol, HOST[version], 80)
    receiver.exchange(client_of(pasta.topology.server, protocol, HOST[version], 8080, SERVER[version]))


@both_versions
@both_protocols
def test_the_loopback_of_the_host_is_forwarded_too(pasta: Pasta, protocol: str, version: int) -> None:
    guest = pasta.guest("--config-net", option(protocol), "8080")
    receiver = Receiver(guest, protocol, HOST[version], 8080)
    address, _ = receiver.exchange(client_of(pasta.topology.host, protocol, LOOPBACK[version], 8080, None))
    assert address not in {"127.0.0.1", "::1"}


@both_versions
def test_U4_the_answer_comes_from_the_address_that_was_asked(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "-u", "8080")
    receiver = Receiver(guest, "udp", HOST[version], 8080)
    for address in (EXTRA[version], HOST[version]):
        # A connected socket takes answers from that address alone.
        client = client_of(pasta.topology.server, "udp", address, 8080, SERVER[version])
        for _ in range(3):
            receiver.exchange(client)


@both_versions
def test_a_closed_port_of_the_guest_ends_the_connection(pasta: Pasta, version: int) -> None:
    pasta.guest("--config-net", "-t", "8080")
    # The host's kernel has accepted before the guest could refuse.
    try:
        connection = client_of(pasta.topology.server, "tcp", HOST[version], 8080, SERVER[version])
        connection.settimeout(2)
        assert connection.recv(1) == b""
    except ConnectionResetError:
        return


@both_versions
def test_64_megabytes_reach_the_guest_and_come_back(pasta: Pasta, version: int, payload: bytes) -> None:
    guest = pasta.guest("--config-net", "-t", "8080:80")
    got: list[bytes] = []

    def back(connection: socket.socket) -> None:
        got.append(receive(connection))
        connection.sendall(got[0])

    guest.serve_tcp(ANY[version], back, port=80)
    client = client_of(pasta.topology.server, "tcp", HOST[version], 8080, SERVER[version])
    client.settimeout(60)
    client.sendall(payload)
    client.shutdown(socket.SHUT_WR)
    assert receive(client) == payload
    assert got == [payload]


@both_protocols
def test_L1_a_busy_port_is_named(pasta: Pasta, protocol: str) -> None:
    host = pasta.topology.host
    _busy = host.listen("0.0.0.0", 8080) if protocol == "tcp" else host.bind("0.0.0.0", 8080)
    result = pasta.run(option(protocol), "8080", command=["true"], check=False)
    assert result.returncode == 1
    assert "8080" in result.stderr
    assert "Traceback" not in result.stderr


@both_protocols
@pytest.mark.parametrize("spec", ["all", "~1-8000,~9000-65535"])
def test_L1_all_tolerates_a_busy_port(pasta: Pasta, protocol: str, spec: str) -> None:
    host = pasta.topology.host
    _busy = host.listen("0.0.0.0", 8080) if protocol == "tcp" else host.bind("0.0.0.0", 8080)
    guest = pasta.guest("--config-net", option(protocol), spec)
    assert_served(pasta, guest, protocol, 8081)


@only_root
def test_L1_udp_follows_tcp_as_far_as_it_can_be_bound(pasta: Pasta) -> None:
    _busy = pasta.topology.host.bind("0.0.0.0", 8080)
    guest = pasta.guest("--config-net", "-t", "8080")
    assert_served(pasta, guest, "tcp", 8080)


@only_unprivileged
def test_L1_ports_that_are_not_the_users_do_not_count_where_only_some_are_excluded(pasta: Pasta) -> None:
    pasta.topology.host.sysctl(net__ipv4__ip_unprivileged_port_start=1024)
    guest = pasta.guest("--config-net", "-t", "~22")
    assert_served(pasta, guest, "tcp", 8080)


@only_unprivileged
def test_a_privileged_port_is_refused_with_advice(pasta: Pasta) -> None:
    pasta.topology.host.sysctl(net__ipv4__ip_unprivileged_port_start=1024)
    result = pasta.run("-t", "80", command=["true"], check=False)
    assert result.returncode == 1
    assert "80" in result.stderr


@only_root
def test_root_may_forward_a_privileged_port(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net", "-t", "80:8080")
    receiver = Receiver(guest, "tcp", HOST4, 8080)
    receiver.exchange(client_of(pasta.topology.server, "tcp", HOST4, 80, SERVER4))


def link_local(namespace: NamedNamespace, interface: str) -> str:
    """The link-local address of an interface."""
    shown = json.loads(namespace.run("ip", "-j", "-6", "address", "show", "dev", interface, "scope", "link").stdout)
    return next(address["local"] for link in shown for address in link.get("addr_info", []) if "local" in address)


@both_protocols
def test_D8_a_link_local_address_can_be_forwarded(pasta: Pasta, protocol: str) -> None:
    address = link_local(pasta.topology.host, "host0")
    guest = pasta.guest("--config-net", option(protocol), f"[{address}]%host0/8080")
    receiver = Receiver(guest, protocol, "::", 8080)
    client = client_of(pasta.topology.server, protocol, f"{address}%server0", 8080, None)
    for _ in range(2 if protocol == "udp" else 1):
        receiver.exchange(client)


@both_protocols
@pytest.mark.parametrize(("chosen", "version", "other"), [("-4", 4, 6), ("-6", 6, 4)])
def test_D10_one_version_listens_alone(pasta: Pasta, protocol: str, chosen: str, version: int, other: int) -> None:
    guest = pasta.guest("--config-net", chosen, option(protocol), "8080")
    receiver = Receiver(guest, protocol, HOST[version], 8080)
    receiver.exchange(client_of(pasta.topology.server, protocol, HOST[version], 8080, SERVER[version]))
    assert refused(pasta.topology.server, protocol, HOST[other], 8080)


@both_protocols
@pytest.mark.parametrize(("chosen", "other"), [("-4", 6), ("-6", 4)])
def test_D10_an_address_of_the_other_version_is_an_error(pasta: Pasta, protocol: str, chosen: str, other: int) -> None:
    result = pasta.run(chosen, option(protocol), f"{HOST[other]}/8080", command=["true"], check=False)
    assert result.returncode == 1
    assert HOST[other] in result.stderr


@both_protocols
def test_a_free_bind_takes_an_address_that_comes_later(pasta: Pasta, protocol: str) -> None:
    later = "192.0.2.200"
    pasta.topology.host.sysctl(net__ipv4__ip_nonlocal_bind=0)
    assert pasta.run(option(protocol), f"{later}/8080", command=["true"], check=False).returncode == 1
    guest = pasta.guest("--config-net", "--freebind", option(protocol), f"{later}/8080")
    pasta.topology.host.ip(f"address add {later}/24 dev host0")
    receiver = Receiver(guest, protocol, ANY[4], 8080)
    receiver.exchange(client_of(pasta.topology.server, protocol, later, 8080, SERVER4))


def test_L13_a_tap_that_is_down_does_no_harm(pasta: Pasta) -> None:
    guest = pasta.guest("-t", "8080", "-u", "8080")
    guest.run("ip", "link", "set", "host0", "down")
    client = pasta.topology.server.open_socket(HOST4)
    client.settimeout(0.5)
    status = client.connect_ex((HOST4, 8080))
    assert status in {0, errno.EAGAIN, errno.ECONNREFUSED, errno.EINPROGRESS}
    pasta.topology.server.connect(HOST4, 8080, kind=socket.SOCK_DGRAM).send(b"anybody?")
    assert alive(guest.pid)
    assert guest.finish() == 0
