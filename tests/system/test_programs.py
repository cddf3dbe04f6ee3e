"""Well-known programs in the guest, unchanged."""

import json
import os
import socket
import subprocess
from pathlib import Path

import pytest

from system.namespaces import echo, stop, wait_until
from system.programs import need
from system.topology import HOST, HOST4, HOST6, SERVER, SERVER4, Guest, Pasta, url
from system.users import only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])


@both_versions
@pytest.mark.parametrize("direction", ["guest to server", "server to guest", "both, four streams"])
def test_iperf3(pasta: Pasta, version: int, direction: str) -> None:
    need("iperf3", "iperf3")
    pasta.topology.server.start("iperf3", "--server", "--one-off", "--bind", SERVER[version], tcp=5201)
    options = {
        "guest to server": [],
        "server to guest": ["--reverse"],
        "both, four streams": ["--bidir", "--parallel", "4"],
    }
    command = ["iperf3", "--client", SERVER[version], "--time", "1", "--json", *options[direction]]
    result = json.loads(pasta.run("-q", "--config-net", command=command).stdout)
    assert "error" not in result
    assert result["end"]["sum_received"]["bits_per_second"] > 50e6


@both_versions
@pytest.mark.parametrize("reverse", [False, True])
def test_iperf3_with_datagrams(pasta: Pasta, version: int, reverse: bool) -> None:
    need("iperf3", "iperf3")
    pasta.topology.server.start("iperf3", "--server", "--one-off", "--bind", SERVER[version], tcp=5201)
    command = [
        "iperf3",
        "--client",
        SERVER[version],
        "--udp",
        "--length",
        "1400",
        "--bitrate",
        "20M",
        "--time",
        "1",
        "--json",
    ]
    result = json.loads(pasta.run("-q", "--config-net", command=[*command, *(["--reverse"] if reverse else [])]).stdout)
    assert "error" not in result
    assert result["end"]["sum"]["packets"] > 1000
    assert result["end"]["sum"]["lost_percent"] < 5


@both_versions
def test_http_server_of_python_on_both_sides(pasta: Pasta, version: int) -> None:
    need("curl", "curl")
    python = pasta.installation.python
    (pasta.workspace / "page").write_text("served\n")
    serve = [python, "-m", "http.server", "--directory", str(pasta.workspace), "--bind"]
    pasta.topology.server.start(*serve, SERVER[version], "8000", tcp=8000)
    guest = pasta.guest("--config-net", "-t", "8080:8000")
    assert guest.run("curl", "-sS", "-m", "20", url(SERVER[version], 8000, "/page")).stdout == "served\n"
    guest.start(*serve, HOST[version], "8000", tcp=8000)
    page = pasta.topology.server.run("curl", "-sS", "-m", "20", url(HOST[version], 8080, "/page"))
    assert page.stdout == "served\n"


@both_versions
def test_nc(pasta: Pasta, version: int) -> None:
    need("nc", "netcat-openbsd")
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    command = ["nc", "-N", "-w", "20", SERVER[version], str(server.port)]
    assert pasta.run("-q", "--config-net", command=command, input="to and fro\n").stdout == "to and fro\n"


@only_unprivileged
@both_versions
def test_ssh(pasta: Pasta, version: int) -> None:
    daemon = need("sshd", "openssh-server")
    need("ssh", "openssh-client")
    directory = pasta.workspace
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)], check=True)
    Path("/run/sshd").mkdir(exist_ok=True)
    pasta.topology.server.start(
        daemon, "-D", "-e", "-f", "/dev/null", "-h", str(directory / "host"), "-p", "2222",
        "-o", f"ListenAddress={SERVER[version]}", "-o", f"AuthorizedKeysFile={directory / 'user.pub'}",
        "-o", "StrictModes=no", "-o", "PidFile=none", "-o", "PermitRootLogin=yes", "-o", "UsePAM=no",
        tcp=2222,
    )  # fmt: skip
    # The client wants the key to be its own and closed to others.
    for file in directory.iterdir():
        file.chmod(0o600 if file.suffix != ".pub" else 0o644)
        os.chown(file, pasta.user.uid, pasta.user.gid)
    command = [
        "ssh", "-F", "/dev/null", "-i", str(directory / "user"), "-p", "2222", "-o", "StrictHostKeyChecking=no",
        "-o", "UserKnownHostsFile=/dev/null", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR",
        f"root@{SERVER[version]}", "head -c 1000000 /dev/zero | wc -c; cat",
    ]  # fmt: skip
    result = pasta.run("-q", "--config-net", command=command, input="through\n")
    assert result.stdout.split() == ["1000000", "through"]


# Configuration by the guest's own means


def test_D5_udhcpc_configures_ipv4(pasta: Pasta) -> None:
    client = need("udhcpc", "udhcpc")
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    guest = pasta.guest()
    guest.run("ip", "link", "set", "host0", "up")
    script = pasta.workspace / "script"
    script.write_text(
        '#!/bin/sh\n[ "$1" = bound ] || exit 0\nip address add $ip/$mask dev $interface\n'
        "ip route add default via $router dev $interface\nip link set $interface mtu $mtu\n"
    )
    script.chmod(0o755)
    guest.run(client, "-i", "host0", "-f", "-q", "-n", "-t", "5", "-T", "1", "-O", "mtu", "-s", str(script))
    assert f"inet {HOST4}/24" in guest.run("ip", "-o", "address", "show", "dev", "host0").stdout
    with guest.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def dhclient(pasta: Pasta, guest: Guest, version: int) -> dict[str, str]:
    """What the DHCP client of ISC hands to its script when it has a lease."""
    client = need("dhclient", "isc-dhcp-client")
    directory = pasta.workspace
    script = directory / "script"
    lease = directory / "lease"
    script.write_text(
        f'#!/bin/sh\ncase "$reason" in BOUND*) env >{directory}/new && mv {directory}/new {lease};; esac\n'
    )
    script.chmod(0o755)
    (directory / "conf").write_text(
        "request subnet-mask, routers, interface-mtu, domain-name-servers, domain-search, host-name;\n"
        "also request dhcp6.name-servers, dhcp6.domain-search;\n"
    )
    files = ["-cf", "conf", "-lf", "leases", "-pf", "pid", "-sf", "script"]
    paths = [str(directory / word) if not word.startswith("-") else word for word in files]
    (directory / "leases").touch()
    # In the foreground: in the background it would write its process ID later than its parent returns.
    process = guest.start(client, f"-{version}", "-d", *paths, "host0")
    wait_until(lambda: lease.exists() or process.poll() is not None, "a lease of dhclient")
    stop(process)
    assert lease.exists(), process.stdout.read() if process.stdout else None
    found = (line.partition("=") for line in lease.read_text().splitlines())
    return {name: value for name, _, value in found}


def test_D5_dhclient_configures_ipv4(pasta: Pasta) -> None:
    guest = pasta.guest("--dhcp-dns", "-D", "203.0.113.53", "--dhcp-search", "-S", "example.org lab.example.net")
    guest.run("ip", "link", "set", "host0", "up")
    lease = dhclient(pasta, guest, 4)
    assert lease["new_ip_address"] == HOST4
    assert lease["new_interface_mtu"] == "65520"
    assert lease["new_domain_name_servers"] == "203.0.113.53"
    assert lease["new_domain_search"].split() == ["example.org.", "lab.example.net."]
    assert lease["new_dhcp_lease_time"] == "4294967295"


def test_D7_dhclient_configures_ipv6(pasta: Pasta) -> None:
    guest = pasta.guest("--dhcp-dns", "-D", "2001:db8:53::53", "--dhcp-search", "-S", "example.org")
    guest.sysctl(net__ipv6__conf__host0__accept_dad=0)
    guest.run("ip", "link", "set", "host0", "up")
    lease = dhclient(pasta, guest, 6)
    assert lease["new_ip6_address"] == HOST6
    assert lease["new_dhcp6_name_servers"] == "2001:db8:53::53"
    assert lease["new_dhcp6_domain_search"].strip() == "example.org."


def link_local(guest: Guest) -> bool:
    """Whether the guest has a link-local address on its interface that can be used."""
    shown = guest.run("ip", "-6", "-o", "address", "show", "dev", "host0", "scope", "link").stdout
    return "fe80" in shown and "tentative" not in shown


def test_D6_rdisc6_finds_the_router(pasta: Pasta) -> None:
    client = need("rdisc6", "ndisc6")
    guest = pasta.guest("--dhcp-dns", "-D", "2001:db8:53::53", "--dhcp-search", "-S", "example.org")
    guest.sysctl(net__ipv6__conf__host0__accept_dad=0)
    guest.run("ip", "link", "set", "host0", "up")
    wait_until(lambda: link_local(guest), "the link-local address that it asks with")
    shown = guest.run(client, "-1", "host0").stdout
    for words in ("65535", "65520", "2001:db8:53::53", "example.org", "Autonomous address conf.:          Yes"):
        assert words in shown


def test_D6_the_kernel_of_the_guest_configures_ipv6(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[6], echo)
    guest = pasta.guest()
    guest.sysctl(net__ipv6__conf__host0__accept_dad=0)
    guest.run("ip", "link", "set", "host0", "up")

    def configured() -> bool:
        address = guest.run("ip", "-o", "-6", "address", "show", "dev", "host0", "scope", "global").stdout
        return "2001:db8::" in address and "default via" in guest.run("ip", "-6", "route").stdout

    wait_until(configured, "address and default route by router advertisement")
    with guest.connect(SERVER[6], server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_a_thousand_questions_and_answers_in_datagrams(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_udp(SERVER4, lambda data, _: data)
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER4, server.port, kind=socket.SOCK_DGRAM) as connection:
        for number in range(1000):
            connection.send(b"%d" % number)
            assert connection.recv(10) == b"%d" % number
