"""How others start passt: their command lines, what they wait for, and how they end it.

Where the caller itself cannot run here it is played: libvirt needs a daemon and a domain, QEMU has `-netdev passt` from
10.1 on, the others bring machines of their own. Their argument lists are exactly these.
"""

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from system.machine import INTERFACE, Machine, Passt, client, is_served
from system.namespaces import alive, echo, wait_until
from system.programs import need
from system.topology import ANY, GATEWAY4, HOST, HOST4, SERVER4
from system.users import only_root

pytestmark = pytest.mark.timeout(90)


def listening(passt: Passt, protocol: str) -> set[tuple[str, int]]:
    """Addresses and ports bound on the host."""
    lines = passt.topology.host.run("ss", "-Hln", "-t" if protocol == "tcp" else "-u").stdout.splitlines()
    places = [line.split()[3].rpartition(":") for line in lines]
    return {(address.strip("[]"), int(port)) for address, _, port in places}


def works(passt: Passt, machine: Machine) -> None:
    """The guest reaches a server."""
    server = passt.topology.server.serve_tcp(SERVER4, echo)
    with machine.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def lease(passt: Passt, machine: Machine) -> dict[str, str]:
    """What udhcpc is told."""
    need("udhcpc", "udhcpc")
    machine.ip(f"link set {INTERFACE} up")
    script, found = passt.workspace / "script", passt.workspace / "lease"
    script.write_text(
        f'#!/bin/sh\n[ "$1" = bound ] || exit 0\nenv >{found}\nip address add $ip/$mask dev $interface\n'
        "ip route replace $router dev $interface\nip route add default via $router dev $interface\n"
    )
    script.chmod(0o755)
    options = [word for name in ("mtu", "search", "hostname", "81") for word in ("-O", name)]
    machine.run("udhcpc", "-i", INTERFACE, "-f", "-q", "-n", "-t", "5", "-T", "1", *options, "-s", str(script))
    return dict(line.partition("=")[::2] for line in found.read_text().splitlines())


# libvirt


def libvirt(passt: Passt, *options: str) -> tuple[int, str]:
    """Start it as qemu_passt.c does: all capabilities cleared; the process, read from the pid file, and the socket."""
    path, pid_file = f"{passt.workspace}/1-dom-net0.socket", f"{passt.workspace}/1-dom-net0-passt.pid"
    command = ["--one-off", "--socket", path, "--pid", pid_file, *options]
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"] if passt.user.uid else []
    argv = [*passt.topology.host.command(prefix, passt.user), passt.installation.passt, *command]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    pid = int(Path(pid_file).read_text())
    passt.adopt(pid)
    return pid, path


def test_libvirt(passt: Passt, machine: Machine) -> None:
    log = passt.workspace / "passt.log"
    options = [
        "--interface", "host0", "--log-file", str(log), "--address", "172.17.2.9", "--netmask", "24",
        "--address", "2001:db8:ac10:fd01::feed", "--tcp-ports", "2022:80",
        "--tcp-ports", "127.0.0.1/3000-3005,~3002", "--udp-ports", "%host0/5000-5020:6000-6020",
    ]  # fmt: skip
    pid, path = libvirt(passt, *options)
    machine.cable.connect(path)  # at once: QEMU starts next
    found = lease(passt, machine)
    assert found["ip"] == "172.17.2.9"
    assert found["mask"] == "24"
    assert found["mtu"] == "65520"
    assert found["lease"] == "4294967295"
    works(passt, machine)
    tcp, udp = listening(passt, "tcp"), listening(passt, "udp")
    assert {port for address, port in tcp if address == "127.0.0.1"} == {3000, 3001, 3003, 3004, 3005}
    assert any(port == 2022 for _, port in tcp)
    assert {port for _, port in udp} >= set(range(5000, 5021))
    machine.serve_tcp(ANY[4], echo, port=80)
    with passt.topology.server.connect(HOST[4], 2022) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert "client connected" in log.read_text()
    # The domain ends: so does passt, by itself
    machine.cable.disconnect()
    wait_until(lambda: not alive(pid), "the end with QEMU", 5)
    os.unlink(path)
    # And starts again with the same files
    pid, path = libvirt(passt, *options)
    with client(path) as sock:
        assert is_served(sock)
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not alive(pid), "the end by SIGTERM", 5)


def test_libvirt_with_everything_a_domain_may_say(passt: Passt, machine: Machine) -> None:
    """<mtu>, <portForward> with an address, a device and all ports, and a host name."""
    options = [
        "--mtu", "9000", "--interface", "host0", "--log-file", str(passt.workspace / "passt.log"),
        "--hostname", "guest", "--fqdn", "guest.example.org", "--address", "192.0.2.50",
        "--tcp-ports", f"{HOST4}%host0/2022:22", "--udp-ports", "%host0/all",
    ]  # fmt: skip
    _, path = libvirt(passt, *options)
    assert (f"{HOST4}%host0", 2022) in listening(passt, "tcp")
    everywhere = {port for address, port in listening(passt, "udp") if address.endswith("%host0")}
    assert {1234, 5353, 8080} <= everywhere
    machine.cable.connect(path)
    found = lease(passt, machine)
    assert (found["ip"], found["mtu"], found["hostname"]) == ("192.0.2.50", "9000", "guest")
    machine.serve_tcp(ANY[4], echo, port=22)
    with passt.topology.server.connect(HOST4, 2022) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_libvirt_learns_of_a_socket_that_cannot_be_bound(passt: Passt) -> None:
    result = passt.run(
        "--one-off", "--socket", "/nonexistent/1-dom-net0.socket", "--pid", str(passt.workspace / "pid"), check=False
    )
    assert result.returncode == 1
    assert "/nonexistent/1-dom-net0.socket" in result.stderr


# QEMU's own -netdev passt


def test_qemu(passt: Passt, machine: Machine) -> None:
    def start() -> tuple[int, socket.socket]:
        number, name = tempfile.mkstemp(prefix="passt-", suffix=".pid", dir=passt.workspace)
        os.close(number)
        os.chown(name, passt.user.uid, passt.user.gid)
        assert stat.S_IMODE(os.stat(name).st_mode) == 0o600
        ours, theirs = socket.socketpair()
        with theirs:
            fd = theirs.fileno()
            options = [
                "--quiet", "--mtu", "1400", "--address", "192.0.2.50", "--netmask", "255.255.255.0",
                "--mac-addr", "9a:55:9a:55:9a:56", "--gateway", GATEWAY4, "--interface", "host0",
                "--outbound", HOST4, "--outbound-if4", "host0", "--dns", "192.0.2.53", "--fqdn", "guest.example.org",
                "--map-host-loopback", "192.0.2.60", "--map-guest-addr", "192.0.2.61", "--dns-forward", "192.0.2.62",
                "--dns-host", "192.0.2.53", "--no-dhcpv6", "--no-ra", "--no-ndp", "--freebind", "--ipv4-only",
                "--search", "example.org example.net", "--tcp-ports", "2222:22,8080", "--udp-ports", "5353",
                "--pid", name, "--fd", str(fd),
            ]  # fmt: skip
            passt.run(*options, pass_fds=[fd])
        pid = int(Path(name).read_text())
        passt.adopt(pid)
        return pid, ours

    pid, sock = start()
    machine.cable.connect(sock)
    found = lease(passt, machine)
    assert found["ip"] == "192.0.2.50"
    assert found["mtu"] == "1400"
    assert found["dns"] == "192.0.2.53"
    assert found["search"].split() == ["example.org", "example.net"]
    works(passt, machine)
    assert {port for _, port in listening(passt, "tcp")} >= {2222, 8080}
    # The stream breaks: passt ends, and QEMU starts another
    machine.cable.disconnect()
    wait_until(lambda: not alive(pid), "the end with the stream", 5)
    pid, sock = start()
    machine.cable.connect(sock)
    works(passt, machine)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pid), "the end by SIGTERM", 5)


@pytest.mark.parametrize(
    "options",
    [
        ["--no-tcp", "--no-udp", "--no-icmp", "--no-dhcp", "--ipv6-only"],
        ["--no-dhcp-dns", "--no-dhcp-search", "--outbound-if6", "host0", "--ipv6-only"],
    ],
)
def test_qemu_with_other_properties(passt: Passt, options: list[str]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid_file = passt.workspace / "pid"
        passt.run("--quiet", *options, "--pid", str(pid_file), "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
        pid = int(pid_file.read_text())
        passt.adopt(pid)
        assert alive(pid)
    wait_until(lambda: not alive(pid), "the end with the stream", 5)


def test_qemu_learns_of_an_error(passt: Passt) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        result = passt.run(
            "--quiet", "--vhost-user", "--fd", str(theirs.fileno()), check=False, pass_fds=[theirs.fileno()]
        )
    assert result.returncode == 1
    assert result.stderr == "passt: --vhost-user: vhost-user is not there yet\n"


# KubeVirt, without vhost-user


@pytest.mark.parametrize(
    ("ports", "bound", "free"),
    [
        (["--tcp-ports", "all", "--udp-ports", "all"], {1234, 8080}, set()),
        (["--tcp-ports", "8080,8443"], {8080, 8443}, {1234}),
        (["--tcp-ports", "~15000,~15001,~15006"], {1234, 8080}, {15000, 15001, 15006}),
        (["--tcp-ports", "~1500,~1501,~1506"], {1234, 1499, 1502, 8080}, {1500, 1501, 1506}),
    ],
    # The last one because descriptors may not go as far as 15000 here
    ids=["all", "named", "istio", "low"],
)
def test_kubevirt(passt: Passt, ports: list[str], bound: set[int], free: set[int]) -> None:
    log = passt.workspace / "passt.log"
    pid, path = libvirt(passt, "--interface", "host0", "--log-file", str(log), *ports)
    for protocol in ("tcp", "udp"):  # UDP follows the ports of TCP
        found = {port for _, port in listening(passt, protocol)}
        assert bound <= found
        assert not free & found
    with client(path) as sock:
        assert is_served(sock)
    wait_until(lambda: not alive(pid), "the end with QEMU", 5)
    os.unlink(path)
    # The machine is started again
    pid, path = libvirt(passt, "--interface", "host0", "--log-file", str(log), *ports)
    with client(path) as sock:
        assert is_served(sock)
    wait_until(lambda: not alive(pid), "the end with QEMU", 5)


# Those that bring their own machine


@pytest.mark.release  # it asks for a start within a second
def test_muvm(passt: Passt, machine: Machine) -> None:
    """With its strict policy, which is not the default, it looks for a user namespace of passt's own within a second.

    There is one, but an ordinary user's muvm may not see it: it starts passt as itself, and is refused as everybody is
    but root (SECURITY.md, "Other local users"). What it then does cannot be played: it takes that for a failure.
    """
    ours, theirs = socket.socketpair()
    process = passt.foreground(
        "-q", "--fd", str(theirs.fileno()), "-t", "127.0.0.1/8080-8081:80-81", "-u", "127.0.0.1/5353-5353:53-53",
        pass_fds=[theirs.fileno()],
    )  # fmt: skip
    theirs.close()
    namespace = os.readlink("/proc/self/ns/user")
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/user") != namespace, "a user namespace", 1)
    machine.cable.connect(ours)
    machine.configure()
    machine.serve_tcp(ANY[4], echo, port=81)
    with passt.topology.host.connect("127.0.0.1", 8081) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    looked = passt.topology.host.run("readlink", "-v", f"/proc/{process.pid}/ns/user", user=passt.user, check=False)
    if passt.user.uid:
        assert (looked.returncode, looked.stdout) == (1, "")
        assert "Permission denied" in looked.stderr
    else:
        assert looked.stdout.strip() not in {"", namespace}
    machine.cable.disconnect()
    assert process.wait(5) == 0


@only_root
def test_dockur_runs_a_copy_as_root(passt: Passt, machine: Machine) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        copy = shutil.copy(passt.installation.passt, folder)
        pid_file, path, log = (f"{folder}/{name}" for name in ("passt.pid", "passt.socket", "passt.log"))
        options = [
            "-4", "-a", "192.0.2.50", "-g", GATEWAY4, "-n", "255.255.255.0", "-m", "1400",
            "-t", "%host0/2222,8080", "-u", "%host0/2222,8080", "-H", "windows", "-M", "9a:55:9a:55:9a:57",
            "-P", pid_file, "-s", path, "-l", log, "-q",
        ]  # fmt: skip
        done = subprocess.run(
            [*passt.topology.host.command([copy, *options])], capture_output=True, text=True, check=False, timeout=30
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        pid = int(Path(pid_file).read_text())
        passt.adopt(pid)
        machine.cable.connect(path)
        found = lease(passt, machine)
        assert (found["ip"], found["mtu"], found["hostname"]) == ("192.0.2.50", "1400", "windows")
        machine.serve_tcp(ANY[4], echo, port=8080)
        with passt.topology.server.connect(HOST[4], 8080) as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
        # The gateway has the address that was asked for
        assert re.search("9a:55:9a:55:9a:57", machine.run("ip", "neighbour", "show", GATEWAY4).stdout)
        passt.terminate(pid)


def test_libkrun(passt: Passt, machine: Machine) -> None:
    ours, theirs = socket.socketpair()
    pid_file = passt.workspace / "pid"
    passt.run("-q", "--pid", str(pid_file), "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
    theirs.close()
    pid = int(pid_file.read_text())
    passt.adopt(pid)
    machine.cable.connect(ours)
    lease(passt, machine)
    works(passt, machine)
    machine.cable.disconnect()
    wait_until(lambda: not alive(pid), "the end with the machine", 5)
