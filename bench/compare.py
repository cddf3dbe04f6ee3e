"""Bucatini beside upstream pasta and slirp4netns, in one run: `compare.py [--runs N] [--json FILE] [--cells A,B] ...`.

Every cell is measured `--runs` times, the systems taking turns, and the median counts. `PLACEMENT` says what runs on
which CPU. Root is needed to make the namespaces; the systems themselves run as an unprivileged user.
"""

import argparse
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from topology import SERVER4, UID, Guest, Topology

HERE = Path(__file__).parent
PYTHON = sys.executable
TRAFFIC = [PYTHON, str(HERE / "traffic.py")]
TRANSLATOR, CLIENT, SERVER = 0, 1, 1  # CPUs
ROUTED = "198.51.100.1"  # the server's, behind the gateway: no system maps it to anything


class System:
    """One way to connect a guest."""

    def __init__(self, name: str, topology: Topology, program: str | None, mtu: int) -> None:
        self.name, self.topology, self.program, self.mtu = name, topology, program, mtu
        self.guest: Guest | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.ready = 0.0

    def start(self) -> None:
        """Connect a fresh guest."""
        if self.program is None:
            return
        self.guest = Guest(self.topology)
        pid = str(self.guest.pid)
        if self.name == "slirp4netns":
            command = [self.program, "-c", "-m", str(self.mtu), pid, "tap0"]
        else:
            command = [self.program, "-f", "-q", "--config-net", "-m", str(self.mtu), "-I", "tap0"]
            command += ["-t", "none", "-u", "none", "-T", "none", "-U", "none", "--no-map-gw", pid]
        self.process = self.topology.spawn(command, where=self.topology.host, cpu=TRANSLATOR, user=True)
        self.guest.wait_for_address(5)
        self.guest.command(["ip", "link", "set", "lo", "up"], cpu=0)

    def wrap(self, command: list[str], cpu: int) -> list[str]:
        """The command line that runs `command` as the guest."""
        if self.guest is None:
            return ["ip", "netns", "exec", self.topology.host, "taskset", "-c", str(cpu), *command]
        return self.guest.wrap(command, cpu)

    def output(self, command: list[str], cpu: int) -> str:
        """Run a command as the guest."""
        done = subprocess.run(self.wrap(command, cpu), capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def retransmissions(self) -> int:
        """TCP segments that the guest has sent again since it started."""
        text = self.output(["nstat", "-asz", "TcpRetransSegs"], 0)
        return int(re.search(r"TcpRetransSegs\s+(\d+)", text)[1])  # type: ignore[index]

    def memory(self) -> int:
        """Resident memory of the translator, KiB."""
        if self.process is None:
            return 0
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1])  # type: ignore[index]

    def stop(self) -> None:
        """Disconnect."""
        for process in (self.process, self.guest.holder if self.guest else None):
            if process is not None:
                process.terminate()
                process.wait()


class Server:
    """A server in the server namespace for as long as a cell takes."""

    def __init__(self, topology: Topology, command: list[str], cpu: int) -> None:
        full = ["ip", "netns", "exec", topology.server, "taskset", "-c", str(cpu), *command]
        self.process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert self.process.stdout is not None
        self.first = self.process.stdout.readline()

    def result(self) -> dict[str, Any]:
        """What it prints at its end."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()


def iperf(*options: str) -> Callable[[System], float]:
    """A cell of TCP throughput, Gbit/s."""

    def run(system: System) -> float:
        text = system.output(["iperf3", "-J", "-c", ROUTED, "-t", "1", *options], CLIENT)
        return float(json.loads(text)["end"]["sum_received"]["bits_per_second"]) / 1e9

    return run


def ask(role: str, server: str, port: int, *, size: int = 1, seconds: float = 1.0) -> Callable[[System], float]:
    """A cell of operations per second, everything on one CPU."""

    def run(system: System) -> float:
        peer = Server(system.topology, [*TRAFFIC, server, ROUTED, str(port)], 0)
        try:
            text = system.output([*TRAFFIC, role, ROUTED, str(port), str(size), str(seconds)], 0)
        finally:
            peer.stop()
        found = json.loads(text)
        if found.get("failed"):
            raise RuntimeError(f"{system.name}: {found['failed']} connections failed")
        return float(found["per_second"])

    return run


def udp_out(size: int) -> Callable[[System], float]:
    """Datagrams per second that reach the server, thousands."""

    def run(system: System) -> float:
        peer = Server(system.topology, [*TRAFFIC, "sink", ROUTED, "7101", str(size), "1"], TRANSLATOR)
        try:
            system.output([*TRAFFIC, "udpsend", ROUTED, "7101", str(size), "1.5"], CLIENT)
            return float(peer.result()["count"]) / 1000
        finally:
            peer.stop()

    return run


def udp_in(size: int) -> Callable[[System], float]:
    """Datagrams per second that reach the guest, thousands."""

    def run(system: System) -> float:
        # The sender takes all it gets of a CPU: not the translator's
        peer = Server(system.topology, [*TRAFFIC, "blast", ROUTED, "7102", str(size), "1.5"], CLIENT)
        try:
            text = system.output([*TRAFFIC, "udprecv", ROUTED, "7102", str(size), "1"], TRANSLATOR)
            return float(json.loads(text)["per_second"]) / 1000
        finally:
            peer.stop()

    return run


PLACEMENT = (
    "The translator is alone on CPU 0, both ends of a TCP stream share CPU 1. Round trips and connect-request-response "
    "have all three on CPU 0. For UDP the sender is alone on CPU 1, so that it sends more than anybody can take. "
    "Starts are not pinned."
)
TCP = {
    "tcp-out": ("TCP, namespace to host, Gbit/s", iperf()),
    "tcp-in": ("TCP, host to namespace, Gbit/s", iperf("-R")),
    "tcp-out-1400": ("TCP, MSS 1400, namespace to host, Gbit/s", iperf("-M", "1400")),
    "tcp-in-1400": ("TCP, MSS 1400, host to namespace, Gbit/s", iperf("-M", "1400", "-R")),
}
REST = {
    "tcp-out-p4": ("TCP, four streams, namespace to host, Gbit/s", iperf("-P", "4")),
    "tcp-in-p4": ("TCP, four streams, host to namespace, Gbit/s", iperf("-P", "4", "-R")),
    "pingpong": ("TCP, 1-byte round trips per second", ask("pingpong", "echo", 7001)),
    "crr": ("TCP, connect-request-response per second", ask("crr", "requests", 7002)),
    "udp-pingpong": ("UDP, 1-byte round trips per second", ask("udppingpong", "udpecho", 7003)),
    "udp-out-64": ("UDP, 64 bytes, namespace to host, 1000/s", udp_out(64)),
    "udp-in-64": ("UDP, 64 bytes, host to namespace, 1000/s", udp_in(64)),
    "udp-out-1400": ("UDP, 1400 bytes, namespace to host, 1000/s", udp_out(1400)),
    "udp-in-1400": ("UDP, 1400 bytes, host to namespace, 1000/s", udp_in(1400)),
}


def startup(topology: Topology, name: str, program: str) -> float:
    """Milliseconds from exec to readiness (the parent's end, or the byte on slirp4netns's ready descriptor)."""
    guest = Guest(topology)
    pid = str(guest.pid)
    prefix = ["ip", "netns", "exec", topology.host]
    prefix += ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups"]
    try:
        if name == "slirp4netns":
            reader, writer = os.pipe()
            begin = time.perf_counter()
            child = subprocess.Popen(
                [*prefix, program, "-c", "-r", str(writer), pid, "tap0"],
                pass_fds=[writer], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=True,
            )  # fmt: skip
            os.close(writer)
            os.read(reader, 1)
            took = time.perf_counter() - begin
            os.close(reader)
            child.terminate()
            child.wait()
        else:
            pidfile = f"/tmp/bucatini-bench-{os.getpid()}.pid"
            Path(pidfile).unlink(missing_ok=True)
            command = [program, "-q", "--config-net", "-t", "none", "-u", "none", "-T", "none", "-U", "none"]
            begin = time.perf_counter()
            subprocess.run([*prefix, *command, "-P", pidfile, pid], check=True, stdout=subprocess.DEVNULL)
            took = time.perf_counter() - begin
            os.kill(int(Path(pidfile).read_text()), 15)
            Path(pidfile).unlink()
    finally:
        guest.holder.terminate()
        guest.holder.wait()
    begin = time.perf_counter()
    subprocess.run([*prefix, "true"], check=True)
    return (took - (time.perf_counter() - begin)) * 1000


def find(name: str, peers: str | None) -> str | None:
    """The program of a peer: from --peers or $PEERS, else from PATH."""
    for folder in (peers, os.environ.get("PEERS")):
        if folder and Path(folder, name).exists():
            return str(Path(folder, name))
    return shutil.which(name)


def version(program: str) -> str:
    """First line of --version."""
    return subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout.split("\n", 1)[0]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Run everything; the results."""
    programs: dict[str, str | None] = {"veth": None, "bucatini": str(HERE.parent / ".venv/bin/pasta")}
    missing = []
    for name in ("pasta", "slirp4netns"):
        found = find(name, arguments.peers)
        if found is None:
            missing.append(name)
        else:
            programs[name] = found
    for name in missing:
        print(f"{name}: not found, left out ($PEERS or PATH)", flush=True)
    results: dict[str, dict[str, list[float]]] = {}
    extra: dict[str, dict[str, Any]] = {"retransmissions": {}, "memory_kib": {}, "versions": {}}
    topology = Topology()
    try:
        subprocess.run(f"ip -n {topology.server} addr add {ROUTED}/32 dev lo", shell=True, check=True)
        server = topology.spawn(["iperf3", "-s"], where=topology.server, cpu=SERVER)
        time.sleep(0.3)
        for name, program in programs.items():
            extra["versions"][name] = version(program) if program else os.uname().release
        for mtu in (65520, 1500):
            cells = {f"{key}@{mtu}": cell for key, cell in (TCP if mtu == 1500 else {**TCP, **REST}).items()}
            cells = {
                k: c for k, c in cells.items() if not arguments.cells or k.split("@")[0] in arguments.cells.split(",")
            }
            systems = [System(name, topology, program, mtu) for name, program in programs.items()]
            for system in systems:
                system.start()
            for key, (title, run) in cells.items():
                values = results.setdefault(key, {system.name: [] for system in systems})
                for _ in range(arguments.runs):
                    for system in systems:
                        values[system.name].append(run(system))
                shown = "  ".join(f"{n} {statistics.median(v):.4g}" for n, v in values.items())
                print(f"{title} (MTU {mtu}): {shown}", flush=True)
            for system in systems:
                if system.guest is not None and not arguments.cells:
                    extra["retransmissions"][f"{system.name}@{mtu}"] = system.retransmissions()
                    extra["memory_kib"][f"{system.name}@{mtu}"] = system.memory()
                system.stop()
        server.terminate()
        if not arguments.cells or "start" in arguments.cells:
            values = results.setdefault("start@", {})
            for _ in range(max(arguments.runs, 9)):
                for name, program in programs.items():
                    if program:
                        values.setdefault(name, []).append(startup(topology, name, program))
            shown = "  ".join(f"{n} {statistics.median(v):.4g}" for n, v in values.items())
            print(f"exec to readiness, ms: {shown}", flush=True)
    finally:
        topology.close()
    return {
        "runs": arguments.runs,
        "placement": PLACEMENT,
        "kernel": os.uname().release,
        "cpus": os.cpu_count(),
        "cells": results,
        **extra,
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    parser.add_argument("--peers", help="folder with the programs of the peers")
    parser.add_argument("--cells", help="only these, separated by commas")
    arguments = parser.parse_args()
    # Ended from outside, namespaces and settings are put back all the same
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(1))
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(measure(arguments), indent=1) + "\n")
    print(f"written to {arguments.json}; SERVER {SERVER4} by way of {ROUTED}")


if __name__ == "__main__":
    main()
