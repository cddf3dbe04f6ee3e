"""How others start pasta: their command lines as recorded, in namespaces like theirs, and how they end it.

The callers are played: a rootless Podman is a user namespace with mounts of its own, in which the network namespace is
a file; RootlessKit and those like it are a process with namespaces of its own.
"""

import contextlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from system.namespaces import Namespace, alive, echo, wait_until
from system.topology import ANY, HOST4, LOOPBACK, SERVER4, Guest, Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.timeout(90)]

CONTAINER = """
mount -t tmpfs none "$1"
touch "$1/netns"
unshare --net="$1/netns" true
exec readlink /proc/self/ns/user
"""

ECHO_ONCE = """
import socket, sys
with socket.create_server(("", int(sys.argv[1]))) as server:
    print("ready", flush=True)
    peer, _ = server.accept()
    peer.sendall(peer.recv(100))
"""

ASK = """
import socket, sys
with socket.create_connection(sys.argv[1:]) as connection:
    connection.sendall(b"x")
    print(connection.recv(9))
"""


class Podman:
    """The user namespace of a rootless Podman, with the network namespace of a container in a file."""

    def __init__(self, pasta: Pasta) -> None:
        self.pasta = pasta
        self.folder = pasta.workspace / "netns"
        self.folder.mkdir()
        os.chown(self.folder, pasta.user.uid, pasta.user.gid)
        self.file = f"{self.folder}/netns"
        self.pause = pasta.holder("--mount")  # as Podman's pause process
        self.inside("sh", "-ec", CONTAINER, "sh", str(self.folder))

    def command(self, *command: str) -> list[str]:
        enter = ["nsenter", f"--target={self.pause.pid}", "--user", "--mount", "--preserve-credentials"]
        return self.pasta.topology.host.command([*enter, *command], self.pasta.user)

    def inside(self, *command: str) -> str:
        done = subprocess.run(self.command(*command), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout + done.stderr

    def container(self, *command: str) -> str:
        return self.inside("nsenter", f"--net={self.file}", *command)

    def serve(self, port: int) -> "subprocess.Popen[str]":
        """An echo server in the container."""
        enter = ["nsenter", f"--net={self.file}", self.pasta.installation.python, "-I", "-S", "-c"]
        argv = self.command(*enter, ECHO_ONCE, str(port))
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pasta.adopt(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process


def served(host: Namespace, address: str, port: int) -> None:
    with host.connect(address, port) as connection:
        connection.sendall(b"question")
        assert connection.recv(100) == b"question"


def addresses(text: str) -> dict[str, set[str]]:
    """Interface -> its usable global addresses, as Podman reads them right after the start."""
    return {
        link["ifname"]: {
            address["local"]
            for address in link["addr_info"]
            if address["scope"] == "global" and not address.get("tentative")
        }
        for link in json.loads(text)
    }


DEFAULTS = ["-t", "none", "-u", "none", "-T", "none", "-U", "none"]


def podman(file: str, *options: str, defaults: list[str] = DEFAULTS) -> list[str]:
    """The command line of containers/common's pasta_linux.go."""
    return [
        "--config-net", *options, "--dns-forward", "169.254.1.1", *defaults, "--no-map-gw", "--quiet", "--netns", file,
        "--map-guest-addr", "169.254.1.2",
    ]  # fmt: skip


def start(caller: Podman, *arguments: str) -> list[int]:
    """Run pasta to its readiness, as Podman does: it says nothing. Returns its processes."""
    before = set(os.listdir("/proc"))
    assert caller.inside(caller.pasta.installation.pasta, *arguments) == ""
    found = [
        int(entry)
        for entry in set(os.listdir("/proc")) - before
        if entry.isdigit() and caller.file.encode() in _arguments(entry)
    ]
    assert found
    return found


def _arguments(pid: str) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    return []


def test_podman_run(pasta: Pasta) -> None:
    caller = Podman(pasta)
    pids = start(caller, *podman(caller.file))
    links = addresses(caller.container("ip", "-j", "address", "show", "up"))
    assert HOST4 in links["host0"]
    assert any(":" in address for address in links["host0"])
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    assert caller.container(pasta.installation.python, "-c", ASK, SERVER4, str(server.port)) == "b'x'\n"
    # The container's end: its namespace is unmounted and the file removed
    caller.inside("umount", caller.file)
    caller.inside("rm", caller.file)
    wait_until(lambda: not any(map(alive, pids)), "end of pasta with its namespace", 5)


def test_podman_run_with_ports(pasta: Pasta) -> None:
    caller = Podman(pasta)
    ports = ["-t", "8080-8080:80-80", "-u", "8053-8053:53-53", "-t", "127.0.0.1/8090-8092:90-92"]
    start(caller, *podman(caller.file, *ports, defaults=["-T", "none", "-U", "none"]))
    for port, address, host_port in ((80, HOST4, 8080), (80, LOOPBACK[4], 8080), (91, LOOPBACK[4], 8091)):
        server = caller.serve(port)
        served(pasta.topology.host, address, host_port)
        server.wait(10)
    with pytest.raises(ConnectionRefusedError):
        pasta.topology.server.connect(HOST4, 8091, source=SERVER4)


def test_podman_run_with_a_port_of_the_host(pasta: Pasta) -> None:
    caller = Podman(pasta)
    server = pasta.topology.host.serve_tcp(LOOPBACK[4], echo)
    start(caller, *podman(caller.file, "-T", str(server.port), defaults=["-t", "none", "-u", "none", "-U", "none"]))
    assert caller.container(pasta.installation.python, "-c", ASK, LOOPBACK[4], str(server.port)) == "b'x'\n"


def test_podman_run_with_options(pasta: Pasta) -> None:
    caller = Podman(pasta)
    options = ["-a", "192.168.99.5", "-n", "24", "-g", "192.168.99.1", "-I", "eth9", "-m", "1400"]
    start(caller, *podman(caller.file, *options))
    shown = caller.container("ip", "-j", "address", "show", "eth9")
    assert "192.168.99.5" in addresses(shown)["eth9"]
    assert json.loads(shown)[0]["mtu"] == 1400
    assert "via 192.168.99.1" in caller.container("ip", "-4", "route", "show", "default")


def test_podman_with_bridge_networks(pasta: Pasta) -> None:
    caller = Podman(pasta)
    pid_file = pasta.workspace / "rootless-netns-conn.pid"
    arguments = podman(caller.file)
    arguments[1:1] = ["--pid", str(pid_file)]
    pids = start(caller, *arguments)
    assert int(pid_file.read_text()) in pids


def test_podman_asks_for_what_is_unknown_by_the_words_of_getopt(pasta: Pasta) -> None:
    """It tries again without the option when the status is 1 and the words are these."""
    done = pasta.run("--config-net", "--no-such-option", "x", check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("pasta: unrecognized option '--no-such-option'\n")


def test_buildah_run(pasta: Pasta) -> None:
    caller = Podman(pasta)
    holder = subprocess.Popen(
        caller.command("nsenter", f"--net={caller.file}", "cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    pasta.adopt(holder)
    wait_until(lambda: _arguments(str(holder.pid))[:1] == [b"cat"], "the process of the container", 5)
    path = f"/proc/{holder.pid}/ns/net"
    caller.file = path
    pids = start(caller, *podman(path))
    assert HOST4 in addresses(caller.container("ip", "-j", "address", "show", "up"))["host0"]
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait(5)
    wait_until(lambda: not any(map(alive, pids)), "end of pasta with its namespace", 5)


ROOTLESSKIT = [
    "--stderr", "--ns-ifname=tap0", "--mtu=65520", "--no-dhcp", "--no-ra", "--address=10.0.2.100", "--netmask=24",
    "--gateway=10.0.2.2", "--dns-forward=10.0.2.3",
]  # fmt: skip


@pytest.mark.parametrize("forms", ["process", "paths"])
@pytest.mark.parametrize("ports", ["none", "auto"])
def test_rootlesskit(pasta: Pasta, forms: str, ports: str) -> None:
    """It configures the tap itself, once that is there; it is told of no readiness but the tap."""
    child = pasta.holder()
    operands = [str(child.pid)]
    if forms == "paths":
        operands = [f"--userns=/proc/{child.pid}/ns/user", f"--netns=/proc/{child.pid}/ns/net"]
    options = ["--foreground", *ROOTLESSKIT, "--no-map-gw", "--ipv4-only"]
    options += [f"--tcp-ports={ports}", f"--udp-ports={ports}"]
    process = subprocess.Popen(
        pasta.argv(*options, *operands), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True,
    )  # fmt: skip
    pasta.adopt(process)
    guest = Guest(pasta, process.pid, process, child.pid)
    with contextlib.closing(guest):
        wait_until(lambda: "tap0" in guest.run("ip", "-o", "link").stdout, "the tap", 5)
        for line in ("link set lo up", "link set tap0 up", "address add 10.0.2.100/24 dev tap0"):
            guest.run("ip", *line.split())
        guest.run("ip", "route", "add", "default", "via", "10.0.2.2", "dev", "tap0")
        server = pasta.topology.server.serve_tcp(SERVER4, echo)
        served(guest, SERVER4, server.port)
        if ports == "auto":
            listener = guest.listen(ANY[4], 8080)
            wait_until(lambda: ":8080" in pasta.topology.host.run("ss", "-Hltn").stdout, "the forward", 5)
            with pasta.topology.host.connect(LOOPBACK[4], 8080) as client:
                client.sendall(b"in")
                connection, _ = listener.accept()
                with connection:
                    assert connection.recv(9) == b"in"
    assert child.stdin is not None
    child.stdin.close()
    child.wait(5)
    assert process.wait(5) == 0
