"""Attacks on what a running instance has: its memory, its processor, its table of flows, its descriptors.

Each is made while an established connection goes on asking and answering, which has to keep working, and new ones are
opened beside it. `Watch.result` has the bounds: of memory, of the round trips left and how long one may take, and
that when the attack is over the processor rests and the guest is served as before. The bounds say that nothing stands
still, on a busy machine too; what was measured goes into docs/attacks.md (`make attacks`).
"""

import contextlib
import json
import resource
import select
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from attack_table import Figures
from bucatini.runtime.pasta import AUTO_LISTENERS
from system.namespaces import DEADLINE, end, wait_until
from system.quiet import assert_quiet, processor_time
from system.test_soak import counters
from system.topology import EXTRA4, NEIGHBOUR4, SERVER4, Guest, Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.release]

SECONDS = 4.0
ATTACKER = str(Path(__file__).with_name("attacker.py"))
HOLDER = str(Path(__file__).with_name("holder.py"))
HOLE = "198.51.100.77"  # nobody answers
GROWTH = 64 << 10  # KiB that an attack may cost: a flow is 0.4, a packet in fragments 64
TYPICAL = 0.05  # seconds, the median of an established connection's round trips while the attack lasts
# Of their number. The attacker can fill the queue of the tap, where the guest's own kernel drops what is beyond it:
# each loss is 0.2 s and more, and five in a row were seen on a busy machine (6.8 s)
LEFT = 1 / 1000
LEFT_AFTER = 1 / 5  # and when it is over: what the machine does besides changes as well
EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
OPENED = 5.0  # seconds for a new connection with its answer: a SYN that is lost twice comes after 1 s and 3 s
NICE = ("nice", "-n", "19")  # for the attacker: not who wins the processor is the question, but what we do with it


def status(pid: int, field: str) -> int:
    """KiB, from /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise AssertionError(field)


@pytest.fixture
def echo_port(pasta: Pasta) -> Iterator[int]:
    """Servers of the benchmark's, in processes of their own: two that echo, and 7102, which keeps what it accepts."""
    processes = [
        pasta.topology.server.start(
            sys.executable, "-m", "bucatini.bench.traffic", role, SERVER4, str(port), "1", "1", tcp=port
        )
        for role, port in (("echo", 7100), ("echo", 7101), ("held", 7102))
    ]
    yield 7100
    for process in processes:
        end(process)


class Bystander:
    """An established connection that goes on asking and answering, and those that are opened beside it."""

    def __init__(self, guest: Guest, port: int) -> None:
        self.guest = guest
        self.connection = guest.connect(SERVER4, port)

    def ask(self, seconds: float) -> list[float]:
        """Round trips one after the other for a time; how long each took."""
        times: list[float] = []
        begin = now = time.monotonic()
        while now - begin < seconds:
            self.connection.sendall(b"x")
            assert self.connection.recv(1) == b"x"
            then, now = now, time.monotonic()
            times.append(now - then)
        return times

    def new(self, port: int = 7101) -> float:
        """How long it takes to the first answer of a new connection; one that gave way to others is opened again."""
        begin = time.monotonic()
        while True:
            try:
                with self.guest.connect(SERVER4, port) as connection:
                    connection.sendall(b"y")
                    assert connection.recv(1) == b"y"
            except (ConnectionResetError, ConnectionRefusedError):
                assert time.monotonic() - begin < DEADLINE
                continue
            return time.monotonic() - begin


class Result(NamedTuple):
    figures: Figures
    counters: dict[str, int]
    said: dict[str, float] = {}  # by the attacker


def moved(guest: Guest) -> dict[str, int]:
    """The counters, after what has happened until now."""
    seen = len(guest.output)
    with contextlib.suppress(ConnectionRefusedError):
        guest.connect(SERVER4, 9).close()  # so that there is something to tell
    wait_until(lambda: any("statistics:" in line for line in guest.output[seen:]), "statistics")
    return counters(guest.output)


def rate(times: list[float]) -> float:
    """Round trips a second."""
    return len(times) / sum(times)


class Watch:
    """What an instance takes and how a bystander of an attack fares, from before it until it is over."""

    def __init__(self, guest: Guest, port: int) -> None:
        self.guest = guest
        self.bystander = Bystander(guest, port)
        self.before = rate(self.bystander.ask(1.0))
        self.memory = status(guest.pid, "VmRSS")
        self.during: list[float] = []
        self.opened: list[float] = []

    def begin(self, attacker: "subprocess.Popen[str]") -> None:
        """As soon as it says that it is ready."""
        assert attacker.stdout is not None
        assert attacker.stdout.readline() == "ready\n"
        self.said = attacker.stdout
        self.busy, self.begun = processor_time(self.guest.pid), time.monotonic()

    def lasts(self) -> float:
        """Seconds, since it began."""
        return time.monotonic() - self.begun

    def ask(self, seconds: float) -> None:
        self.during += self.bystander.ask(seconds)

    def open(self) -> None:
        self.opened = [self.bystander.new() for _ in range(3)]

    def end(self) -> dict[str, float]:
        """What the attacker says at its end."""
        self.share = (processor_time(self.guest.pid) - self.busy) / self.lasts()
        said: dict[str, float] = json.loads(self.said.readline())
        self.grown = status(self.guest.pid, "VmHWM") - self.memory
        return said

    def result(self, name: str, per_second: float, found: dict[str, int], said: dict[str, float]) -> Result:
        """The attack, which is over, has stopped nobody and leaves nothing behind that costs something."""
        figures = Figures(
            name=name, per_second=per_second, before=self.before, during=rate(self.during), slowest=max(self.during),
            opened=max(self.opened), share=self.share, grown=self.grown,
        )  # fmt: skip
        assert figures.grown < GROWTH
        assert figures.during > LEFT * figures.before
        assert statistics.median(self.during) < TYPICAL
        assert figures.slowest < DEADLINE
        assert figures.opened < OPENED
        assert rate(self.bystander.ask(0.5)) > LEFT_AFTER * figures.before
        assert_quiet(self.guest.pid, 1)
        return Result(figures, found, said)


def attack(
    guest: Guest,
    port: int,
    name: str,
    *arguments: object,
    seconds: float = SECONDS,
    over: Callable[[], None] = lambda: None,
) -> Result:
    """Let the guest attack, and measure what becomes of the others; `over` waits until it has left nothing to do."""
    watch = Watch(guest, port)
    watch.begin(
        guest.start(
            *NICE, sys.executable, "-I", "-S", ATTACKER, *map(str, (arguments[0], seconds, *arguments[1:])),
            stderr=subprocess.DEVNULL,
        )
    )  # fmt: skip
    watch.ask(seconds / 2)
    watch.open()
    watch.ask(max(0.2, seconds - watch.lasts() - 0.2))
    said = watch.end()
    found = moved(guest)
    over()
    return watch.result(name, (said["sent"] - said["lost"]) / said["seconds"], found, said)


@pytest.fixture
def guest(pasta: Pasta) -> Guest:
    pasta.topology.server.ip(f"route add blackhole {HOLE}/32")
    guest = pasta.guest("--config-net", "--stats", "1", "-t", "8080:80")
    guest.settle()
    return guest


Record = Callable[[str, object], None]


def record(record_property: Record, result: Result, *names: str) -> None:
    shown = {name: result.counters.get(name, 0) for name in names}
    record_property("attack", (result.figures, shown))


def test_syns_that_nobody_answers(guest: Guest, echo_port: int, record_property: Record) -> None:
    result = attack(guest, echo_port, "SYN flood to where nobody answers", "syn", HOLE, 80)
    record(record_property, result, "tcp_opened_guest", "tcp_half_open_evicted", "flow_refused")
    assert result.counters["tcp_opened_guest"] > 1000
    assert "flow_refused" not in result.counters
    assert sum("wait for an answer" in line for line in guest.output) <= 1  # told once, if there were so many


def test_connections_that_the_guest_opens_and_never_confirms(
    guest: Guest, echo_port: int, record_property: Record
) -> None:
    result = attack(guest, echo_port, "half-open flood at a live server", "syn", SERVER4, 7102)
    record(record_property, result, "tcp_opened_guest", "tcp_half_open_evicted", "tcp_rst_sent")
    assert result.counters["tcp_opened_guest"] > 1000


def test_a_sweep_over_udp_source_ports(guest: Guest, echo_port: int, record_property: Record) -> None:
    with pasta_sink(guest):
        result = attack(guest, echo_port, "UDP source port sweep", "udp", SERVER4, 7103)
    record(record_property, result, "udp_flows", "udp_evicted", "flow_refused")
    assert result.counters["udp_flows"] > 5000


@contextlib.contextmanager
def pasta_sink(guest: Guest) -> Iterator[None]:
    """Somebody who takes datagrams: refusals would end their flows at once."""
    with contextlib.closing(guest.pasta.topology.server.bind(SERVER4, 7103)):
        yield


def test_pings_with_every_identifier(guest: Guest, echo_port: int, record_property: Record) -> None:
    result = attack(guest, echo_port, "ping flood with new identifiers", "ping", HOLE, 0)
    record(record_property, result, "ping_flows", "ping_evicted", "flow_refused")
    assert result.counters["ping_flows"] > 5000


def test_first_fragments_without_end(guest: Guest, echo_port: int, record_property: Record) -> None:
    """A datagram of the guest's that is cut (its MTU is smaller) gets through beside them."""
    server = guest.pasta.topology.server.serve_udp(SERVER4, lambda data, peer: data[:10])
    arrived: list[float] = []

    def ask() -> None:
        sock = guest.open_socket(SERVER4, 2, timeout=0.2)
        begin = time.monotonic()
        while time.monotonic() - begin < 5:
            sock.sendto(bytes(65000), (SERVER4, server.port))
            with contextlib.suppress(TimeoutError):
                assert sock.recv(100) == bytes(10)
                arrived.append(time.monotonic() - begin)
                return

    guest.run("ip", "link", "set", "host0", "mtu", "1500")
    original = Bystander.new

    def new(self: Bystander, port: int = 7101) -> float:
        ask()
        return original(self, port)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bystander, "new", new)
        result = attack(guest, echo_port, "fragment flood", "fragments", SERVER4, 7103)
    record(record_property, result, "fragments_in", "reassembled", "drop_fragment_budget")
    assert result.counters["drop_fragment_budget"] > 1000
    assert len(arrived) == 3
    assert max(arrived) < 5


@pytest.mark.parametrize(("kind", "name"), [
    ("arp", "ARP storm"),
    ("dhcp", "DHCP with 580 options a message"),
    ("ndp", "neighbour solicitations with 175 options"),
])  # fmt: skip
def test_storms_for_the_slow_path(guest: Guest, echo_port: int, record_property: Record, kind: str, name: str) -> None:
    result = attack(guest, echo_port, name, kind)
    record(record_property, result, "slow_in", "slow_out", "drop_slow_budget")
    assert result.counters["drop_slow_budget"] > 100
    assert result.counters.get("slow_errors", 0) == 0


def test_a_storm_of_acknowledgements(guest: Guest, echo_port: int, record_property: Record) -> None:
    victim = guest.connect(SERVER4, 7102)
    address, sport = victim.getsockname()
    with contextlib.closing(victim):
        result = attack(guest, echo_port, "ACK storm on a connection", "acks", SERVER4, 7102, sport, address)
    record(record_property, result, "frames_in", "frames_out", "tcp_retransmit")
    assert result.counters["frames_in"] > 10000


CLIENTS = """
import json, selectors, socket, sys, time
address, port, seconds, count = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), int(sys.argv[4])
socks = []
for _ in range(count):
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_WINDOW_CLAMP, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    sock.connect((address, port))
    socks.append(sock)
print('ready', flush=True)
begin = time.monotonic()
got = 0
ready = selectors.DefaultSelector()
for sock in socks:
    sock.setblocking(False)
    ready.register(sock, selectors.EVENT_READ)
while time.monotonic() - begin < seconds:
    for key, _ in ready.select(0.1):
        got += len(key.fileobj.recv(1))
print(json.dumps({'got': got, 'sent': got, 'lost': 0, 'seconds': time.monotonic() - begin}), flush=True)
"""


def test_windows_as_small_as_the_guests_kernel_makes_them(
    guest: Guest, echo_port: int, record_property: Record, tmp_path: Path
) -> None:
    server = guest.pasta.topology.server.serve_tcp(SERVER4, lambda connection: connection.sendall(bytes(16 << 20)))
    script = tmp_path / "clients.py"
    script.write_text("import sys\nsys.argv.pop(1)\nsys.argv.insert(3, sys.argv.pop(1))\n" + CLIENTS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ATTACKER", str(script))
        name = "100 downloads, the least window and MSS of the guest's kernel"
        result = attack(guest, echo_port, name, "-", SERVER4, server.port, 100)
    record(record_property, result, "frames_in", "frames_out", "tcp_zero_window_probe")
    frames = result.counters["frames_out"]
    assert frames > 10000
    assert result.figures.per_second * SECONDS < 88 * frames, "more bytes a frame than the MSS that was asked for"


def test_windows_of_one_byte_and_of_none(guest: Guest, echo_port: int, record_property: Record) -> None:
    """The kernel makes no window as small: here the attacker is a TCP of its own, which acknowledges each byte."""
    server = guest.pasta.topology.server.serve_tcp(SERVER4, lambda connection: connection.sendall(bytes(16 << 20)))
    name = "100 downloads, a window of one byte and none now and then"
    result = attack(guest, echo_port, name, "windows", SERVER4, server.port, 100)
    record(record_property, result, "frames_in", "frames_out", "tcp_zero_window_probe", "tcp_retransmit")
    said = result.said
    assert said["least"] > 0, "one of them got nothing"
    assert said["got"] > 1000
    assert said["closed"] > 0
    assert result.counters["tcp_zero_window_probe"] > 0
    assert said["most"] == 1, "more in a frame than the window allows"
    assert said["beyond"] == 0, "sent beyond the window"
    assert result.counters["frames_out"] >= said["got"]


CONNECTIONS = 100_000
HELD = (7110, 7111, 7112, 7113)  # ports of a server that accepts and says nothing


@pytest.mark.timeout(240)
def test_a_hundred_thousand_connections(pasta: Pasta, echo_port: int, record_property: Record) -> None:
    """As many as there are descriptors for are established, and the others refused: nobody is left waiting."""
    server = pasta.topology.server
    for place in (server, pasta.topology.host):
        place.sysctl(net__ipv4__ip_local_port_range="2000 65000")
    server.sysctl(net__core__somaxconn=65535)
    listeners = [server.listen(SERVER4, port, backlog=65535) for port in HELD]
    guest = pasta.guest("--config-net", "--stats", "1")
    guest.settle()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)  # which it has from us
    used = guest.descriptors()
    watch = Watch(guest, echo_port)
    holder = guest.start(
        *NICE, sys.executable, "-E", "-s", "-S", HOLDER, str(CONNECTIONS), SERVER4, *map(str, HELD), stdin=-1,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    watch.begin(holder)
    while not select.select([holder.stdout], [], [], 0)[0]:
        watch.ask(0.2)
    said = watch.end()
    assert said["silent"] == 0
    assert said["open"] + said["refused"] == CONNECTIONS
    assert said["open"] > min(0.9 * (most - used), 0.99 * CONNECTIONS)
    # With all of them open: the bystander goes on, the processor rests, and whoever comes is told at once
    assert rate(watch.bystander.ask(0.5)) > LEFT_AFTER * watch.before
    assert_quiet(guest.pid, 1)
    if said["refused"]:
        begin = time.monotonic()
        with pytest.raises(ConnectionRefusedError):
            guest.connect(SERVER4, 7101)
        assert time.monotonic() - begin < OPENED
        assert sum("descriptors have run out" in line for line in guest.output) == 1
    holder.stdin.close()
    assert holder.stdout.readline() == "0\n", "connections that are not reset"
    assert holder.wait(60) == 0
    wait_until(lambda: guest.descriptors() < used + 100, "the end of the connections", 5)
    watch.open()
    name = f"{CONNECTIONS:,} connections, {most:,} descriptors: {said['open']:,} held, the others refused"
    result = watch.result(name, CONNECTIONS / said["seconds"], moved(guest), said)
    record(record_property, result, "tcp_opened_guest", "flow_refused", "tcp_rst_sent")
    for listener in listeners:
        listener.close()


LISTENERS = """
import json, os, socket, sys, time
seconds, first, last = float(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
ports = [port for port in range(1, 65536) if not first <= port <= last]
wanted = [('0.0.0.0', port) for port in ports] + [(f'127.{n >> 8}.{n & 255}.1', 9) for n in range(40000)]
print('ready', flush=True)
begin = time.monotonic()
reader, writer = os.pipe()
children = []
for at in range(0, len(wanted), 19000):  # as many as one process may have
    children.append(os.fork())
    if not children[-1]:
        socks = []
        for address in wanted[at : at + 19000]:
            sock = socket.socket()
            try:
                sock.bind(address)
                sock.listen(1)
            except OSError:
                continue
            socks.append(sock)
        os.write(writer, len(socks).to_bytes(4, 'big'))
        time.sleep(max(0, begin + seconds - time.monotonic()))
        os._exit(0)
bound = sum(int.from_bytes(os.read(reader, 4), 'big') for _ in children)
took = time.monotonic() - begin
for child in children:
    os.waitpid(child, 0)
print(json.dumps({'sent': bound, 'lost': 0, 'seconds': took}), flush=True)
"""


def test_a_guest_that_listens_on_all_ports_and_on_one_of_them_at_40000_addresses(
    pasta: Pasta, echo_port: int, record_property: Record, tmp_path: Path
) -> None:
    """What forwarded itself before goes on doing so, and so does what comes after."""
    guest = pasta.guest("--config-net", "--stats", "1", "-T", "none", "-U", "none")
    guest.settle()
    host = pasta.topology.host
    guest.serve_tcp("0.0.0.0", lambda connection: connection.sendall(b"there"), port=17777)
    answers, forwards = [], []

    def bound() -> int:
        return len(host.run("ss", "-Hlntu").stdout.splitlines())

    def answered(port: int) -> bool:
        with contextlib.suppress(ConnectionRefusedError), host.connect("127.0.0.1", port) as client:
            return client.recv(5) == b"there"
        return False

    wait_until(lambda: answered(17777), "a forward", 2)
    wait_until(lambda: bound() == 2, "the one of UDP, which follows")
    original = Bystander.new

    def new(self: Bystander, port: int = 7101) -> float:
        answers.append(answered(17777))
        forwards.append(bound())
        return original(self, port)

    def over() -> None:
        wait_until(lambda: bound() == 2, "the end of the forwards")

    script = tmp_path / "listeners.py"
    script.write_text(LISTENERS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[__name__], "ATTACKER", str(script))
        patch.setattr(Bystander, "new", new)
        result = attack(
            guest, echo_port, "listeners on all ports, one at 40,000 addresses", "-", *EPHEMERAL, seconds=25, over=over
        )
    result.counters.update(forwards=max(forwards))
    record(record_property, result, "forwards", "slow_errors", "flow_refused")
    assert all(answers)
    assert max(forwards) == AUTO_LISTENERS
    assert "slow_errors" not in result.counters
    assert result.figures.slowest < 1, "the loop stood still"
    assert result.figures.grown < 24 << 10
    assert sum("too many ports" in line for line in guest.output) == 1
    assert sum("more sockets are bound" in line for line in guest.output) <= 1  # if there was time to see so many
    guest.serve_tcp("0.0.0.0", lambda connection: connection.sendall(b"there"), port=17778)
    wait_until(lambda: answered(17778), "a new forward", 2)
    assert answered(17777)


# From the network


def test_a_flood_of_connections_at_a_forward(guest: Guest, echo_port: int, record_property: Record) -> None:
    """No SYN is ever answered: the guest has no way back to them. What it opens meanwhile is not touched."""
    guest.run("ip", "route", "add", "blackhole", f"{NEIGHBOUR4}/32")
    flood = guest.pasta.topology.server.start(
        *NICE, sys.executable, "-I", "-S", "-c", FLOOD, EXTRA4, "8080", str(SECONDS), stderr=subprocess.DEVNULL
    )
    watch = Watch(guest, echo_port)
    watch.begin(flood)
    watch.ask(SECONDS / 2)
    watch.open()
    said = watch.end()
    found = moved(guest)
    name = "connection flood at a forward, guest silent"
    result = watch.result(name, said["opened"] / said["seconds"], found, said)
    record(record_property, result, "tcp_opened_host", "tcp_half_open_evicted", "flow_refused")
    assert found["tcp_opened_host"] > 500


FLOOD = """
import json, socket, sys, time
address, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
print('ready', flush=True)
begin = time.monotonic()
opened = 0
socks = []
while time.monotonic() - begin < seconds:
    sock = socket.socket()
    sock.settimeout(2)
    try:
        sock.connect((address, port))
        opened += 1
    except OSError:
        pass
    socks.append(sock)
    if len(socks) > 900:
        socks.pop(0).close()
print(json.dumps({'opened': opened, 'seconds': time.monotonic() - begin}), flush=True)
"""


def test_descriptors_that_run_out_under_a_flood_are_told_once_and_there_again_after_it(
    pasta: Pasta, echo_port: int, record_property: Record
) -> None:
    pasta.topology.server.ip(f"route add blackhole {HOLE}/32")
    guest = pasta.guest("--config-net", "--stats", "1")
    guest.settle()
    pasta.topology.host.run("prlimit", f"--pid={guest.pid}", "--nofile=256:256", user=pasta.user)
    result = attack(guest, echo_port, "SYN flood, 256 descriptors", "syn", HOLE, 80)
    record(record_property, result, "tcp_opened_guest", "tcp_half_open_evicted", "flow_refused")
    assert guest.descriptors() <= 256
    assert sum("descriptors have run out" in line for line in guest.output) == 1
    # Connections in use up to the limit are refused one by one, and there is room again when some have ended
    held: list[socket.socket] = []
    with pytest.raises(ConnectionRefusedError):
        held.extend(guest.connect(SERVER4, 7102) for _ in range(300))
    assert len(held) > 200
    with pytest.raises(ConnectionRefusedError):
        guest.connect(SERVER4, 7102)
    assert_quiet(guest.pid, 1)
    for connection in held[::2]:
        connection.setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
        )  # their server keeps its end
        connection.close()

    def echoes() -> bool:
        with contextlib.suppress(ConnectionRefusedError), guest.connect(SERVER4, 7101) as connection:
            connection.sendall(b"z")
            return connection.recv(1) == b"z"
        return False

    wait_until(echoes, "a connection in the room that half of the others left")
    assert guest.descriptors() < 200
