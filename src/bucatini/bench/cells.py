"""What is measured: cells, each of which is one way of using a connection in one environment.

A cell's `run` takes a connected system and returns a value for each of its metrics. What it cannot do it raises
`RuntimeError` for, with a reason that is shown in the result.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NamedTuple, Self

from bucatini.bench import topology
from bucatini.bench.systems import BYPASS_IN, BYPASS_OUT, OURS, System
from bucatini.bench.topology import SERVER4, SERVER6, Delay, Topology
from bucatini.bench.traffic import PACE

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

END_CPU = 1  # both ends of a stream, and who sends datagrams
TRANSLATOR_CPU = 0  # alone, or with both ends where nothing can run at the same time
TRAFFIC = [sys.executable, "-m", "bucatini.bench.traffic"]
PLACEMENT = (
    "The translator is alone on CPU 0, both ends of a TCP stream share CPU 1. Round trips, connections and queries "
    "have all three on CPU 0; beside a stream, the ends of both are on CPU 1. For UDP the sender is alone on CPU 1, "
    "so that it sends more than anybody can take; at 1 Gbit/s both ends are there. "
    "A delay line runs on CPU 0, a virtual machine on CPU 1, and "
    "what it talks to on CPU 0. Starts are not pinned."
)
TRANSLATORS = (OURS, "pasta", "slirp4netns")
MACHINES = (OURS, "passt")
LOADED = 3  # seconds of the stream beside which round trips are made
PACED = 2  # seconds of a stream of datagrams whose CPU is measured, in ticks of 10 ms
FEW = 3  # rounds of variants of another cell, and of what takes long


class Metric(NamedTuple):
    """One number of a cell; its key is empty for the one that counts."""

    key: str
    title: str
    unit: str
    higher_is_better: bool = True


class Cell(NamedTuple):
    """One measurement."""

    key: str
    title: str
    environment: str
    metrics: tuple[Metric, ...]
    run: Callable[[System], dict[str, float]]
    rounds: int = 0  # at most; 0: as many as asked for
    systems: tuple[str, ...] = ("veth", *TRANSLATORS)
    quick: bool = False

    @property
    def id(self) -> str:
        return f"{self.key}@{self.environment}"


class Environment(NamedTuple):
    """What all of its cells have in common: the systems are connected once for all of them."""

    key: str
    title: str
    mtu: int = 65520
    delay: Delay | None = None
    machine: bool = False  # the guest is a virtual machine
    bypass: bool = False  # forwards for local connections, both ways


ENVIRONMENTS = (
    Environment("mtu65520", "MTU 65520, the default"),
    Environment("mtu1500", "MTU 1500", mtu=1500),
    Environment("rtt0.3", "0.3 ms of round trip, 1 Gbit/s", delay=Delay(0.0003)),
    Environment("rtt1", "1 ms of round trip, 1 Gbit/s", delay=Delay(0.001)),
    Environment("rtt20", "20 ms of round trip, 1 Gbit/s", delay=Delay(0.02)),
    Environment("rtt200", "200 ms of round trip, 1 Gbit/s", delay=Delay(0.2, backlog=0.2)),
    Environment("loss", "2 ms of round trip, 1 Gbit/s, 0.1 % of the packets lost", delay=Delay(0.002, loss=0.001)),
    Environment("bypass", "local connections, from loopback to loopback", bypass=True),
    Environment("vm65520", "a virtual machine, MTU 65520", machine=True),
    Environment("vm1500", "a virtual machine, MTU 1500", mtu=1500, machine=True),
    Environment("held", "connections held open"),
    Environment("start", "from exec to readiness"),
)


class Server:
    """A server for as long as a cell takes; the system's guest is where it runs if it is an inbound cell's."""

    def __init__(
        self, system: System, arguments: list[str], cpu: int, *, inside: bool = False, where: str = ""
    ) -> None:
        self.command = arguments
        if inside:
            full = system.wrap(arguments, cpu)
        else:
            full = ["ip", "netns", "exec", where or system.topology.server, "prlimit", f"--nofile={topology.FILES}"]
            full += ["taskset", "-c", str(cpu), *arguments]
        self.process = subprocess.Popen(full, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)

    def __enter__(self) -> Self:
        if self.line() == "":
            raise RuntimeError(f"{' '.join(self.command)} did not start")
        return self

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def traffic(role: str, host: str, port: int, size: int = 1, seconds: float = 1.0) -> list[str]:
    """The command line of one end."""
    return [*TRAFFIC, role, host, str(port), str(size), str(seconds)]


def run_outside(where: Topology, command: list[str], cpu: int, *, host: bool = False) -> str:
    """Run a client in the server's namespace, or the host's, for forwarded ports."""
    full = ["ip", "netns", "exec", where.host if host else where.server, "taskset", "-c", str(cpu), *command]
    done = subprocess.run(full, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()[-300:]}")
    return done.stdout


# TCP throughput: iperf3


def throughput(text: str, system: System, cpu_before: float | None) -> dict[str, float]:
    """Gbit/s, and the translator's CPU seconds for each gigabyte."""
    document = json.loads(text)
    if "error" in document:
        raise RuntimeError(document["error"])
    total = document["end"]["sum_received"]
    if not total["bytes"]:
        raise RuntimeError("no data came through")
    values = {"": total["bits_per_second"] / 1e9}
    cpu = system.cpu()
    if cpu is not None and cpu_before is not None:
        values["cpu"] = (cpu - cpu_before) / (total["bytes"] / 1e9)
    return values


def iperf(
    *options: str, server: str = SERVER4, seconds: int = 1, omit: int = 0
) -> Callable[[System], dict[str, float]]:
    """One or more streams from the guest to the server, or with -R the other way."""

    def run(system: System) -> dict[str, float]:
        before = system.cpu()
        with Server(system, ["iperf3", "-s", "-1", "--forceflush"], system.server_cpu):
            command = ["iperf3", "-J", "-c", server, "-t", str(seconds), "-O", str(omit), *options]
            return throughput(system.output(command, END_CPU), system, before)

    return run


def iperf_forwarded(*options: str) -> Callable[[System], dict[str, float]]:
    """One stream to a server in the guest, by way of a forwarded port of the host."""

    def run(system: System) -> dict[str, float]:
        before = system.cpu()
        with Server(system, ["iperf3", "-s", "-1", "--forceflush", "-p", "7010"], END_CPU, inside=True):
            command = ["iperf3", "-J", "-c", system.inbound, "-p", "7010", "-t", "1", *options]
            return throughput(run_outside(system.topology, command, END_CPU), system, before)

    return run


# Round trips, connections, queries: everything on one CPU


def ask(
    client: str, server: str, port: int, *, size: int = 1, host: str = SERVER4
) -> Callable[[System], dict[str, float]]:
    """A client in the guest, a server outside."""

    def run(system: System) -> dict[str, float]:
        with Server(system, traffic(server, host, port), TRANSLATOR_CPU):
            return answered(system.output(traffic(client, host, port, size), TRANSLATOR_CPU))

    return run


def ask_beside_stream(*options: str) -> Callable[[System], dict[str, float]]:
    """Round trips while a stream of iperf3 takes all that it can get."""

    def run(system: System) -> dict[str, float]:
        with (
            Server(system, ["iperf3", "-s", "-1", "--forceflush"], END_CPU),
            Server(system, traffic("echo", SERVER4, 7001), END_CPU),
        ):
            command = system.wrap(["iperf3", "-J", "-c", SERVER4, "-t", str(LOADED), *options], END_CPU)
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as stream:
                time.sleep(LOADED / 2)  # it has found its pace
                found = answered(system.output(traffic("tcp-pingpong", SERVER4, 7001), END_CPU))
                text, _ = stream.communicate(timeout=30)
        return {"": found["p50"], "p99": found["p99"], "stream": throughput(text, system, None)[""]}

    return run


def ask_resolver(system: System) -> dict[str, float]:
    """Queries by way of the system's DNS forwarding."""
    with Server(system, traffic("datagrams", SERVER4, 53), TRANSLATOR_CPU):
        return answered(system.output(traffic("queries", system.resolver, 53, 45), TRANSLATOR_CPU))


def ask_forwarded(system: System) -> dict[str, float]:
    """Connections to a server in the guest, by way of a forwarded port of the host."""
    with Server(system, traffic("requests", "0.0.0.0", 7011), TRANSLATOR_CPU, inside=True):
        return answered(run_outside(system.topology, traffic("crr", system.inbound, 7011), TRANSLATOR_CPU))


def answered(text: str) -> dict[str, float]:
    """What a client printed, as values of the metrics."""
    found = json.loads(text)
    if found.get("failed"):
        raise RuntimeError(f"{found['failed']:.0f} failed, {found['per_second']:.0f} per second did not")
    return {"" if name == "per_second" else name: value for name, value in found.items() if name != "failed"}


# Local connections: from one loopback to the other


def bypass(server: list[str], client: list[str], port: int, cpu: int, *, inward: bool, system: System) -> str:
    """What a client prints that talks to a server on the other side; {address} and {port} are where it is asked."""
    words = {"{address}": "127.0.0.1", "{port}": str(port)}
    told = [words.get(word, word) for word in client]
    where = system.topology.server if system.name == "loopback" else system.topology.host
    with Server(system, [words.get(word, word) for word in server], cpu, inside=inward, where=where):
        if inward and system.name != "loopback":
            return run_outside(system.topology, told, cpu, host=True)
        return system.output(told, cpu)


def bypass_stream(*options: str, inward: bool) -> Callable[[System], dict[str, float]]:
    """A stream of iperf3; who connects sends."""

    def run(system: System) -> dict[str, float]:
        before = system.cpu()
        server = ["iperf3", "-s", "-1", "--forceflush", "-p", "{port}"]
        client = ["iperf3", "-J", "-c", "{address}", "-p", "{port}", "-t", "1", *options]
        port = (BYPASS_IN if inward else BYPASS_OUT)[0]
        return throughput(bypass(server, client, port, END_CPU, inward=inward, system=system), system, before)

    return run


def bypass_ask(client: str, server: str, at: int, *, inward: bool) -> Callable[[System], dict[str, float]]:
    """Round trips and rates; `at`: which of the ports."""

    def run(system: System) -> dict[str, float]:
        port = (BYPASS_IN if inward else BYPASS_OUT)[at]
        served = traffic(server, "0.0.0.0" if inward else "127.0.0.1", port)
        asked = traffic(client, "127.0.0.1", port)
        return answered(bypass(served, asked, port, TRANSLATOR_CPU, inward=inward, system=system))

    return run


# UDP rates: the sender does not wait for anybody


def rates(sent: float, came: float) -> dict[str, float]:
    return {"": came / 1000, "loss": max(0.0, 1 - came / sent) * 100}


def udp_out(size: int) -> Callable[[System], dict[str, float]]:
    def run(system: System) -> dict[str, float]:
        with Server(system, traffic("sink", SERVER4, 7101, size, 1), TRANSLATOR_CPU) as sink:
            sent = json.loads(system.output(traffic("udp-send", SERVER4, 7101, size, 1.5), END_CPU))
            return rates(sent["per_second"], json.loads(sink.line())["per_second"])

    return run


def udp_in(size: int) -> Callable[[System], dict[str, float]]:
    def run(system: System) -> dict[str, float]:
        with Server(system, traffic("blast", SERVER4, 7102, size, 1.5), END_CPU) as blast:
            came = json.loads(system.output(traffic("udp-receive", SERVER4, 7102, size, 1), TRANSLATOR_CPU))
            return rates(json.loads(blast.line())["per_second"], came["per_second"])

    return run


def paced(system: System, cpu_before: float | None, sent: float, came: float) -> dict[str, float]:
    """What came of the bytes sent, and the translator's CPU seconds for each gigabyte that did."""
    if not came:
        raise RuntimeError("no data came through")
    values = {"": came / sent * 100, "stream": sent * 8 / 1e9 / PACED}
    cpu = system.cpu()
    if cpu is not None and cpu_before is not None:
        values["cpu"] = (cpu - cpu_before) / (came / 1e9)
    return values


def udp_paced_out(size: int) -> Callable[[System], dict[str, float]]:
    """The receiver goes on until nothing has come for half a second: `PACED` + 1 is only a bound."""

    def run(system: System) -> dict[str, float]:
        before = system.cpu()
        with Server(system, traffic("sink", SERVER4, 7104, size, PACED + 1), END_CPU) as sink:
            sent = json.loads(system.output(traffic("udp-paced", SERVER4, 7104, size, PACED), END_CPU))
            # The sink takes the first one to begin
            return paced(system, before, sent["bytes"], json.loads(sink.line())["bytes"] + size)

    return run


def udp_paced_in(size: int) -> Callable[[System], dict[str, float]]:
    def run(system: System) -> dict[str, float]:
        before = system.cpu()
        with Server(system, traffic("paced", SERVER4, 7105, size, PACED), END_CPU) as sender:
            came = json.loads(system.output(traffic("udp-receive", SERVER4, 7105, size, PACED + 1), END_CPU))
            return paced(system, before, json.loads(sender.line())["bytes"], came["bytes"])

    return run


# Connections held open


def held(count: int) -> Callable[[System], dict[str, float]]:
    """Open connections and look at what they cost the translator."""

    def run(system: System) -> dict[str, float]:
        with Server(system, traffic("held", SERVER4, 7103), END_CPU):
            before = system.memory()
            command = system.wrap(traffic("hold", SERVER4, 7103, count), END_CPU)
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as client:
                assert client.stdin is not None
                assert client.stdout is not None
                found = json.loads(client.stdout.readline() or "{}")
                after = system.memory()
                cpu = system.cpu()
                time.sleep(1)
                idle = (system.cpu() or 0) - (cpu or 0)
                client.stdin.close()
            if found.get("open") != count:
                raise RuntimeError(f"{found.get('open', 0)} of {count} connections")
            return {"": max(0, after - before) * 1024 / count, "rate": count / found["seconds"], "idle": idle * 100}

    return run


GBITS = Metric("", "throughput", "Gbit/s")
CPU = Metric("cpu", "CPU of the translator", "s/GB", higher_is_better=False)
STREAM = (GBITS, CPU)
ROUND_TRIPS = (
    Metric("", "round trips", "1/s"),
    Metric("p50", "time of one, median", "µs", higher_is_better=False),
    Metric("p99", "time of one, 99th percentile", "µs", higher_is_better=False),
)
RATE = (Metric("", "rate", "1/s"),)
LOADED_TRIPS = (
    Metric("", "time of one, median", "µs", higher_is_better=False),
    Metric("p99", "time of one, 99th percentile", "µs", higher_is_better=False),
    Metric("stream", "the stream meanwhile", "Gbit/s"),
)
PACKETS = (Metric("", "received", "1000/s"), Metric("loss", "lost", "%", higher_is_better=False))
PACED_PACKETS = (
    Metric("", "received", "%"),
    CPU,
    Metric("stream", "sent", "Gbit/s"),
)
HELD = (
    Metric("", "memory of the translator for each", "bytes", higher_is_better=False),
    Metric("rate", "opened", "1/s"),
    Metric("idle", "CPU of the translator while nothing happens", "%", higher_is_better=False),
)
START = (Metric("", "time", "ms", higher_is_better=False),)


def streams(environment: str) -> list[Cell]:
    """Throughput of TCP with a short path."""
    first = environment == "mtu65520"
    everybody = ("veth", "loopback", *TRANSLATORS)
    kinds: list[tuple[str, str, tuple[str, ...], str]] = [
        ("tcp{}", "TCP, one stream", (), SERVER4),
        ("tcp{}-mss1400", "TCP, one stream, MSS 1400", ("-M", "1400"), SERVER4),
        ("tcp{}-p4", "TCP, four streams", ("-P", "4"), SERVER4),
        ("tcp{}-ipv6", "TCP, one stream, IPv6", (), SERVER6),
    ]
    found = []
    for key, title, options, server in kinds:
        for way, words, reverse in (("-out", "namespace → host", ()), ("-in", "host → namespace", ("-R",))):
            run = iperf(*options, *reverse, server=server)
            quick = first and not options and server == SERVER4
            names = everybody if quick else ("veth", *TRANSLATORS)
            name = f"{title}, {words}"
            rounds = FEW if "p4" in key or "ipv6" in key else 0
            found.append(Cell(key.format(way), name, environment, STREAM, run, rounds, names, quick))
    return found


def long_paths() -> list[Cell]:
    """Throughput of TCP over a delay line, without the start of a connection where that takes seconds."""
    found = []
    paths = (("rtt0.3", 1, 0), ("rtt1", 1, 0), ("rtt20", 2, 1), ("rtt200", 4, 3), ("loss", 2, 1))
    for environment, seconds, omit in paths:
        for way, words, reverse in (("out", "namespace → host", ()), ("in", "host → namespace", ("-R",))):
            run = iperf(*reverse, seconds=seconds, omit=omit)
            found.append(Cell(f"tcp-{way}", f"TCP, one stream, {words}", environment, STREAM, run, FEW))
    return found


def under_load() -> list[Cell]:
    """Latency beside a stream: what waits in queues of ours, or of the path. Beside the same for all, too."""
    found = []
    for environment in ("mtu65520", "rtt20"):
        for way, words, reverse in (("out", "namespace → host", ()), ("in", "host → namespace", ("-R",))):
            title = f"TCP round trips of 1 byte beside a stream, {words}"
            run = ask_beside_stream(*reverse)
            found.append(Cell(f"loaded-{way}", title, environment, LOADED_TRIPS, run, FEW))
    for way, words, reverse in (("out", "namespace → host", ()), ("in", "host → namespace", ("-R",))):
        title = f"TCP round trips of 1 byte beside a stream of {PACE} Gbit/s, {words}"
        run = ask_beside_stream("-b", f"{PACE}G", *reverse)
        found.append(Cell(f"paced-{way}", title, "mtu65520", LOADED_TRIPS, run, FEW))
    return found


def short_exchanges() -> list[Cell]:
    """Latency and rates."""
    where = "mtu65520"
    everybody = ("veth", "loopback", *TRANSLATORS)
    found = [
        Cell("tcp-forward-in", "TCP to a forwarded port, client → namespace", where, STREAM, iperf_forwarded(), FEW),
        Cell(
            "tcp-forward-out", "TCP to a forwarded port, namespace → client", where, STREAM, iperf_forwarded("-R"), FEW,
        ),
        Cell(
            "tcp-pingpong", "TCP round trips of 1 byte", where, ROUND_TRIPS, ask("tcp-pingpong", "echo", 7001),
            systems=everybody, quick=True,
        ),
        Cell(
            "tcp-pingpong-1k", "TCP round trips of 1 KiB", where, ROUND_TRIPS,
            ask("tcp-pingpong", "echo", 7001, size=1024), FEW,
        ),
        Cell(
            "udp-pingpong", "UDP round trips of 1 byte", where, ROUND_TRIPS,
            ask("udp-pingpong", "datagrams", 7003), systems=everybody,
        ),
        Cell(
            "udp-pingpong-1k", "UDP round trips of 1 KiB", where, ROUND_TRIPS,
            ask("udp-pingpong", "datagrams", 7003, size=1024), FEW,
        ),
        Cell(
            "crr", "TCP connect-request-response", where, RATE, ask("crr", "requests", 7002),
            systems=everybody, quick=True,
        ),
        Cell(
            "crr-ipv6", "TCP connect-request-response, IPv6", where, RATE,
            ask("crr", "requests", 7002, host=SERVER6), FEW,
        ),
        Cell("crr-forward", "TCP connect-request-response to a forwarded port", where, RATE, ask_forwarded, FEW),
        Cell("dns", "DNS queries, a socket each, by the forwarder", where, RATE, ask_resolver, FEW),
    ]  # fmt: skip
    for size in (64, 1400):
        for way, words, run in (("out", "namespace → host", udp_out), ("in", "host → namespace", udp_in)):
            title = f"UDP, {size} bytes, {words}"
            found.append(Cell(f"udp-{way}-{size}", title, where, PACKETS, run(size), quick=size == 64))
    for way, words, run in (("out", "namespace → host", udp_paced_out), ("in", "host → namespace", udp_paced_in)):
        title = f"UDP at {PACE} Gbit/s, 1400 bytes, {words}"
        found.append(Cell(f"udp-paced-{way}", title, where, PACED_PACKETS, run(1400), FEW))
    return found


def local_connections() -> list[Cell]:
    """What bypasses the tap, where there is a bypass."""
    found = []
    names = ("loopback", OURS, "pasta")
    for way, words, inward in (("in", "host → namespace", True), ("out", "namespace → host", False)):
        asked: list[tuple[str, str, tuple[Metric, ...], Callable[[System], dict[str, float]]]] = [
            ("tcp", "TCP, one stream", STREAM, bypass_stream(inward=inward)),
            ("tcp-back", "TCP, one stream, answered", STREAM, bypass_stream("-R", inward=inward)),
            ("crr", "TCP connect-request-response", RATE, bypass_ask("crr", "requests", 1, inward=inward)),
            ("pingpong", "TCP round trips of 1 byte", ROUND_TRIPS,
             bypass_ask("tcp-pingpong", "echo", 2, inward=inward)),
            ("udp-pingpong", "UDP round trips of 1 byte", ROUND_TRIPS,
             bypass_ask("udp-pingpong", "datagrams", 2, inward=inward)),
        ]  # fmt: skip
        for key, title, metrics, run in asked:
            found.append(Cell(f"{key}-{way}", f"{title}, {words}", "bypass", metrics, run, systems=names))
    return found


def machines() -> list[Cell]:
    """A virtual machine: what QEMU and its guest leave of the speed."""
    found = []
    for where in ("vm65520", "vm1500"):
        for way, words, reverse in (("out", "machine → host", ()), ("in", "host → machine", ("-R",))):
            title = f"TCP, one stream, {words}"
            found.append(Cell(f"vm-tcp-{way}", title, where, STREAM, iperf(*reverse, seconds=2), systems=MACHINES))
    where = "vm65520"
    found += [
        Cell(
            "vm-tcp-pingpong", "TCP round trips of 1 byte", where, ROUND_TRIPS, ask("tcp-pingpong", "echo", 7001),
            systems=MACHINES,
        ),
        Cell(
            "vm-udp-pingpong", "UDP round trips of 1 byte", where, ROUND_TRIPS, ask("udp-pingpong", "datagrams", 7003),
            systems=MACHINES,
        ),
        Cell("vm-crr", "TCP connect-request-response", where, RATE, ask("crr", "requests", 7002), systems=MACHINES),
    ]  # fmt: skip
    return found


def nothing(system: System) -> dict[str, float]:
    raise NotImplementedError  # `start` cells are the runner's: there is no connected system yet


CELLS: tuple[Cell, ...] = (
    *streams("mtu65520"),
    *short_exchanges(),
    *streams("mtu1500"),
    *long_paths(),
    *under_load(),
    *local_connections(),
    *machines(),
    Cell("held-1k", "1,000 connections held open", "held", HELD, held(1000), rounds=1, systems=TRANSLATORS),
    Cell("held-10k", "10,000 connections held open", "held", HELD, held(10000), rounds=1, systems=TRANSLATORS),
    Cell("start", "exec to readiness", "start", START, nothing, systems=TRANSLATORS, quick=True),
)
