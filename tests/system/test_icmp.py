"""Echo requests of the guest."""

import pytest

from system.namespaces import alive, echo
from system.programs import need
from system.topology import GATEWAY, REJECTED, SERVER, SERVER4, Pasta, elapsed
from system.users import only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(autouse=True)
def _ping() -> None:
    need("ping", "iputils-ping")


@both_versions
def test_ping_reaches_the_server(pasta: Pasta, version: int) -> None:
    command = ["ping", f"-{version}", "-c", "3", "-i", "0.2", "-W", "5", SERVER[version]]
    assert "3 received, 0% packet loss" in pasta.run("--config-net", command=command).stdout


@both_versions
def test_ping_reaches_the_gateway(pasta: Pasta, version: int) -> None:
    command = ["ping", f"-{version}", "-c", "1", "-W", "5", GATEWAY[version]]
    assert "1 received" in pasta.run("--config-net", command=command).stdout


@both_versions
@pytest.mark.parametrize("size", [0, 1472, 9000, 65000])
def test_U15_large_payloads_come_back(pasta: Pasta, version: int, size: int) -> None:
    command = ["ping", f"-{version}", "-c", "2", "-i", "0.2", "-W", "5", "-s", str(size), SERVER[version]]
    result = pasta.run("--config-net", command=command)
    assert "2 received, 0% packet loss" in result.stdout
    assert "wrong data byte" not in result.stdout


@both_versions
def test_two_pings_at_the_same_time_get_their_own_answers(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    command = ["ping", f"-{version}", "-c", "5", "-i", "0.2", "-W", "5", SERVER[version]]
    both = [guest.start(*command) for _ in range(2)]
    for process in both:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
        assert "5 received, 0% packet loss" in output
        assert "DUP" not in output


@both_versions
def test_U15_where_the_host_allows_no_ping_sockets_it_fails_clearly(pasta: Pasta, version: int) -> None:
    pasta.topology.host.sysctl(net__ipv4__ping_group_range="1 0")
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    guest = pasta.guest("--config-net")
    result, seconds = elapsed(guest.run, "ping", f"-{version}", "-c", "1", "-W", "10", SERVER[version], check=False)
    assert result.returncode == 1
    assert " 0 received, +1 errors" in result.stdout
    assert {4: "Packet filtered", 6: "Administratively prohibited"}[version] in result.stdout
    assert seconds < 5  # told, not waited for
    # The rest goes on.
    assert alive(guest.pid)
    with guest.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


@only_unprivileged
@both_versions
def test_no_icmp_leaves_pings_unanswered(pasta: Pasta, version: int) -> None:
    command = ["ping", f"-{version}", "-c", "1", "-W", "1", SERVER[version]]
    assert " 0 received" in pasta.run("--config-net", "--no-icmp", command=command, check=False).stdout


@only_unprivileged
@both_versions
def test_an_unreachable_address_is_reported(pasta: Pasta, version: int) -> None:
    command = ["ping", f"-{version}", "-c", "1", "-W", "5", REJECTED[version]]
    result = pasta.run("--config-net", command=command, check=False)
    assert result.returncode == 1
    assert "nreachable" in result.stdout or "No route" in result.stdout
