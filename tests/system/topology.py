"""A small internet for one test: a host and a server in network namespaces of their own, and pasta on the host.

    guest                     host namespace                     server namespace
    made by pasta  -- pasta --  host0 192.0.2.2   ---- veth ----  server0 192.0.2.1, the host's default gateway
                                      2001:db8::2                         2001:db8::1
                                extra0 203.0.113.5 ---- veth ---- server1 203.0.113.1, a second network
                                       2001:db8:5::5                      2001:db8:5::1
                                                                  lo      198.51.100.1, where the servers are
                                                                          2001:db8:100::1

The servers are not at the gateway's address, because guest traffic to that goes to the host's loopback.
198.51.100.2 and 2001:db8:100::2 are answered with an ICMP error by the gateway, to 198.51.100.3 and 2001:db8:100::3
the host itself has no way.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from system.installation import Installation
from system.machine_settings import CUBIC
from system.namespaces import DEADLINE, NamedNamespace, Namespace, alive, end, stop, wait_until
from system.users import User

HOST4, HOST6 = "192.0.2.2", "2001:db8::2"
GATEWAY4, GATEWAY6 = "192.0.2.1", "2001:db8::1"
EXTRA4, EXTRA6 = "203.0.113.5", "2001:db8:5::5"
NEIGHBOUR4, NEIGHBOUR6 = "203.0.113.1", "2001:db8:5::1"  # the server in the second network
SERVER4, SERVER6 = "198.51.100.1", "2001:db8:100::1"
FAR4, FAR6 = "198.51.100.66", "2001:db8:200::2"  # behind the server: `Topology.far`
REJECTED4, REJECTED6 = "198.51.100.2", "2001:db8:100::2"
UNROUTED4, UNROUTED6 = "198.51.100.3", "2001:db8:100::3"

HOST = {4: HOST4, 6: HOST6}
GATEWAY = {4: GATEWAY4, 6: GATEWAY6}
EXTRA = {4: EXTRA4, 6: EXTRA6}
NEIGHBOUR = {4: NEIGHBOUR4, 6: NEIGHBOUR6}
SERVER = {4: SERVER4, 6: SERVER6}
FAR = {4: FAR4, 6: FAR6}
REJECTED = {4: REJECTED4, 6: REJECTED6}
UNROUTED = {4: UNROUTED4, 6: UNROUTED6}
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
ANY = {4: "0.0.0.0", 6: "::"}

_numbers = itertools.count()


def url(address: str, port: int, path: str = "/") -> str:
    """An http URL; IPv6 addresses are bracketed."""
    return f"http://[{address}]:{port}{path}" if ":" in address else f"http://{address}:{port}{path}"


class Topology:
    """The host and the server."""

    def __init__(self) -> None:
        prefix = f"bucatini-{os.getpid()}-{next(_numbers)}"
        self.host = NamedNamespace(f"{prefix}-host")
        self.server = NamedNamespace(f"{prefix}-server")

    def __enter__(self) -> Self:
        self.server.__enter__()
        try:
            self.host.__enter__()
            try:
                self._configure()
            except BaseException:
                self.host.__exit__()
                raise
        except BaseException:
            self.server.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.host.__exit__()
        self.server.__exit__()

    def _configure(self) -> None:
        for side in (self.host, self.server):
            # Addresses can be used at once, and neither side takes any from the other.
            side.sysctl(
                net__ipv6__conf__default__accept_dad=0,
                net__ipv6__conf__all__accept_dad=0,
                net__ipv6__conf__default__accept_ra=0,
                net__ipv4__tcp_congestion_control=CUBIC,
            )
        self.host.sysctl(net__ipv4__ping_group_range="0 2147483647")
        self.host.resolv_conf(f"nameserver {SERVER4}\n")
        self.server.sysctl(net__ipv4__ip_forward=1, net__ipv6__conf__all__forwarding=1)
        self.server.ip(
            f"link add server0 type veth peer name host0 netns {self.host.name}",
            "link set lo up",
            "link set server0 up",
            f"address add {GATEWAY4}/24 dev server0",
            f"address add {GATEWAY6}/64 dev server0 nodad",
            f"address add {SERVER4}/32 dev lo",
            f"address add {SERVER6}/128 dev lo",
            f"link add server1 type veth peer name extra0 netns {self.host.name}",
            "link set server1 up",
            f"address add {NEIGHBOUR4}/24 dev server1",
            f"address add {NEIGHBOUR6}/64 dev server1 nodad",
            f"route add unreachable {REJECTED4}/32",
            f"route add unreachable {REJECTED6}/128",
        )
        self.host.ip(
            "link set lo up",
            "link set host0 up",
            f"address add {HOST4}/24 dev host0",
            f"address add {HOST6}/64 dev host0 nodad",
            f"route add default via {GATEWAY4} dev host0",
            f"route add default via {GATEWAY6} dev host0",
            "link set extra0 up",
            f"address add {EXTRA4}/24 dev extra0",
            f"address add {EXTRA6}/64 dev extra0 nodad",
            f"route add unreachable {UNROUTED4}/32",
            f"route add unreachable {UNROUTED6}/128",
        )
        for side in (self.host, self.server):
            wait_until(lambda: self._settled(side), f"link-local addresses in {side.name}")

    @contextlib.contextmanager
    def far(self) -> Iterator[NamedNamespace]:
        """One more namespace, behind the server: the second hop of the host (server2 and far0 are the link)."""
        with NamedNamespace(self.server.name.replace("-server", "-far")) as made:
            made.sysctl(net__ipv6__conf__default__accept_dad=0, net__ipv6__conf__all__accept_dad=0)
            made.sysctl(net__ipv4__tcp_congestion_control=CUBIC)
            self.server.ip(
                f"link add server2 type veth peer name far0 netns {made.name}",
                "link set server2 up",
                "address add 198.51.100.65/30 dev server2",
                "address add 2001:db8:200::1/64 dev server2 nodad",
            )
            made.ip(
                "link set lo up",
                "link set far0 up",
                f"address add {FAR4}/30 dev far0",
                f"address add {FAR6}/64 dev far0 nodad",
                "route add default via 198.51.100.65",
                "route add default via 2001:db8:200::1",
            )
            yield made

    @staticmethod
    def _settled(side: NamedNamespace) -> bool:
        """The kernel gives link-local addresses in its own time."""
        shown = json.loads(side.run("ip", "-j", "-6", "address", "show", "scope", "link").stdout)
        found = [address for link in shown for address in link.get("addr_info", []) if "local" in address]
        return len(found) == 2 and not any(address.get("tentative") for address in found)


class Guest(Namespace):
    """The namespace behind a running pasta."""

    def __init__(self, pasta: "Pasta", pid: int, process: "subprocess.Popen[str]", holder: int) -> None:
        super().__init__(f"/proc/{holder}/ns/net", ("nsenter", f"--target={holder}", "--net"))
        self.pasta = pasta
        self.pid = pid  # of pasta
        self.process = process  # its end is the end of the namespace
        self.holder = holder  # a process inside
        self.output: list[str] = []  # lines, of pasta in the foreground
        self._reader: threading.Thread | None = None

    def collect(self) -> None:
        """Read what pasta prints from now on, so that it never waits for a reader."""
        stream = self.process.stdout
        assert stream is not None
        self._reader = threading.Thread(target=lambda: self.output.extend(stream), daemon=True)
        self._reader.start()

    def settle(self) -> None:
        """Wait until pasta serves: its command starts a moment earlier. It takes an address in the guest."""
        with contextlib.suppress(ConnectionRefusedError):
            self.connect(GATEWAY4, 9)

    def descriptors(self) -> int:
        """Open descriptors of pasta."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def finish(self) -> int:
        """Let the guest's command end; the exit status of `process`."""
        self.close()
        assert self.process.stdin is not None
        self.process.stdin.close()
        status = self.process.wait(DEADLINE)
        self.join_reader()
        return status

    def join_reader(self) -> None:
        """Wait for the end of the output."""
        if self._reader is not None:
            self._reader.join(DEADLINE)


class Daemon(NamedTuple):
    """A pasta in the background."""

    pid: int
    output: str  # what it printed before it was ready

    def terminate(self, signal_number: int = signal.SIGTERM, timeout: float = 5) -> None:
        """Signal it and wait for its end."""
        os.kill(self.pid, signal_number)
        wait_until(lambda: not alive(self.pid), f"end of pasta ({self.pid}) after signal {signal_number}", timeout)


HOLD = "readlink /proc/self/ns/net; exec cat"  # what a guest does that only has to be there


class Pasta:
    """The program under test, run on the host of a topology by one user."""

    def __init__(self, installation: Installation, topology: Topology, user: User, workspace: Path) -> None:
        self.installation = installation
        self.topology = topology
        self.user = user
        self.workspace = workspace  # a directory of the user's
        self._running: list[subprocess.Popen[str]] = []
        self._daemons: list[int] = []
        self._guests: list[Guest] = []

    def argv(self, *options: str, command: Sequence[str] | None = None) -> list[str]:
        """The command line that runs pasta on the host as the user."""
        operands = ["--", *command] if command is not None else []
        return self.topology.host.command([self.installation.pasta, *options, *operands], self.user)

    def run(
        self,
        *options: str,
        command: Sequence[str] | None = None,
        timeout: float = 60,
        check: bool = True,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run pasta to its end (or into the background); with `check` a failure fails the test."""
        kwargs = {"stdin": subprocess.DEVNULL, "text": True, "cwd": "/"} | kwargs
        if "input" in kwargs:
            del kwargs["stdin"]
        result = subprocess.run(
            self.argv(*options, command=command), check=False, capture_output=True, timeout=timeout, **kwargs
        )
        if check:
            assert result.returncode == 0, (
                f"pasta {' '.join(options)}: exit status {result.returncode}\n{result.stdout}{result.stderr}"
            )
        return result

    def python(
        self, *options: str, code: str, arguments: Sequence[object] = (), **kwargs: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a Python program, given as text so that no file has to be readable, in a new namespace."""
        return self.run(
            *options, command=[self.installation.python, "-I", "-S", "-c", code, *map(str, arguments)], **kwargs
        )

    def guest(self, *options: str, timeout: float = DEADLINE) -> Guest:
        """Start pasta with a guest that stays until the end of the test (or `Guest.finish`)."""
        process = subprocess.Popen(
            self.argv(*options, command=["sh", "-c", HOLD]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/",
        )  # fmt: skip
        self._running.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        # pasta may have warnings to print first.
        output = line
        while line and not line.startswith("net:["):
            line = process.stdout.readline()
            output += line
        if not line:
            process.wait(timeout)
            message = f"pasta {' '.join(options)}: exit status {process.returncode}\n{output}"
            raise AssertionError(message)
        # ip and setpriv have become pasta: it is the process that was started.
        guest = Guest(self, process.pid, process, _process_in(line.strip()))
        guest.collect()
        self._guests.append(guest)
        return guest

    def adopt(self, process: "subprocess.Popen[str]") -> None:
        """End it with the test."""
        self._running.append(process)

    def holder(self, *others: str) -> "subprocess.Popen[str]":
        """A process of the user's in namespaces of its own, for pasta to join; `others`: of unshare(1), besides."""
        command = self.topology.host.command(
            ["unshare", "--user", "--map-root-user", "--net", *others, "sh", "-c", HOLD], self.user
        )
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("net:[")
        return process

    def join(self, *options: str, target: "subprocess.Popen[str] | None" = None) -> Guest:
        """Start pasta in the background for a process that is there already (by default a new holder)."""
        target = target or self.holder()
        daemon = self.background(*options, operands=[str(target.pid)])
        guest = Guest(self, daemon.pid, target, target.pid)
        self._guests.append(guest)
        return guest

    def background(self, *options: str, operands: Sequence[str] = (), **kwargs: Any) -> Daemon:
        """Run pasta until it has gone into the background."""
        pid_file = self.workspace / f"pasta-{next(_numbers)}.pid"
        # It has gone into the background when the command returns, so nothing has to be waited for.
        result = self.run(*options, "--pid", str(pid_file), *operands, **kwargs)
        pid = int(pid_file.read_text())
        self._daemons.append(pid)
        return Daemon(pid, result.stdout + result.stderr)

    def close(self) -> None:
        """End everything that was started."""
        for guest in self._guests:
            guest.close()
        for process in self._running:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                stop(process)
        for guest in self._guests:
            guest.join_reader()
        for process in self._running:
            end(process)
        for pid in self._daemons:
            if alive(pid):
                os.kill(pid, signal.SIGTERM)
                wait_until(lambda: not alive(pid), f"end of pasta ({pid}) after SIGTERM", 5)


def _process_in(namespace: str) -> int:
    """A process in the network namespace `namespace`, e.g. net:[4026532000]: the one that runs HOLD."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.readlink(entry / "ns/net") == namespace and (entry / "comm").read_text().strip() in {"sh", "cat"}:
                    found.append(int(entry.name))
            except OSError:
                continue
    assert found, f"no process in {namespace}"
    return max(found)


def elapsed(function: Any, *arguments: Any, **options: Any) -> tuple[Any, float]:
    """The result of a call and the seconds it took."""
    start = time.monotonic()
    result = function(*arguments, **options)
    return result, time.monotonic() - start
