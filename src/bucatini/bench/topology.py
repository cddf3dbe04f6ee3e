"""The benchmark's own network: a host namespace and a server namespace joined by a path, and guests behind the host.

    guest  -- the system measured --  host 192.0.2.1   ---- path ----   server 192.0.2.2, the host's default gateway
                                           2001:db8::1                         2001:db8::2
                                                                        lo     198.51.100.1, where the servers are
                                                                               2001:db8:100::1

The servers are not at the gateway's address, which some systems translate. The path is a veth, or a delay line
(`path`). Nothing of the machine stays changed: namespaces go with `close`, and the three settings outside them (the
list of congestion controls that namespaces may choose, the mode of /dev/net/tun, /etc/netns) are put back. `close`
undoes whatever part of `make` was done, so a run can be interrupted anywhere between the two.
"""

from __future__ import annotations

import os
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

HOST4, HOST6 = "192.0.2.1", "2001:db8::1"
GATEWAY4, GATEWAY6 = "192.0.2.2", "2001:db8::2"
SERVER4, SERVER6 = "198.51.100.1", "2001:db8:100::1"
RESOLVER4 = "203.0.113.53"  # what a guest asks where a system forwards DNS
UID = 61234  # an unprivileged user, by number: it needs no entry
PATH_CPU = 0  # of a delay line
FILES = min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])  # descriptor limit of everything started here

LINE_QUEUE = 20_000  # packets
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
_TUN = Path("/dev/net/tun")


class Delay(NamedTuple):
    """A delay line's properties, both ways alike."""

    rtt: float  # seconds
    loss: float = 0.0  # probability, of a frame
    rate: float = 1e9  # bit/s
    mtu: int = 1500
    reorder: float = 0.0
    backlog: float = 0.02  # seconds of queue at the bottleneck
    seed: int = 1


def sh(*commands: str) -> None:
    """Run commands that must work."""
    for command in commands:
        done = subprocess.run(shlex.split(command), check=False, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr.strip()}")


def as_user(command: list[str]) -> list[str]:
    """The command line that runs `command` as the unprivileged user."""
    return ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", *command]


def put_back_when_ended() -> None:
    """Have a signal from outside put namespaces and settings back, which nothing interrupts then."""

    def leave(number: int, _: object) -> None:
        for each in ENDING:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for number in ENDING:
        signal.signal(number, leave)


class Topology:
    """Two namespaces and the path between them, congestion control cubic; there from `make` to `close`."""

    _count = 0

    def __init__(self, delay: Delay | None = None) -> None:
        """Change nothing yet."""
        Topology._count += 1
        tag = f"bb{os.getpid()}-{Topology._count}"
        self.host, self.server = f"{tag}h", f"{tag}s"
        self.delay = delay
        self.processes: list[subprocess.Popen[bytes]] = []
        self._allowed = _ALLOWED.read_text()
        self._tun = stat.S_IMODE(_TUN.stat().st_mode)
        self._etc = Path("/etc/netns", self.host)
        self._made_etc = not self._etc.parent.exists()
        self.folder = Path(tempfile.gettempdir(), f"bucatini-bench-{tag}")  # short, for the path of a socket

    def make(self) -> None:
        """Make it; `close` has to follow, also when this fails."""
        _ALLOWED.write_text("cubic " + self._allowed)
        _TUN.chmod(0o666)
        self.folder.mkdir(mode=0o700)
        os.chown(self.folder, UID, UID)
        self._etc.mkdir(parents=True)
        (self._etc / "resolv.conf").write_text(f"nameserver {SERVER4}\n")
        for name in (self.host, self.server):
            sh(f"ip netns add {name}", f"ip -n {name} link set lo up")
            sysctl = "net.ipv4.tcp_congestion_control=cubic"
            if self.delay is not None:
                # The kernel's limits would be the bottleneck of a long path, and hide what the systems do
                sysctl += " net.ipv4.tcp_rmem='4096 131072 67108864' net.ipv4.tcp_wmem='4096 65536 67108864'"
            sh(f"ip netns exec {name} sysctl -qw {sysctl}")
        sh(f"ip netns exec {self.host} sysctl -qw net.ipv4.ping_group_range='0 2147483647'")
        if self.delay is None:
            sh(f"ip link add net0 netns {self.host} type veth peer name net0 netns {self.server}")
        else:
            self._start_line(self.delay)
        ends = ((self.host, HOST4, HOST6), (self.server, GATEWAY4, GATEWAY6))
        for name, v4, v6 in ends:
            sh(
                f"ip -n {name} addr add {v4}/24 dev net0",
                f"ip -n {name} addr add {v6}/64 dev net0 nodad",
                f"ip -n {name} link set net0 mtu {self.delay.mtu if self.delay else 1500} up",
            )
        sh(
            f"ip -n {self.host} route add default via {GATEWAY4}",
            f"ip -n {self.host} -6 route add default via {GATEWAY6}",
            f"ip -n {self.server} addr add {SERVER4}/32 dev lo",
            f"ip -n {self.server} addr add {SERVER6}/128 dev lo",
        )

    def _start_line(self, delay: Delay) -> None:
        command = [sys.executable, "-m", "bucatini.bench.path", self.host, self.server, "net0", "3600"]
        command += [f"delay={delay.rtt / 2}", f"rate={delay.rate}", f"backlog={delay.backlog}", f"loss={delay.loss}"]
        command += [f"mtu={delay.mtu}", f"reorder={delay.reorder}", f"seed={delay.seed}"]
        process = subprocess.Popen(["taskset", "-c", str(PATH_CPU), *command], stdout=subprocess.PIPE)
        self.processes.append(process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != b"ready":
            raise RuntimeError("the delay line did not start")
        # The line alone loses packets: a tap's queue of 1,000 would lose what comes while it waits for its turn
        for name in (self.host, self.server):
            sh(f"ip -n {name} link set net0 txqueuelen {LINE_QUEUE}")

    def spawn(self, command: list[str], *, where: str, cpu: int, user: bool = False) -> subprocess.Popen[bytes]:
        """Start a process in a namespace on one CPU; it ends with `close` at the latest."""
        full = ["ip", "netns", "exec", where, "prlimit", f"--nofile={FILES}", "taskset", "-c", str(cpu)]
        full += as_user(command) if user else command
        process = subprocess.Popen(full, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.processes.append(process)
        return process

    def close(self) -> None:
        """End what was started, remove what was made."""
        for process in reversed(self.processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            try:
                process.wait(3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        for name in (self.host, self.server):
            subprocess.run(["ip", "netns", "del", name], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._etc.parent if self._made_etc else self._etc, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        _TUN.chmod(self._tun)
        _ALLOWED.write_text(self._allowed)


class Guest:
    """A network namespace of an unprivileged user, to be connected by one of the systems."""

    def __init__(self, topology: Topology) -> None:
        holder = ["unshare", "-Urn", "sleep", "3600"]
        self.holder = topology.spawn(holder, where=topology.host, cpu=0, user=True)
        self.pid = self.holder.pid
        deadline = time.monotonic() + 5
        outside = {os.stat(f"/run/netns/{topology.host}").st_ino, os.stat("/proc/self/ns/net").st_ino}
        while os.stat(f"/proc/{self.pid}/ns/net").st_ino in outside:
            if time.monotonic() > deadline:
                raise RuntimeError("the guest's namespace did not come up")
            time.sleep(0.01)
        settings = ["net.ipv4.tcp_congestion_control=cubic"]
        if topology.delay is not None:
            settings += ["net.ipv4.tcp_rmem=4096 131072 67108864", "net.ipv4.tcp_wmem=4096 65536 67108864"]
        self.command(["sysctl", "-qw", *settings], cpu=0)

    def wrap(self, command: list[str], cpu: int) -> list[str]:
        """The command line that runs `command` inside."""
        enter = ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials"]
        return ["prlimit", f"--nofile={FILES}", *as_user([*enter, "taskset", "-c", str(cpu), *command])]

    def command(self, command: list[str], cpu: int) -> str:
        """Run a command inside and return its output."""
        return subprocess.run(self.wrap(command, cpu), check=True, stdout=subprocess.PIPE, text=True).stdout

    def wait_for_address(self, seconds: float) -> None:
        """Wait until global addresses of both versions are there, and usable."""
        deadline = time.monotonic() + seconds
        while True:
            four, six = (
                self.command(["ip", f"-{version}", "addr", "show", "scope", "global"], cpu=0) for version in (4, 6)
            )
            if "inet " in four and "inet6 " in six and "tentative" not in six:
                return
            if time.monotonic() > deadline:
                raise RuntimeError("no address in the guest")
            time.sleep(0.02)

    def stop(self) -> None:
        """Let the namespace go."""
        self.holder.terminate()
        self.holder.wait()
