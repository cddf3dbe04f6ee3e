"""The benchmark's own network: a host namespace and a server namespace joined by veth, and guests in between.

Nothing of the machine's configuration stays changed: namespaces go with `close`, and the one setting outside them (the
list of congestion controls that namespaces may choose) is put back.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

HOST4, SERVER4 = "192.0.2.1", "192.0.2.2"
HOST6, SERVER6 = "2001:db8::1", "2001:db8::2"
ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")
UID = 61234  # an unprivileged user, by number: it needs no entry


def sh(command: str) -> None:
    """Run a command that must work."""
    subprocess.run(command, shell=True, check=True, stdout=subprocess.DEVNULL)


class Topology:
    """Two namespaces and a veth, congestion control cubic."""

    def __init__(self) -> None:
        tag = f"bb{os.getpid()}"
        self.host, self.server = f"{tag}h", f"{tag}s"
        self.processes: list[subprocess.Popen[bytes]] = []
        self.allowed = ALLOWED.read_text()
        ALLOWED.write_text("cubic reno " + self.allowed)
        for name in (self.host, self.server):
            sh(f"ip netns add {name} && ip -n {name} link set lo up")
            sh(f"ip netns exec {name} sysctl -qw net.ipv4.tcp_congestion_control=cubic")
        sh(f"ip netns exec {self.host} sysctl -qw net.ipv4.ping_group_range='0 2147483647'")
        sh(f"ip link add veth0 netns {self.host} type veth peer name veth0 netns {self.server}")
        for name, v4, v6 in ((self.host, HOST4, HOST6), (self.server, SERVER4, SERVER6)):
            sh(f"ip -n {name} addr add {v4}/24 dev veth0 && ip -n {name} -6 addr add {v6}/64 dev veth0 nodad")
            sh(f"ip -n {name} link set veth0 up")
        sh(f"ip -n {self.host} route add default via {SERVER4}")
        sh(f"ip -n {self.host} -6 route add default via {SERVER6}")
        os.chmod("/dev/net/tun", 0o666)

    def spawn(self, command: list[str], *, where: str, cpu: int, user: bool = False) -> subprocess.Popen[bytes]:
        """Start a process in a namespace on one CPU; it ends with `close` at the latest."""
        full = ["ip", "netns", "exec", where, "taskset", "-c", str(cpu)]
        if user:
            full += ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        process = subprocess.Popen(full + command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
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
        for name in (self.host, self.server):
            subprocess.run(["ip", "netns", "del", name], check=False)
        ALLOWED.write_text(self.allowed)


class Guest:
    """A network namespace of an unprivileged user, to be connected by one of the systems."""

    def __init__(self, topology: Topology) -> None:
        self.holder = topology.spawn(["unshare", "-Urn", "sleep", "3600"], where=topology.host, cpu=0, user=True)
        deadline = time.monotonic() + 5
        mine = os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino
        host = os.stat(f"/run/netns/{topology.host}").st_ino
        while mine in (host, os.stat("/proc/self/ns/net").st_ino):
            if time.monotonic() > deadline:
                raise RuntimeError("the guest's namespace did not come up")
            time.sleep(0.01)
            mine = os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino
        self.pid = self.holder.pid
        self.command(["sysctl", "-qw", "net.ipv4.tcp_congestion_control=cubic"], cpu=0)

    def wrap(self, command: list[str], cpu: int) -> list[str]:
        """The command line that runs `command` inside."""
        enter = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
        enter += ["nsenter", "-t", str(self.pid), "-U", "-n", "--preserve-credentials"]
        return [*enter, "taskset", "-c", str(cpu), *command]

    def command(self, command: list[str], cpu: int) -> str:
        """Run a command inside and return its output."""
        return subprocess.run(self.wrap(command, cpu), check=True, stdout=subprocess.PIPE, text=True).stdout

    def wait_for_address(self, seconds: float) -> None:
        """Wait until a global IPv4 address is there."""
        deadline = time.monotonic() + seconds
        while " scope global" not in self.command(["ip", "-4", "addr"], cpu=0):
            if time.monotonic() > deadline:
                raise RuntimeError("no address in the guest")
            time.sleep(0.02)
