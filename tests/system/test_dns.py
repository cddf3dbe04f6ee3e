"""DNS by --dns-forward, and where the host's resolver is an address with another meaning."""

import contextlib
import socket

import pytest

from system.namespaces import NamedNamespace, echo, wait_until
from system.programs import need
from system.topology import GATEWAY, LOOPBACK, NEIGHBOUR, SERVER, SERVER4, Pasta

FORWARD = {4: "169.254.1.1", 6: "fd00::53"}
NAME = "name.test"
STUB = {4: "127.0.0.53", 6: "::1"}
both_versions = pytest.mark.parametrize("version", [4, 6])


def resolver(namespace: NamedNamespace, address: str, answer: str) -> None:
    """A name server that knows one name and a long text."""
    need("dnsmasq", "dnsmasq-base")
    namespace.start(
        "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
        "--pid-file=", "--bind-interfaces", "--port=53", f"--listen-address={address}", f"--address=/{NAME}/{answer}",
        *(f"--txt-record=long.test,{'x' * 200}{number}" for number in range(20)),
        tcp=53, udp=53,
    )  # fmt: skip


def stub(pasta: Pasta, version: int) -> None:
    """A name server on the host's loopback, which is the one that the host uses."""
    resolver(pasta.topology.host, STUB[version], "203.0.113.77")
    pasta.topology.host.resolv_conf(f"nameserver {STUB[version]}\nsearch example.test\n")


def dig(pasta: Pasta, *arguments: str, options: tuple[str, ...]) -> str:
    """The answer as dig prints it, short."""
    need("dig", "dnsutils")
    command = ["dig", "+short", "+tries=1", "+time=5", *arguments]
    result = pasta.run("--config-net", *options, command=command)
    assert "nameserver" not in result.stderr
    return result.stdout


@both_versions
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_D1_a_resolver_on_the_loopback_of_the_host_is_reached(pasta: Pasta, version: int, transport: str) -> None:
    stub(pasta, version)
    options = ("--dns-forward", FORWARD[version], "--no-map-gw")
    assert dig(pasta, f"@{FORWARD[version]}", NAME, transport, options=options) == "203.0.113.77\n"


@both_versions
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_D1_a_stub_is_reached_at_the_gateways_address(pasta: Pasta, version: int, transport: str) -> None:
    """What the gateway's address otherwise leads to is another address of the loopback."""
    stub(pasta, version)
    assert dig(pasta, f"@{GATEWAY[version]}", NAME, transport, options=()) == "203.0.113.77\n"


@both_versions
def test_an_answer_too_long_for_udp_comes_over_tcp(pasta: Pasta, version: int) -> None:
    stub(pasta, version)
    options = ("--dns-forward", FORWARD[version])
    answer = dig(pasta, f"@{FORWARD[version]}", "long.test", "TXT", options=options)
    assert len(answer.splitlines()) == 20


@both_versions
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_dns_host_is_asked_instead_of_the_first_of_resolv_conf(pasta: Pasta, version: int, transport: str) -> None:
    resolver(pasta.topology.server, SERVER[version], "203.0.113.78")
    pasta.topology.host.resolv_conf("nameserver 192.0.2.254\nnameserver 2001:db8::ffff\n")
    options = ("--dns-forward", FORWARD[version], "--dns-host", SERVER[version])
    assert dig(pasta, f"@{FORWARD[version]}", NAME, transport, options=options) == "203.0.113.78\n"


@both_versions
@pytest.mark.parametrize("transport", ["+notcp", "+tcp"])
def test_D2_a_gateway_that_is_the_resolver_is_asked_itself(pasta: Pasta, version: int, transport: str) -> None:
    # The gateway's address otherwise stands for the host's loopback, where another one listens.
    resolver(pasta.topology.server, GATEWAY[version], "203.0.113.79")
    resolver(pasta.topology.host, LOOPBACK[version], "203.0.113.80")
    pasta.topology.host.resolv_conf(f"nameserver {GATEWAY[version]}\n")
    assert dig(pasta, f"@{GATEWAY[version]}", NAME, transport, options=()) == "203.0.113.79\n"


def test_port_853_is_forwarded_too_and_no_other(pasta: Pasta) -> None:
    pasta.topology.host.serve_tcp("127.0.0.53", echo, port=853)
    pasta.topology.host.serve_tcp("127.0.0.53", echo, port=854)
    pasta.topology.host.resolv_conf("nameserver 127.0.0.53\n")
    guest = pasta.guest("--config-net", "--dns-forward", FORWARD[4])
    with guest.connect(FORWARD[4], 853) as connection:
        connection.sendall(b"tls")
        assert connection.recv(3) == b"tls"
    assert guest.open_socket(FORWARD[4], timeout=2).connect_ex((FORWARD[4], 854)) != 0


def test_many_queries_one_after_the_other(pasta: Pasta) -> None:
    resolver(pasta.topology.server, SERVER4, "203.0.113.81")
    pasta.topology.host.resolv_conf(f"nameserver {SERVER4}\n")
    options = ("--dns-forward", FORWARD[4])
    answer = dig(pasta, *[part for _ in range(200) for part in (f"@{FORWARD[4]}", NAME)], options=options)
    assert answer == "203.0.113.81\n" * 200


@both_versions
def test_D3_a_first_resolver_is_used_by_a_guest_that_runs_already(pasta: Pasta, version: int) -> None:
    forward = FORWARD[version]
    pasta.topology.server.serve_udp(SERVER[version], lambda data, peer: data, 53)
    pasta.topology.host.resolv_conf("search example.test\n")
    guest = pasta.guest("--config-net", "--dns-forward", forward)
    pasta.topology.host.resolv_conf(f"nameserver {SERVER[version]}\n")

    def answered() -> bool:
        with guest.connect(forward, 53, kind=socket.SOCK_DGRAM) as sock:
            sock.settimeout(0.3)
            sock.send(b"anybody?")
            with contextlib.suppress(TimeoutError):
                return sock.recv(100) == b"anybody?"
            return False

    wait_until(answered, "an answer of the first resolver")


@both_versions
def test_D3_a_new_resolver_of_the_host_is_used_by_a_guest_that_runs(pasta: Pasta, version: int) -> None:
    forward = FORWARD[version]
    addresses = (SERVER[version], NEIGHBOUR[version])
    for address in addresses:
        name = address.encode()
        pasta.topology.server.serve_udp(address, lambda data, peer, name=name: name, 53)
    pasta.topology.host.resolv_conf(f"nameserver {addresses[0]}\n")
    guest = pasta.guest("--config-net", "--dns-forward", forward)

    def asked() -> str:
        with guest.connect(forward, 53, kind=socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.send(b"who are you")
            return sock.recv(100).decode()

    assert asked() == addresses[0]
    for address in reversed(addresses):
        pasta.topology.host.resolv_conf(f"search example.test\nnameserver {address}\n")
        wait_until(lambda: asked() == address, "an answer of the new resolver")
