"""Known cases of TCP that need a hostile or absent peer, many connections, or a look at the processor's time."""

import contextlib
import hashlib
import random
import re
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import pytest

from bucatini.wire.ipv4 import PROTOCOL_TCP, IPv4
from bucatini.wire.ipv6 import IPv6
from bucatini.wire.tcp import ACK, FIN, PSH, RST, SYN, Tcp
from system.namespaces import Namespace, TcpServer, echo, receive, wait_until
from system.programs import need
from system.quiet import assert_quiet, nearly_idle
from system.servers import source
from system.topology import ANY, GATEWAY, HOST, SERVER, SERVER4, Guest, Pasta, elapsed
from system.users import only_unprivileged

pytestmark = only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
ETH_P_ALL = 3  # linux/if_ether.h
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}


# What a test looks at


def queued(namespace: Namespace, port: int) -> int:
    """Bytes that the sockets of a server's port hold back from sending."""
    lines = namespace.run("ss", "-Htn", f"sport = :{port}").stdout.splitlines()
    return sum(int(line.split()[2]) for line in lines)


def wait_for_standstill(look: Callable[[], int]) -> None:
    """Wait until what is looked at is more than nothing and has not changed for half a second."""
    last, since = -1, time.monotonic()

    def still() -> bool:
        nonlocal last, since
        now = look()
        if now != last or now == 0:
            last, since = now, time.monotonic()
        return time.monotonic() - since > 0.5

    wait_until(still, "a standstill")


def assert_works(guest: Guest, server: TcpServer, version: int) -> None:
    """A new connection to a server that echoes is served at once."""
    with guest.connect(SERVER[version], server.port, timeout=5) as connection:
        connection.sendall(b"other")
        assert receive(connection, 5) == b"other"


def block(namespace: Namespace, hook: str, match: str) -> None:
    """Drop the packets that match from now on."""
    need("nft", "nftables")
    rules = f"table inet block {{ chain drops {{ type filter hook {hook} priority 0; {match} drop; }}; }}"
    namespace.run("nft", "-f", "-", input=rules)


@contextlib.contextmanager
def blocked(namespace: Namespace, hook: str, match: str) -> Iterator[None]:
    """Packets that match are dropped for a while."""
    block(namespace, hook, match)
    yield
    namespace.run("nft", "delete", "table", "inet", "block")


class Sniffer:
    """Sees the TCP segments that come to a guest and leave it, before any filter."""

    def __init__(self, guest: Guest, version: int) -> None:
        self.version = version
        self._socket = guest.inside(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def next(self, condition: Callable[[Tcp], bool], timeout: float = 10) -> Tcp:
        """The next segment for which the condition holds."""
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0 and select.select([self._socket], [], [], left)[0]:
            data = self._socket.recv(1 << 16)
            if data[0] >> 4 != self.version:
                continue
            packet = IPv4.parse(data) if self.version == 4 else IPv6.parse(data)
            protocol = packet.protocol if isinstance(packet, IPv4) else packet.next_header
            if protocol == PROTOCOL_TCP and condition(segment := Tcp.parse(packet.payload)):
                return segment
        message = f"no such segment within {timeout:g} s"
        raise AssertionError(message)


def send_segment(guest: Guest, version: int, segment: Tcp) -> None:
    """Send a segment that the guest's kernel knows nothing about to the server."""
    src, dst = (socket.inet_pton(FAMILY[version], address[version]) for address in (HOST, SERVER))
    raw = guest.inside(lambda: socket.socket(FAMILY[version], socket.SOCK_RAW, socket.IPPROTO_TCP))
    with raw:
        raw.sendto(segment.emit(src, dst), (SERVER[version], 0))


# Opening


@both_versions
def test_T4_a_forwarded_connection_waits_for_a_guest_that_does_not_answer_yet(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "-t", "8080:80")
    guest.serve_tcp(ANY[version], echo, port=80)
    with Sniffer(guest, version) as sniffer, contextlib.ExitStack() as stack:
        stack.enter_context(blocked(guest, "input", "tcp dport 80"))
        client, seconds = elapsed(pasta.topology.server.connect, HOST[version], 8080, source=SERVER[version])
        assert seconds < 1
        client.sendall(b"early")
        times = []
        for _ in range(3):
            segment = sniffer.next(lambda segment: segment.dport == 80)
            assert segment.flags == SYN
            times.append(time.monotonic())
        stack.close()
        # The next try comes four seconds after the third.
        assert receive(client, 5) == b"early"
    assert times[1] - times[0] > 0.5
    assert times[2] - times[1] > 1.5 * (times[1] - times[0])


@both_versions
def test_T4_a_forwarded_connection_waits_for_a_guest_whose_interface_is_down(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net", "-t", "8080:80")
    guest.sysctl(net__ipv6__conf__all__keep_addr_on_down=1, net__ipv6__conf__all__accept_dad=0)
    guest.serve_tcp(ANY[version], echo, port=80)
    guest.run("ip", "link", "set", "host0", "down")
    client, seconds = elapsed(pasta.topology.server.connect, HOST[version], 8080, source=SERVER[version])
    assert seconds < 1
    client.sendall(b"early")
    client.settimeout(1.5)
    with pytest.raises(TimeoutError):
        client.recv(1)
    guest.run("ip", "link", "set", "host0", "up")
    guest.run("ip", f"-{version}", "route", "replace", "default", "via", GATEWAY[version], "dev", "host0")
    client.settimeout(10)
    assert receive(client, 5) == b"early"


@both_versions
def test_T19_a_segment_of_an_unknown_connection_is_reset(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    with Sniffer(guest, version) as sniffer:
        send_segment(guest, version, Tcp(41000, server.port, 1000, 2_000_000, ACK | PSH, 500, b"stale"))
        answer = sniffer.next(lambda segment: segment.dport == 41000)
        assert answer.sport == server.port
        assert answer.flags & RST
        assert answer.seq == 2_000_000
        # A reset is never answered: the second answer is the one to the third segment.
        send_segment(guest, version, Tcp(41000, server.port, 1005, 3_000_000, RST | ACK, 500))
        send_segment(guest, version, Tcp(41000, server.port, 1005, 4_000_000, ACK, 500))
        assert sniffer.next(lambda segment: segment.dport == 41000).seq == 4_000_000
    assert not server.peers
    assert_works(guest, server, version)


# Whole streams in spite of slow readers


@both_versions
def test_T9_every_body_is_complete_when_the_guest_closes_and_the_reader_is_slow(pasta: Pasta, version: int) -> None:
    body = random.Random(9).randbytes(120_000)

    def get(connection: socket.socket) -> None:
        assert connection.recv(100) == b"GET"
        connection.sendall(body)

    guest = pasta.guest("--config-net", "-t", "8080:80")
    guest.serve_tcp(ANY[version], get, port=80)

    def fetch(number: int) -> int:
        with pasta.topology.server.open_socket(HOST[version]) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
            client.connect((HOST[version], 8080))
            client.sendall(b"GET")
            got = b""
            while data := client.recv(10_000):
                got += data
                time.sleep(0.002)
            return len(got) if got != body else -1

    with ThreadPoolExecutor(10) as pool:
        lengths = list(pool.map(fetch, range(1000)))
    assert [length for length in lengths if length != -1] == [], "incomplete or wrong bodies of these lengths"


@both_versions
def test_T10_a_server_that_closes_at_once_reaches_a_guest_with_a_tiny_window(pasta: Pasta, version: int) -> None:
    data = random.Random(10).randbytes(2_000_000)
    server = pasta.topology.server.serve_tcp(SERVER[version], lambda connection: connection.sendall(data))
    guest = pasta.guest("--config-net")
    with guest.open_socket(SERVER[version]) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        connection.connect((SERVER[version], server.port))
        # All is said on the server's side, the FIN as well, before much is read here.
        wait_for_standstill(lambda: queued(pasta.topology.server, server.port) or int(len(server.peers) > 0))
        got = bytearray()
        pauses = iter([0.5, 0.2, 0.1, 0.1, 0.1])
        while piece := connection.recv(5000):
            got += piece
            if len(got) % 200_000 < 5000:
                time.sleep(next(pauses, 0))
    assert len(got) == len(data)
    assert got == data


def test_T12_T13_a_reader_may_stop_for_six_seconds_and_pasta_sleeps(pasta: Pasta, payload: bytes) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, source(payload))
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER4, server.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        got = receive(connection, 1 << 20)
        # More than all buffers hold, so that the server has to wait as well.
        wait_for_standstill(lambda: queued(pasta.topology.server, server.port))
        assert_quiet(guest.pid, 6)
        got += receive(connection)
    assert len(got) == len(payload)
    assert got == payload


@both_versions
def test_T20_a_request_reaches_a_server_with_a_receive_buffer_of_4_kib(pasta: Pasta, version: int) -> None:
    data = random.Random(20).randbytes(200_000)

    def slow(connection: socket.socket) -> None:
        digest, left = hashlib.sha256(), len(data)
        while left and (piece := connection.recv(1500)):
            digest.update(piece)
            left -= len(piece)
            time.sleep(0.001)
        connection.sendall(digest.digest())

    listener = pasta.topology.server.listen(SERVER[version])
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with (
        TcpServer(listener, slow) as server,
        pasta.guest("--config-net").connect(SERVER[version], server.port) as connection,
    ):
        connection.settimeout(14)
        connection.sendall(data)
        assert receive(connection, 32) == hashlib.sha256(data).digest()


# Peers that are not there any more, and nothing to do


def test_T18_a_guest_that_is_gone_without_a_word_costs_nothing(pasta: Pasta) -> None:
    go_on = threading.Event()

    def later(connection: socket.socket) -> None:
        connection.sendall(b"x")
        assert go_on.wait(30)
        connection.sendall(bytes(100_000))
        receive(connection)

    topology = pasta.topology
    server, other = topology.server.serve_tcp(SERVER4, later), topology.server.serve_tcp(SERVER4, echo)
    guest = pasta.guest("--config-net", "--stats", "1")
    code = (
        f"import socket\ns = socket.create_connection(('{SERVER4}', {server.port}))\n"
        "print(s.recv(1).decode(), flush=True)\nimport time; time.sleep(60)"
    )
    process = guest.start(pasta.installation.python, "-I", "-S", "-c", code)
    assert process.stdout is not None
    assert process.stdout.readline() == "x\n"
    block(guest, "output", f"tcp dport {server.port}")
    process.kill()
    process.wait()
    go_on.set()
    assert_works(guest, other, 4)
    assert_quiet(guest.pid, 4)
    assert_works(guest, other, 4)
    _, seconds = elapsed(guest.finish)
    assert seconds < 3
    # It did talk to the dead, but not often.
    retransmitted = [int(number) for number in re.findall(r"tcp_retransmit (\d+)", "".join(guest.output))]
    assert 2 <= max(retransmitted) <= 10


def test_a_server_that_never_reads_costs_nothing(pasta: Pasta) -> None:
    done = threading.Event()
    server = pasta.topology.server.serve_tcp(SERVER4, lambda _: assert_set(done))
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER4, server.port) as connection:
        piece = bytes(1 << 16)
        connection.settimeout(0.5)
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                connection.send(piece)
        assert_quiet(guest.pid, 3)
        done.set()


def assert_set(event: threading.Event) -> None:
    """Hold a connection without reading from it."""
    assert event.wait(60)


def test_a_server_that_is_dead_costs_nothing(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    other = pasta.topology.server.serve_tcp(SERVER4, echo)
    guest = pasta.guest("--config-net")
    with guest.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        with blocked(pasta.topology.server, "input", f"tcp dport {server.port}"):
            connection.sendall(bytes(200_000))
            assert_works(guest, other, 4)
            assert_quiet(guest.pid, 3)
        # The host's kernel has doubled its interval a few times by now.
        assert receive(connection, 200_000) == bytes(200_000)


def test_connections_refused_at_a_low_rate_cost_nothing(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    with nearly_idle(guest.pid):
        for _ in range(30):
            with pytest.raises(ConnectionRefusedError):
                guest.connect(SERVER4, 9, timeout=2).close()
            time.sleep(0.1)
    assert_quiet(guest.pid, 2)


# Many


def exchange_bytes(namespace: Namespace, address: str, port: int, count: int) -> list[str]:
    """Open so many connections one after the other, each for a byte there and one back. What went wrong."""

    def run() -> list[str]:
        failures = []
        for number in range(count):
            byte = bytes([number % 256])
            try:
                with socket.create_connection((address, port), 5) as connection:
                    connection.sendall(byte)
                    if (got := connection.recv(2)) != byte:
                        failures.append(f"{number}: {got!r}")
            except OSError as error:
                failures.append(f"{number}: {error}")
            if len(failures) > 5:
                break
        return failures

    return namespace.inside(run)


@both_versions
@pytest.mark.parametrize("direction", ["out", "in"])
def test_T26_3000_short_connections_leave_nothing_behind(pasta: Pasta, version: int, direction: str) -> None:
    guest = pasta.guest("--config-net", "-t", "8080:80")
    guest.settle()
    before = guest.descriptors()
    if direction == "out":
        server = pasta.topology.server.serve_tcp(SERVER[version], echo)
        failures = exchange_bytes(guest, SERVER[version], server.port, 3000)
    else:
        guest.serve_tcp(ANY[version], echo, port=80)
        failures = exchange_bytes(pasta.topology.server, HOST[version], 8080, 3000)
    assert not failures
    wait_until(lambda: guest.descriptors() <= before, f"no more than {before} descriptors, as at the start", 5)


# Oddities


ORDINARY = random.Random(31).randbytes(40_000)
URGENT = b"!"


def with_urgent(connection: socket.socket) -> None:
    """Send ordinary data with an urgent byte in its middle."""
    connection.sendall(ORDINARY[:20_000])
    connection.send(URGENT, socket.MSG_OOB)
    connection.sendall(ORDINARY[20_000:])


@both_versions
def test_T31_urgent_data_of_the_guest_stays_in_its_place_in_the_stream(pasta: Pasta, version: int) -> None:
    """The urgent pointer is not forwarded: the server reads the urgent byte as ordinary data, where it was sent."""
    expected = ORDINARY[:20_000] + URGENT + ORDINARY[20_000:]

    def compare(connection: socket.socket) -> None:
        connection.sendall(b"same" if receive(connection, len(expected)) == expected else b"else")
        connection.sendall(receive(connection, 5))

    server = pasta.topology.server.serve_tcp(SERVER[version], compare)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        with_urgent(connection)
        connection.sendall(b"later")
        assert receive(connection, 9) == b"samelater"


@both_versions
@pytest.mark.parametrize("waiting", [False, True], ids=["at-once", "window-closed"])
def test_T31_urgent_data_of_the_server_stays_in_its_place_in_the_stream(
    pasta: Pasta, version: int, waiting: bool
) -> None:
    """The urgent pointer is not forwarded: the guest reads the urgent byte as ordinary data, where it was sent."""
    front = random.Random(1).randbytes(4_000_000 if waiting else 0)

    def send(connection: socket.socket) -> None:
        connection.sendall(front)
        with_urgent(connection)
        # The end of the stream must not be what makes pasta look again.
        while request := connection.recv(100):
            connection.sendall(request)

    server = pasta.topology.server.serve_tcp(SERVER[version], send)
    guest = pasta.guest("--config-net")
    for _ in range(1 if waiting else 20):
        with guest.connect(SERVER[version], server.port, timeout=5) as connection:
            if waiting:
                wait_for_standstill(lambda: queued(pasta.topology.server, server.port))
            assert receive(connection, len(front)) == front
            assert receive(connection, 20_001) == ORDINARY[:20_000] + URGENT
            assert receive(connection, 20_000) == ORDINARY[20_000:]
            connection.sendall(b"later")
            assert receive(connection, 5) == b"later"


@both_versions
def test_T31_urgent_bytes_one_by_one_each_stay_in_their_place(pasta: Pasta, version: int) -> None:
    """As telnet sends them."""

    def interrupt(connection: socket.socket) -> None:
        while request := connection.recv(100):
            connection.sendall(b"<")
            connection.send(URGENT, socket.MSG_OOB)
            connection.sendall(b">" + request)

    server = pasta.topology.server.serve_tcp(SERVER[version], interrupt)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.settimeout(5)
        for number in range(50):
            request = b"%02d" % number
            connection.sendall(request)
            got = b""
            while not got.endswith(request) and (data := connection.recv(100)):
                got += data
            assert got == b"<!>" + request


@both_versions
def test_T32_data_behind_the_fin_of_the_guest_is_ignored_and_told_once(pasta: Pasta, version: int) -> None:
    heard: list[bytes] = []
    go_on = threading.Event()

    def answer(connection: socket.socket) -> None:
        heard.append(receive(connection))
        assert go_on.wait(30)
        connection.sendall(b"answer")

    topology = pasta.topology
    server, other = topology.server.serve_tcp(SERVER[version], answer), topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    with Sniffer(guest, version) as sniffer, guest.connect(SERVER[version], server.port) as connection:
        connection.sendall(b"question")
        connection.shutdown(socket.SHUT_WR)
        ours, theirs = connection.getsockname()[1], server.port
        fin = sniffer.next(lambda segment: segment.sport == ours and segment.flags & FIN != 0)
        wait_until(lambda: heard, "the end of the question")
        behind = (fin.seq + len(fin.payload) + 1) & 0xFFFFFFFF
        # The FIN itself is acknowledged first.
        sniffer.next(lambda segment: segment.dport == ours and segment.ack == behind)
        for size in (1, 1000, 1000):
            late = Tcp(ours, theirs, behind, fin.ack, ACK | PSH, fin.window, b"!" * size)
            send_segment(guest, version, late)
            reply = sniffer.next(lambda segment: segment.dport == ours)
            assert (reply.flags & RST, reply.ack) == (0, behind)
        assert_works(guest, other, version)
        go_on.set()
        assert receive(connection) == b"answer"
    assert heard == [b"question"]
    assert_works(guest, other, version)
    assert guest.finish() == 0
    assert sum("data behind the end of a connection" in line for line in guest.output) == 1


# A bad link


@both_versions
def test_T24_what_is_lost_doubled_and_overtaken_arrives_in_order(pasta: Pasta, payload: bytes, version: int) -> None:
    data = payload[: 4 << 20]

    def digest(connection: socket.socket) -> None:
        connection.sendall(hashlib.sha256(receive(connection)).digest())

    guest = pasta.guest("--config-net", "--fault", "loss=0.02,duplicate=0.02,reorder=0.05,seed=24")
    upload = pasta.topology.server.serve_tcp(SERVER[version], digest)
    with guest.connect(SERVER[version], upload.port, timeout=60) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == hashlib.sha256(data).digest()
    download = pasta.topology.server.serve_tcp(SERVER[version], source(data))
    with guest.connect(SERVER[version], download.port, timeout=60) as connection:
        connection.shutdown(socket.SHUT_WR)  # T24: half-closed, too
        assert receive(connection) == data


def test_T11_connections_end_though_ends_get_lost(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net", "--fault", "loss=0.05,seed=11")
    server = pasta.topology.server.serve_tcp(SERVER4, lambda connection: connection.sendall(b"answer"))
    guest.settle()
    before = guest.descriptors()
    connections = [guest.open_socket(SERVER4) for _ in range(80)]
    for connection in connections:
        connection.setblocking(False)
        connection.connect_ex((SERVER4, server.port))
    for connection in connections:
        connection.settimeout(60)  # a SYN that is lost four times over is late by 15 s
        assert receive(connection) == b"answer"  # and the end, lost or not
        connection.close()
    wait_until(lambda: guest.descriptors() <= before, "the end of all connections", 60)


@both_versions
def test_T29_segments_to_and_from_port_0_do_no_harm(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    with Sniffer(guest, version) as sniffer:
        for sport, dport in ((0, server.port), (40000, 0), (0, 0)):
            send_segment(guest, version, Tcp(sport, dport, 1000, 0, SYN, 65535))
        send_segment(guest, version, Tcp(40000, 9, 1000, 0, SYN, 65535))
        # What is answered next is what came last: to the others there was no answer
        assert sniffer.next(lambda segment: segment.flags & RST != 0).sport == 9
    assert_works(guest, server, version)
    assert server.peers[:-1] == []
