"""The systems measured: how each is found, started and asked what it uses.

veth         no translation: the client is in the host namespace itself, the limit for everybody
loopback     client and server in the server namespace: what the machine's TCP can do at all
bucatini     our pasta, or passt before a virtual machine (`machines`)
pasta        upstream's
passt        upstream's, before a virtual machine
slirp4netns
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from bucatini.bench import topology
from bucatini.bench.topology import Guest, Topology

OURS = "bucatini"
NATIVE = ("veth", "loopback")
PEERS = ("pasta", "slirp4netns", "passt")
NAMES = (*NATIVE, OURS, *PEERS)
TRANSLATOR_CPU = 0
FORWARDED = (7010, 7011)  # TCP ports of the guest that the host forwards
BYPASS_IN = (7020, 7021, 7022)  # ports of the guest for the host's loopback: streams, requests, echo
BYPASS_OUT = (7030, 7031, 7032)  # and of the host for the guest's
TICK = os.sysconf("SC_CLK_TCK")  # per second, of /proc/PID/stat


def find(name: str, folder: str | None) -> str | None:
    """The program of a system: ours is beside this interpreter, peers are in `folder`, $PEERS or PATH."""
    if name == OURS:
        return str(Path(sys.executable).parent / "pasta")
    for place in (folder, os.environ.get("PEERS")):
        if place and os.access(Path(place, name), os.X_OK):
            return str(Path(place, name))
    # What `make build` put into PATH is ours
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if p != str(Path(sys.executable).parent))
    return shutil.which(name, path=path)


def version(program: str) -> str:
    """First line of --version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.split("\n", 1)[0]


class System:
    """One of them, connected, in a topology of its own: ports and sockets that one keeps are not missing to another."""

    server_cpu = 1  # of who is at the other end of a stream; the guest's end is there too

    def __init__(
        self,
        name: str,
        program: str | None,
        where: Topology,
        mtu: int = 65520,
        *,
        bypass: bool = False,
        options: tuple[str, ...] = (),
    ) -> None:
        """Connect it; `options` are more of pasta's, ours or upstream's."""
        self.name, self.topology, self.mtu, self.bypass, self.options = name, where, mtu, bypass, options
        self.guest: Guest | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.resolver = topology.SERVER4
        # Where a forwarded port of the guest is reached from the server's side
        self.inbound = "127.0.0.1" if name == "loopback" else topology.HOST4
        if program is not None:
            self.guest = Guest(where)
            try:
                self._connect(program, self.guest)
            except BaseException:
                self.stop()
                raise

    def _connect(self, program: str, guest: Guest) -> None:
        pid, api = str(guest.pid), str(self.topology.folder / f"{guest.pid}.sock")
        if self.name == "slirp4netns":
            self.resolver = "10.0.2.3"
            command = [program, "-c", "-6", "-m", str(self.mtu), "-a", api, pid, "tap0"]
        else:
            self.resolver = topology.RESOLVER4
            ports = ",".join(map(str, FORWARDED))
            command = [program, "-f", "-q", "--config-net", "-m", str(self.mtu), "-I", "tap0", "--no-map-gw"]
            if self.bypass:
                inward, outward = (",".join(map(str, numbers)) for numbers in (BYPASS_IN, BYPASS_OUT))
                command += ["-t", inward, "-u", inward, "-T", outward, "-U", outward]
            else:
                command += ["-t", ports, "-u", "none", "-T", "none", "-U", "none"]
            command += ["--dns-forward", topology.RESOLVER4, "--dns-host", topology.SERVER4, *self.options, pid]
        self.process = self.topology.spawn(command, where=self.topology.host, cpu=TRANSLATOR_CPU, user=True)
        guest.wait_for_address(10)
        guest.command(["ip", "link", "set", "lo", "up"], cpu=0)
        if self.name == "slirp4netns":
            for port in FORWARDED:
                self._add_slirp_forward(api, port)
            Path(api).unlink(missing_ok=True)

    def _add_slirp_forward(self, api: str, port: int) -> None:
        arguments = {"proto": "tcp", "host_addr": "0.0.0.0", "host_port": port, "guest_port": port}
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(api)
            sock.sendall(json.dumps({"execute": "add_hostfwd", "arguments": arguments}).encode())
            sock.shutdown(socket.SHUT_WR)
            if b"error" in sock.recv(4096):
                raise RuntimeError("slirp4netns: port forward refused")

    def wrap(self, command: list[str], cpu: int) -> list[str]:
        """The command line that runs `command` as the guest."""
        if self.guest is not None:
            return self.guest.wrap(command, cpu)
        where = self.topology.server if self.name == "loopback" else self.topology.host
        limit = f"--nofile={topology.FILES}"
        return ["ip", "netns", "exec", where, "prlimit", limit, "taskset", "-c", str(cpu), *command]

    def output(self, command: list[str], cpu: int) -> str:
        """Run a command as the guest."""
        done = subprocess.run(self.wrap(command, cpu), capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
        return done.stdout

    def retransmissions(self) -> int:
        """TCP segments that the guest has sent again since it started."""
        fields = self.output(["nstat", "-asz", "TcpRetransSegs"], 0).split()
        return int(fields[fields.index("TcpRetransSegs") + 1])

    def _status(self, field: str) -> int:
        if self.process is None:
            return 0
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1])
        return 0

    def memory(self) -> int:
        """Resident memory of the translator and its helpers, KiB."""
        return self._status("VmRSS") + self._helpers()

    def peak_memory(self) -> int:
        """Its highest so far, KiB."""
        return self._status("VmHWM") + self._helpers()

    def _helpers(self) -> int:
        """Memory of the processes that the translator has forked, KiB: what they share counts in parts (PSS)."""
        if self.process is None:
            return 0
        total = 0
        command = Path(f"/proc/{self.process.pid}/cmdline").read_bytes()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.process.pid:
                try:
                    if (entry / "cmdline").read_bytes() == command:
                        lines = (entry / "smaps_rollup").read_text().splitlines()
                        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
                except OSError:
                    continue  # it has just ended
        return total

    def cpu(self) -> float | None:
        """CPU seconds that the translator has used; None: there is no translator."""
        if self.process is None:
            return None
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def stop(self) -> None:
        """Disconnect."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
        if self.guest is not None:
            self.guest.stop()


def startup(name: str, program: str, where: Topology) -> float:
    """Milliseconds from exec to readiness: the parent's end, or the byte on slirp4netns's ready descriptor."""
    guest = Guest(where)
    pid = str(guest.pid)
    prefix = ["ip", "netns", "exec", where.host, *topology.as_user([])]
    try:
        if name == "slirp4netns":
            reader, writer = os.pipe()
            begin = time.perf_counter()
            child = subprocess.Popen(
                [*prefix, program, "-c", "-r", str(writer), pid, "tap0"],
                pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            os.close(writer)
            ready = os.read(reader, 1)
            took = time.perf_counter() - begin
            os.close(reader)
            child.terminate()
            child.wait()
            if not ready:
                raise RuntimeError("slirp4netns ended before it was ready")
        else:
            pid_file = where.folder / f"{guest.pid}.pid"
            command = [program, "-q", "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
            begin = time.perf_counter()
            subprocess.run([*prefix, *command, "-P", str(pid_file), pid], check=True, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - begin
            os.kill(int(pid_file.read_text()), 15)
            pid_file.unlink()
    finally:
        guest.stop()
    begin = time.perf_counter()
    subprocess.run([*prefix, "true"], check=True)
    return (took - (time.perf_counter() - begin)) * 1000
