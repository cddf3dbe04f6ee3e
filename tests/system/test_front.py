"""`bucatini demo` and `bucatini doctor`, as users run them."""

import json
import os
import pty
import subprocess

import pytest

from system.topology import Pasta
from system.users import only_unprivileged


def demo(pasta: Pasta, *arguments: str) -> subprocess.CompletedProcess[str]:
    return pasta.topology.host.run(pasta.installation.bucatini, "demo", *arguments, user=pasta.user, check=False)


def test_the_demo_shows_a_namespace_a_page_and_throughput(pasta: Pasta) -> None:
    result = demo(pasta)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "192.0.2.2/24" in result.stdout
    assert "2001:db8::2/64" in result.stdout
    assert result.stdout.count("Hello from the host!") == 2
    assert result.stdout.count("Gbit/s") == 2
    assert result.stderr == ""


def test_the_demo_works_on_a_machine_with_nothing_but_lo(pasta: Pasta) -> None:
    pasta.topology.host.ip("link delete host0", "link delete extra0")
    result = demo(pasta)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "169.254.2.1" in result.stdout
    assert result.stdout.count("Hello from the host!") == 2


def test_on_a_terminal_the_demo_ends_in_a_shell_inside(pasta: Pasta) -> None:
    leader, follower = pty.openpty()
    command = pasta.topology.host.command([pasta.installation.bucatini, "demo"], pasta.user)
    environment = os.environ | {"SHELL": "/bin/sh", "PS1": "inside> ", "TERM": "dumb"}
    with subprocess.Popen(command, stdin=follower, stdout=follower, stderr=follower, env=environment) as process:
        os.close(follower)
        text = b""
        while b"Your turn" not in text or not text.rstrip(b" ").endswith((b">", b"#", b"$")):
            text += os.read(leader, 4096)
        os.write(leader, b"readlink /proc/self/ns/net; exit 5\n")
        try:
            while data := os.read(leader, 4096):
                text += data
        except OSError:
            pass  # the other side is closed: everybody has gone
        assert process.wait(10) == 0
    os.close(leader)
    assert b"net:[" in text
    assert os.readlink("/proc/self/ns/net").encode() not in text
    assert b"You have left the namespace" in text


@only_unprivileged
def test_the_doctor_finds_this_host_fit(pasta: Pasta) -> None:
    doctor = [pasta.installation.bucatini, "doctor", "--json"]
    report = json.loads(pasta.topology.host.run(*doctor, user=pasta.user).stdout)
    assert report["works"]
    found = {check["name"]: check["status"] for check in report["checks"]}
    assert found["user namespaces"] == found["/dev/net/tun"] == found["ping"] == "ok"


@only_unprivileged
def test_the_doctor_sees_what_is_wrong(pasta: Pasta) -> None:
    pasta.topology.host.sysctl(net__ipv4__ping_group_range="1 0")
    doctor = [pasta.installation.bucatini, "doctor"]
    report = pasta.topology.host.run(*doctor, user=pasta.user)
    assert "warning  ping" in report.stdout
    assert "sysctl -w net.ipv4.ping_group_range" in report.stdout


@pytest.mark.parametrize("command", ["demo", "doctor"])
def test_help_costs_nothing(pasta: Pasta, command: str) -> None:
    assert "Usage" in pasta.topology.host.run(pasta.installation.bucatini, command, "--help", user=pasta.user).stdout
