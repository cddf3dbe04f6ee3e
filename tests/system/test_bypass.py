"""Local connections: from the host's loopback to the guest (-t, -u), and from the guest's to the host (-T, -U).

They go from socket to socket, not over the tap; `Way` lets a test run over both directions alike.
"""

import contextlib
import hashlib
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.all import IP, TCP, UDP, Ether, IPv6

from bucatini.bench import load, traffic
from system.namespaces import Namespace, TcpServer, echo, receive, wait_until
from system.programs import need
from system.quiet import assert_quiet, nearly_idle
from system.servers import http
from system.topology import ANY, EXTRA, GATEWAY4, GATEWAY6, HOST, LOOPBACK, SERVER, Guest, Pasta, elapsed, url
from system.users import only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
both_ways = pytest.mark.parametrize("direction", ["in", "out"])
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST
PORT = 8080  # where clients knock
SERVED = 80  # where servers are
MAPPED = {4: "192.0.2.99", 6: "2001:db8::99"}
IDLE = 10_000  # connections: T27


class Way(NamedTuple):
    """A direction of the bypass."""

    guest: Guest
    client: Namespace
    server: Namespace
    knock: str  # address that clients ask for
    serve: str  # address that servers are bound to

    def connect(self, **options: object) -> socket.socket:
        return self.client.connect(self.knock, PORT, **options)  # type: ignore[arg-type]


def way(pasta: Pasta, direction: str, version: int, *options: str) -> Way:
    """Start a guest with a forward in one direction alone."""
    spec = f"{PORT}:{SERVED}"
    loopback = LOOPBACK[version]
    if direction == "in":
        none = ("-T", "none", "-U", "none")
        guest = pasta.guest("--config-net", "-t", spec, "-u", spec, *none, *options)
        return Way(guest, pasta.topology.host, guest, loopback, HOST[version])
    none = ("-t", "none", "-u", "none")
    guest = pasta.guest("--config-net", "-T", spec, "-U", spec, *none, *options)
    return Way(guest, guest, pasta.topology.host, loopback, loopback)


def tap_packets(guest: Guest) -> int:
    """Packets that the guest's interface has seen, both ways."""
    lines = guest.inside(lambda: Path("/proc/thread-self/net/dev").read_text()).splitlines()
    fields = next(line for line in lines if "host0:" in line).partition(":")[2].split()
    return int(fields[1]) + int(fields[9])


def source_address(connection: socket.socket) -> None:
    """TCP handler: tells the client its address, as the server sees it."""
    connection.sendall(connection.getpeername()[0].encode())


def is_served(over: Way) -> bool:
    """Whether a connection gets its echo; False when it is reset."""
    try:
        with over.connect() as connection:
            connection.sendall(b"x")
            return connection.recv(1) == b"x"
    except ConnectionError:
        return False


def limit_descriptors(guest: Guest, count: int) -> None:
    """Lower pasta's limit, as who it is: root may need a capability for it."""
    status = Path(f"/proc/{guest.pid}/status").read_text()
    uid, gid = (status.partition(f"\n{name}:")[2].split()[0] for name in ("Uid", "Gid"))
    be = ["setpriv", f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    subprocess.run([*be, "prlimit", f"--pid={guest.pid}", f"--nofile={count}:{count}"], check=True)


# Which way it goes


@both_versions
@both_ways
def test_a_local_connection_does_not_touch_the_tap(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    over.server.serve_tcp(over.serve, echo, port=SERVED)
    answers = over.server.serve_udp(over.serve, lambda data, _: data, port=SERVED)
    before = tap_packets(over.guest)
    with over.connect() as connection:
        connection.sendall(bytes(1_000_000))
        assert receive(connection, 1_000_000) == bytes(1_000_000)
    with over.connect(kind=socket.SOCK_DGRAM) as client:
        for size in (1, 100, 60_000):
            client.send(bytes(size))
            assert client.recv(1 << 16) == bytes(size)
    assert len(answers.peers) == 3
    assert tap_packets(over.guest) - before < 20  # what neighbour discovery may have had to say


@both_versions
def test_without_the_bypass_it_goes_over_the_tap(pasta: Pasta, version: int) -> None:
    spec = f"{PORT}:{SERVED}"
    guest = pasta.guest("--config-net", "--no-splice", "-t", spec, "-u", "none")
    guest.serve_tcp(HOST[version], echo, port=SERVED)
    before = tap_packets(guest)
    with pasta.topology.host.connect(LOOPBACK[version], PORT) as connection:
        connection.sendall(bytes(1_000_000))
        assert receive(connection, 1_000_000) == bytes(1_000_000)
    assert tap_packets(guest) - before >= 20


@both_versions
def test_from_the_loopback_of_the_host_it_reaches_the_public_address_of_the_namespace(
    pasta: Pasta, version: int
) -> None:
    over = way(pasta, "in", version)
    over.server.serve_tcp(HOST[version], source_address, port=SERVED)
    with over.connect() as connection:
        assert receive(connection).decode() == HOST[version]


@both_versions
def test_L2_what_listens_on_the_loopback_of_the_namespace_alone_is_not_reached(pasta: Pasta, version: int) -> None:
    over = way(pasta, "in", version)
    over.server.serve_tcp(LOOPBACK[version], echo, port=SERVED)
    with pytest.raises(ConnectionResetError):
        over.connect().recv(1)


@both_versions
def test_L2_unless_it_is_asked_for(pasta: Pasta, version: int) -> None:
    over = way(pasta, "in", version, "--host-lo-to-ns-lo")
    over.server.serve_tcp(LOOPBACK[version], source_address, port=SERVED)
    over.server.serve_udp(LOOPBACK[version], lambda _, peer: peer[0].encode(), port=SERVED)
    with over.connect() as connection:
        assert receive(connection).decode() == LOOPBACK[version]
    with over.connect(kind=socket.SOCK_DGRAM) as client:
        client.send(b"who am I?")
        assert client.recv(100).decode() == LOOPBACK[version]


@both_versions
def test_a_forward_may_lead_to_another_address_of_the_namespace(pasta: Pasta, version: int) -> None:
    other = {4: "10.89.0.2", 6: "fd00:89::2"}[version]
    to = other if version == 4 else f"[{other}]"
    guest = pasta.guest("--config-net", "-t", f"{PORT}:{to}/{SERVED}", "-u", f"{PORT}:{to}/{SERVED}")
    guest.run("ip", "address", "add", other, "dev", "lo", *(["nodad"] if version == 6 else []))
    guest.serve_tcp(other, echo, port=SERVED)
    guest.serve_udp(other, lambda data, _: data, port=SERVED)
    # The kernel makes an address of IPv6 first and its local route a moment later
    wait_until(lambda: is_open(guest, other, SERVED), "the guest's own way there")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with pasta.topology.host.connect(LOOPBACK[version], PORT, kind=kind) as connection:
            connection.sendall(b"there?")
            assert connection.recv(10) == b"there?"


def test_L3_the_other_addresses_of_the_loopback_are_reached_as_they_are(pasta: Pasta) -> None:
    resolver = "127.0.0.53"
    pasta.topology.host.serve_tcp(resolver, echo, port=5353)
    pasta.topology.host.serve_udp(resolver, lambda data, _: data, port=5353)
    guest = pasta.guest("--config-net", "-T", "auto", "-U", "auto")
    wait_until(lambda: is_open(guest, resolver, 5353), "the forward", 2)
    with guest.connect(resolver, 5353) as connection:
        connection.sendall(b"53")
        assert connection.recv(10) == b"53"
    with guest.connect(resolver, 5353, kind=socket.SOCK_DGRAM) as client:
        client.send(b"53")
        assert client.recv(10) == b"53"
        assert client.getpeername()[0] == resolver


@both_versions
def test_from_the_namespace_only_its_loopback_leads_to_the_host(pasta: Pasta, version: int) -> None:
    over = way(pasta, "out", version)
    over.server.serve_tcp(over.serve, echo, port=SERVED)
    with pytest.raises(ConnectionError):  # refused, or taken and reset
        over.client.connect(HOST[version], PORT).recv(1)
    with over.connect() as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


@both_versions
def test_a_forward_from_the_namespace_may_name_addresses(pasta: Pasta, version: int) -> None:
    any_, loopback = (f"[{a}]" if version == 6 else a for a in (ANY[version], LOOPBACK[version]))
    pasta.topology.host.serve_tcp(EXTRA[version], echo, port=SERVED)
    target = f"[{EXTRA[version]}]" if version == 6 else EXTRA[version]
    guest = pasta.guest("--config-net", "-T", f"{loopback}/{PORT}:{target}/{SERVED}", "-T", f"{any_}/81:{loopback}/82")
    with guest.connect(LOOPBACK[version], PORT) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


@both_versions
def test_a_forward_from_the_namespace_may_name_an_interface(pasta: Pasta, version: int) -> None:
    loopback = LOOPBACK[version]
    pasta.topology.host.serve_tcp(loopback, echo, port=SERVED)
    pasta.topology.host.serve_udp(loopback, lambda data, _: data, port=SERVED)
    spec = f"%lo/{PORT}:{SERVED}"
    guest = pasta.guest("--config-net", "-T", spec, "-U", spec, "-T", f"%host0/81:{SERVED}")
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with guest.connect(loopback, PORT, kind=kind) as connection:
            connection.send(b"x")
            assert connection.recv(1) == b"x"
    with pytest.raises(ConnectionError):  # it is not on that interface
        guest.connect(loopback, 81).recv(1)


def test_with_nothing_but_the_bypass_there_is_no_tap(pasta: Pasta) -> None:
    specs = ("-t", f"{PORT}:{SERVED}", "-T", f"{PORT + 1}:{SERVED + 1}", "-u", "none", "-U", "none")
    guest = pasta.guest("--splice-only", "--host-lo-to-ns-lo", *specs)
    assert [line.split(":")[1].strip() for line in guest.run("ip", "-o", "link").stdout.splitlines()] == ["lo"]
    host = pasta.topology.host
    for version in (4, 6):
        guest.serve_tcp(LOOPBACK[version], echo, port=SERVED)
        host.serve_tcp(LOOPBACK[version], echo, port=SERVED + 1)
        for client, port in ((host, PORT), (guest, PORT + 1)):
            with client.connect(LOOPBACK[version], port) as connection:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"
        # From elsewhere there is no way in
        with pytest.raises(ConnectionResetError):
            pasta.topology.server.connect(HOST[version], PORT).recv(1)
    assert guest.finish() == 0


# Ends


@both_versions
@both_ways
@pytest.mark.parametrize("who", ["client", "server"])
def test_T6_a_reset_arrives_as_a_reset(pasta: Pasta, direction: str, who: str, version: int) -> None:
    over = way(pasta, direction, version)
    with over.server.listen(over.serve, SERVED) as listener, over.connect() as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            client.sendall(b"x")
            assert server.recv(1) == b"x"
            resets, gets = (client, server) if who == "client" else (server, client)
            resets.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            resets.close()
            with pytest.raises(ConnectionResetError):
                gets.recv(1)


@both_versions
@both_ways
def test_T6_a_port_where_nobody_listens_resets_what_was_accepted(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    with pytest.raises(ConnectionResetError):
        over.connect().recv(1)


@both_versions
@both_ways
def test_T7_the_last_data_and_the_end_together_after_a_half_close(pasta: Pasta, direction: str, version: int) -> None:
    answer = random.Random(7).randbytes(300_000)

    def serve(connection: socket.socket) -> None:
        question = receive(connection)
        connection.sendall(question + answer)  # and the end at once

    over = way(pasta, direction, version)
    over.server.serve_tcp(over.serve, serve, port=SERVED)
    for number in range(100):
        with over.connect() as client:
            client.sendall(b"%03d" % number)
            client.shutdown(socket.SHUT_WR)
            assert receive(client) == b"%03d" % number + answer


@both_versions
@both_ways
def test_T8_a_half_closed_upload_is_complete(pasta: Pasta, direction: str, payload: bytes, version: int) -> None:
    digests: list[str] = []

    def serve(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        digests.append(hashlib.sha256(receive(connection)).hexdigest())

    over = way(pasta, direction, version)
    over.server.serve_tcp(over.serve, serve, port=SERVED)
    with over.connect() as client:
        assert client.recv(1) == b""
        client.sendall(payload)
    wait_until(lambda: digests, "end of the upload")
    assert digests == [hashlib.sha256(payload).hexdigest()]


# Data


@both_ways
def test_T14_a_full_pipe_costs_nothing_while_its_reader_pauses(pasta: Pasta, direction: str) -> None:
    over = way(pasta, direction, 4)
    data = bytes(64 << 20)  # more than all buffers on the way hold
    over.server.serve_tcp(over.serve, lambda connection: connection.sendall(data), port=SERVED)
    with over.connect() as client:
        client.recv(1)
        time.sleep(1)  # until everything is full
        assert_quiet(over.guest.pid, 3)
        with over.connect() as other:  # others go on
            assert receive(other, 1000) == bytes(1000)
        assert len(receive(client)) == len(data) - 1


@both_ways
def test_T15_a_gigabyte_with_pauses_arrives_unchanged(pasta: Pasta, direction: str) -> None:
    block = random.Random(15).randbytes(1 << 20)
    count = 1024
    expected = hashlib.sha256()
    for number in range(count):
        expected.update(number.to_bytes(4))
        expected.update(block)

    def serve(connection: socket.socket) -> None:
        for number in range(count):
            connection.sendall(number.to_bytes(4))
            connection.sendall(block)

    over = way(pasta, direction, 4)
    over.server.serve_tcp(over.serve, serve, port=SERVED)
    pauses = random.Random(51)
    found = hashlib.sha256()
    with over.connect() as client:
        while data := client.recv(pauses.choice([1000, 1 << 16, 1 << 20])):
            found.update(data)
            if pauses.random() < 0.005:
                time.sleep(pauses.random() / 50)
    assert found.hexdigest() == expected.hexdigest()


@both_versions
def test_T30_eleven_megabytes_from_a_port_on_the_loopback_take_less_than_a_second(pasta: Pasta, version: int) -> None:
    over = way(pasta, "in", version)
    page = random.Random(30).randbytes(11_000_000)
    over.server.serve_tcp(over.serve, http({"/": page}), port=SERVED)
    result, seconds = elapsed(
        subprocess.run,
        over.client.command(["curl", "-s", "--max-time", "10", url(over.knock, PORT)]),
        capture_output=True,
        check=True,
    )
    assert result.stdout == page
    assert seconds < 1


@both_versions
@both_ways
def test_T31_urgent_data_stays_in_its_place(pasta: Pasta, direction: str, version: int) -> None:
    ordinary = random.Random(31).randbytes(40_000)
    over = way(pasta, direction, version)
    with over.server.listen(over.serve, SERVED) as listener, over.connect() as client:
        server, _ = listener.accept()
        with server:
            server.settimeout(10)
            for sender, reader in ((client, server), (server, client)):
                sender.sendall(ordinary[:20_000])
                sender.send(b"!", socket.MSG_OOB)
                sender.sendall(ordinary[20_000:])
                assert receive(reader, 40_001) == ordinary[:20_000] + b"!" + ordinary[20_000:]
                sender.sendall(b"later")
                assert receive(reader, 5) == b"later"


@both_versions
@both_ways
def test_T31_urgent_data_with_the_end_behind_it_arrives_at_a_slow_reader(
    pasta: Pasta, direction: str, version: int
) -> None:
    ordinary = random.Random(31).randbytes(24 << 20)  # more than all buffers on the way
    over = way(pasta, direction, version)
    with over.server.listen(over.serve, SERVED) as listener, over.connect() as client:
        server, _ = listener.accept()

        def send() -> None:
            with server:
                server.sendall(ordinary)
                server.send(b"!", socket.MSG_OOB)
                server.sendall(b"the end")

        with ThreadPoolExecutor(1) as pool:
            sent = pool.submit(send)
            time.sleep(0.3)
            assert receive(client, len(ordinary)) == ordinary
            assert receive(client, 8) == b"!the end"
            assert client.recv(1) == b""
            sent.result(10)


@both_versions
@both_ways
def test_T28_small_writes_do_not_wait(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    over.server.serve_tcp(over.serve, echo, port=SERVED)

    def exchange() -> None:
        with over.connect() as client:
            for _ in range(200):
                client.sendall(b"a")
                client.sendall(b"b")  # with Nagle's algorithm this waits for a delayed acknowledgement, 40 ms
                assert receive(client, 2) == b"ab"

    assert elapsed(exchange)[1] < 4


# Many


@both_versions
@both_ways
def test_T25_a_port_can_be_used_again_at_once(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    over.server.serve_tcp(over.serve, echo, port=SERVED)
    for _ in range(20):
        client = over.client.open_socket(over.knock)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        client.bind((over.knock, 20000))
        client.connect((over.knock, PORT))
        client.sendall(b"again")
        assert receive(client, 5) == b"again"
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.close()


@pytest.mark.parametrize(("direction", "options"), [("in", ()), ("out", ()), ("in", ("--no-splice",))])
def test_T26_20000_short_connections_succeed_and_leave_nothing_behind(
    pasta: Pasta, direction: str, options: tuple[str, ...]
) -> None:
    over = way(pasta, direction, 4, *options)
    address = traffic.raw_address(over.knock, PORT)
    with over.server.listen(over.serve, SERVED, backlog=4096) as listener, ThreadPoolExecutor() as pool:
        listener.settimeout(None)
        served = pool.submit(load.serve_requests, listener.fileno())
        try:
            over.client.inside(lambda: load.connect_request_response(address, socket.AF_INET, 0.1))
            settled = 256 + over.guest.descriptors()  # the pool of sockets may be anything from empty to full
            done = 0
            while done < 20_000:
                count, failed = over.client.inside(lambda: load.connect_request_response(address, socket.AF_INET, 0.5))
                assert (failed, count > 0) == (0, True)
                done += count
        finally:
            listener.shutdown(socket.SHUT_RDWR)
        assert served.result(10) >= done
    wait_until(lambda: over.guest.descriptors() <= settled, "the end of all connections", 5)


@both_ways
def test_T27_thousands_of_idle_connections_live_at_no_cost(pasta: Pasta, direction: str) -> None:
    """As many as the hard limit of descriptors allows, which is 4,625 where that is 20,000; up to `IDLE`."""
    over = way(pasta, direction, 4)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(IDLE, (limit[1] - 1500) // 4)  # this process holds both ends; pasta two descriptors for each, and pools
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
    try:
        with contextlib.ExitStack() as stack, over.server.listen(over.serve, SERVED, backlog=4096) as listener:
            pairs = []
            for _ in range(count):
                client = stack.enter_context(over.connect())
                server = stack.enter_context(listener.accept()[0])
                server.settimeout(10)
                pairs.append((client, server))
            assert_quiet(over.guest.pid, 2)
            for client, server in pairs[:: max(1, count // 500)]:
                client.sendall(b"alive?")
                assert server.recv(10) == b"alive?"
                server.sendall(b"alive")
                assert client.recv(10) == b"alive"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


@both_ways
def test_T27_without_descriptors_connections_are_refused_and_later_ones_served(pasta: Pasta, direction: str) -> None:
    over = way(pasta, direction, 4)
    over.server.serve_tcp(over.serve, echo, port=SERVED)

    assert is_served(over)
    limit_descriptors(over.guest, 200)
    with contextlib.ExitStack() as stack:
        refused = 0
        for _ in range(300):
            try:
                connection = stack.enter_context(over.connect())
                connection.sendall(b"x")
                refused += connection.recv(1) != b"x"
            except ConnectionError:
                refused += 1
        assert 100 < refused < 290
        assert_quiet(over.guest.pid, 1)
    wait_until(lambda: is_served(over), "service after the descriptors are free again", 5)


# UDP


@both_versions
@both_ways
def test_U4_the_answer_comes_from_the_address_that_was_asked(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    addresses = ("127.0.0.1", "127.0.0.2") if version == 4 else ("::1",)
    for address in addresses if direction == "out" else (over.serve,):
        over.server.serve_udp(address, lambda data, _: data, port=SERVED)
    for address in (*addresses, *addresses):
        with over.client.connect(address, PORT, kind=socket.SOCK_DGRAM) as client:
            for _ in range(3):
                client.send(b"question")
                assert client.recv(100) == b"question"


@both_versions
def test_U5_instances_that_share_a_source_port_do_not_get_each_others_answers(pasta: Pasta, version: int) -> None:
    loopback = LOOPBACK[version]
    server = pasta.topology.host.serve_udp(loopback, lambda data, _: data, port=SERVED)
    clients = []
    for _ in range(2):
        guest = pasta.guest("--config-net", "-U", f"{PORT}:{SERVED}")
        client = guest.open_socket(loopback, socket.SOCK_DGRAM)
        client.bind((loopback, 5000))
        client.connect((loopback, PORT))
        clients.append(client)
    for number in range(24):
        for which, client in enumerate(clients):
            client.send(b"%d %d" % (which, number))
    for which, client in enumerate(clients):
        assert [client.recv(100) for _ in range(24)] == [b"%d %d" % (which, number) for number in range(24)]
    assert len(set(server.peers)) == 2


@both_versions
@both_ways
def test_U6_the_source_port_is_kept(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    over.server.serve_udp(over.serve, lambda _, peer: b"%d" % peer[1], port=SERVED)
    for port in (4321, 4322):
        with over.client.open_socket(over.knock, socket.SOCK_DGRAM) as client:
            client.bind((over.knock, port))
            client.connect((over.knock, PORT))
            client.send(b"who am I?")
            assert client.recv(100) == b"%d" % port


@both_versions
@both_ways
def test_U7_datagrams_of_all_sizes_arrive_whole(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    over.server.serve_udp(over.serve, lambda data, _: data, port=SERVED)
    data = random.Random(7).randbytes(65_507)
    with over.connect(kind=socket.SOCK_DGRAM) as client:
        for size in (0, 1, 2, 1200, 1472, 1473, 9000, 32_768, 60_000, 65_487, 65_507):
            client.send(data[:size])
            assert client.recv(1 << 16) == data[:size]


@both_versions
@both_ways
def test_U9_bursts_of_several_new_clients_arrive_whole_and_in_order(pasta: Pasta, direction: str, version: int) -> None:
    over = way(pasta, direction, version)
    with over.server.bind(over.serve, SERVED) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        clients = [over.connect(kind=socket.SOCK_DGRAM) for _ in range(8)]
        for number in range(25):  # what a queue holds, even of a busy machine
            for which, client in enumerate(clients):
                client.send(b"%d %d" % (which, number))
        found: dict[bytes, list[int]] = {}
        peers: dict[bytes, set[object]] = {}
        for _ in range(25 * len(clients)):
            data, peer = server.recvfrom(100)
            which, number = data.split()
            found.setdefault(which, []).append(int(number))
            peers.setdefault(which, set()).add(peer)
            server.sendto(data, peer)
        assert all(numbers == list(range(25)) for numbers in found.values())
        assert all(len(seen) == 1 for seen in peers.values())
        for which, client in enumerate(clients):
            assert [client.recv(100) for _ in range(25)] == [b"%d %d" % (which, number) for number in range(25)]


@both_ways
def test_U11_one_shot_clients_are_all_answered_and_their_sockets_stay_bounded(pasta: Pasta, direction: str) -> None:
    over = way(pasta, direction, 4)
    over.server.serve_udp(over.serve, lambda data, _: data, port=SERVED)
    limit_descriptors(over.guest, 500)

    def ask() -> None:
        for number in range(2000):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect((over.knock, PORT))
                client.send(b"%d" % number)
                assert client.recv(100) == b"%d" % number
            # An answered flow goes for a new one only after a second of silence: at this rate there are always some
            if number % 200 == 199:
                time.sleep(1.1)

    over.client.inside(ask)
    assert over.guest.descriptors() <= 500


@both_ways
def test_U11_a_socket_of_an_answered_query_goes_soon(pasta: Pasta, direction: str) -> None:
    over = way(pasta, direction, 4, "-u" if direction == "in" else "-U", "5353:53")
    over.server.serve_udp(over.serve, lambda data, _: data, port=53)
    with over.client.connect(over.knock, 5353, kind=socket.SOCK_DGRAM) as first:  # its socket is of the pool's first
        first.send(b"x")
        assert first.recv(10) == b"x"
    before = over.guest.descriptors()

    def ask() -> None:
        for number in range(600):  # more than the pool holds
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.settimeout(5)
                client.connect((over.knock, 5353))
                client.send(b"%d" % number)
                assert client.recv(100) == b"%d" % number

    over.client.inside(ask)
    assert over.guest.descriptors() > before + 400
    wait_until(lambda: over.guest.descriptors() <= before + 192, "end of the queries' sockets", 14)


def forbid_connecting(where: Namespace, address: str, version: int) -> None:
    """connect() of a UDP socket to the port fails: EACCES."""
    command = ["ip", f"-{version}", "rule"]
    where.run(*command, "add", "pref", "20", "lookup", "local")
    where.run(*command, "del", "pref", "0")
    where.run(*command, "add", "pref", "10", "to", address, "ipproto", "udp", "dport", str(SERVED), "prohibit")


def forbid_sending(where: Namespace, address: str, version: int) -> None:
    """Sending to it fails: EPERM."""
    need("nft", "nftables")
    rule = f"udp dport {SERVED} drop"
    where.run(
        "nft", "-f", "-",
        input=f"table inet forbid {{ chain out {{ type filter hook output priority 0; {rule}; }}; }}\n",
    )  # fmt: skip


@both_versions
@both_ways
@pytest.mark.parametrize("forbid", [forbid_connecting, forbid_sending], ids=["connect", "send"])
def test_U10_what_is_forbidden_stops_that_flow_alone_and_costs_no_cpu(
    pasta: Pasta, direction: str, version: int, forbid: Callable[[Namespace, str, int], None]
) -> None:
    over = way(pasta, direction, version, "-u" if direction == "in" else "-U", "8081:81")
    forbid(over.server, over.serve, version)
    denied_server = over.server.serve_udp(over.serve, lambda data, _: data, port=SERVED)
    over.server.serve_udp(over.serve, lambda data, _: data, port=81)
    with (
        over.connect(kind=socket.SOCK_DGRAM) as denied,
        over.client.connect(over.knock, 8081, kind=socket.SOCK_DGRAM) as other,
        nearly_idle(over.guest.pid),
    ):
        for number in range(60):
            denied.send(b"anybody?")
            other.send(b"%d" % number)
            assert other.recv(100) == b"%d" % number
            time.sleep(0.05)
    assert denied_server.peers == []


@both_ways
def test_U12_a_port_where_nobody_listens_costs_nothing(pasta: Pasta, direction: str) -> None:
    over = way(pasta, direction, 4)
    with over.connect(kind=socket.SOCK_DGRAM) as client:
        for _ in range(20):
            client.send(b"anybody?")
            time.sleep(0.01)
        assert_quiet(over.guest.pid, 2)


# Ports that forward themselves


def is_open(namespace: Namespace, address: str, port: int) -> bool:
    """Whether a connection is taken, whatever comes of it."""
    try:
        namespace.connect(address, port).close()
    except ConnectionResetError:
        return True
    except OSError:  # refused, or there is no way there yet
        return False
    return True


@both_versions
@both_ways
def test_L4_a_forward_follows_its_listener_within_two_seconds(pasta: Pasta, direction: str, version: int) -> None:
    guest = pasta.guest("--config-net")  # it is the default
    here, there = (pasta.topology.host, guest) if direction == "in" else (guest, pasta.topology.host)
    loopback = LOOPBACK[version]
    other = {4: LOOPBACK[6], 6: LOOPBACK[4]}[version]
    for _ in range(2):
        with TcpServer(there.listen(ANY[version], 7777), echo):
            wait_until(lambda: is_open(here, loopback, 7777), "a forward", 2)
            with here.connect(loopback, 7777) as client:
                client.sendall(b"found")
                assert receive(client, 5) == b"found"
            assert is_open(here, other, 7777) == (version == 6)  # a socket of :: takes both
        wait_until(lambda: not is_open(here, loopback, 7777), "the end of the forward", 2)


def test_L4_forwards_form_no_circle(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    listener = guest.listen("0.0.0.0", 7777)
    host = pasta.topology.host
    wait_until(lambda: is_open(host, "127.0.0.1", 7777), "a forward", 2)
    listener.close()
    # The forward on the host is no listener to be forwarded back: with its reason it goes for good
    wait_until(lambda: not is_open(host, "127.0.0.1", 7777), "the end of the forward", 2)
    wait_until(lambda: not is_open(guest, "127.0.0.1", 7777), "no forward in the namespace", 2)
    time.sleep(2.5)  # two more looks
    assert not is_open(host, "127.0.0.1", 7777)


def test_L4_what_the_kernel_hands_out_or_was_excluded_is_not_forwarded(pasta: Pasta) -> None:
    host = pasta.topology.host
    guest = pasta.guest("--config-net", "-t", "auto,~7778")
    for port in (40_000, 7778, 7777):
        guest.listen("0.0.0.0", port)
    guest.bind("0.0.0.0", 7779)  # of UDP, which TCP does not follow
    guest.bind("0.0.0.0", 40_001)
    wait_until(lambda: is_open(host, "127.0.0.1", 7777), "a forward", 2)
    wait_until(lambda: 7779 in udp_ports(host), "a forward of datagrams", 2)
    for port in (7778, 7779, 40_000):
        assert not is_open(host, "127.0.0.1", port)
    assert not {40_000, 40_001} & udp_ports(host)


def udp_ports(namespace: Namespace) -> set[int]:
    """Ports to which unconnected UDP sockets are bound."""
    lines = namespace.run("ss", "-Hlnu").stdout.splitlines()
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def test_L4_two_instances_do_not_keep_each_others_forwards_alive(pasta: Pasta) -> None:
    host = pasta.topology.host
    first, second = (pasta.guest("--config-net") for _ in range(2))
    listener, datagrams = first.listen("0.0.0.0", 7777), first.bind("0.0.0.0", 7779)
    with TcpServer(listener, echo):
        # From the first to the host, where it is a port like any other, and from there to the second
        wait_until(lambda: is_open(second, "127.0.0.1", 7777), "a forward in the other namespace", 4)
        wait_until(lambda: {7777, 7779} <= udp_ports(second), "a forward of datagrams there", 4)
        with second.connect("127.0.0.1", 7777) as client:
            client.sendall(b"found")
            assert receive(client, 5) == b"found"
    datagrams.close()
    for namespace in (host, second):
        wait_until(lambda: not is_open(namespace, "127.0.0.1", 7777), "the end of the forward", 3)
        wait_until(lambda: not {7777, 7779} & udp_ports(namespace), "the end of the forward", 3)
    time.sleep(2.5)  # two more looks
    for namespace in (host, first, second):
        assert not is_open(namespace, "127.0.0.1", 7777)
        assert not {7777, 7779} & udp_ports(namespace)


@both_ways
def test_beside_auto_a_list_says_which_ports_may_be_followed(pasta: Pasta, direction: str) -> None:
    option = {"in": "-t", "out": "-T"}[direction]
    guest = pasta.guest("--config-net", option, "8000-8010,9000:7777,auto")
    here, there = (pasta.topology.host, guest) if direction == "in" else (guest, pasta.topology.host)
    for port in (8005, 7777, 7778):
        there.serve_tcp(LOOPBACK[4] if direction == "out" else ANY[4], echo, port=port)
    wait_until(lambda: is_open(here, "127.0.0.1", 8005) and is_open(here, "127.0.0.1", 9000), "two forwards", 3)
    assert not any(is_open(here, "127.0.0.1", port) for port in (7777, 7778, 8000, 8004, 8006))


def test_L4_the_source_ports_of_flows_are_not_forwarded(pasta: Pasta) -> None:
    """A flow's socket keeps its peer's port: on the other side that port is bound, and by us."""
    guest = pasta.guest("--config-net", "-u", "auto", "-u", "8080:80", "-U", "auto", "-U", "8081:81")
    host = pasta.topology.host
    guest.serve_udp(HOST[4], lambda data, _: data, port=80)
    host.serve_udp("127.0.0.1", lambda data, _: data, port=81)
    for client, port, source in ((host, 8080, 4321), (guest, 8081, 4322)):
        with client.open_socket("127.0.0.1", socket.SOCK_DGRAM) as asking:
            asking.bind(("127.0.0.1", source))
            asking.connect(("127.0.0.1", port))
            asking.send(b"x")
            assert asking.recv(10) == b"x"
    guest.bind("0.0.0.0", 7779)
    wait_until(lambda: 7779 in udp_ports(host), "a forward of something else", 3)
    for namespace in (host, guest):
        assert not {4321, 4322} & udp_ports(namespace)


def test_L4_datagrams_find_their_ports_too(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    host = pasta.topology.host
    guest.serve_udp("0.0.0.0", lambda data, _: data, port=7777)
    host.serve_udp("127.0.0.1", lambda data, _: data, port=7778)

    def answered(namespace: Namespace, port: int) -> bool:
        with namespace.connect("127.0.0.1", port, kind=socket.SOCK_DGRAM, timeout=0.2) as client:
            try:
                client.send(b"there?")
                return client.recv(10) == b"there?"
            except (ConnectionRefusedError, TimeoutError):
                return False

    wait_until(lambda: answered(host, 7777), "a forward", 2)
    wait_until(lambda: answered(guest, 7778), "a forward", 2)


def test_L4_a_port_that_somebody_has_is_had_when_it_is_free(pasta: Pasta) -> None:
    host = pasta.topology.host
    taken = host.listen("0.0.0.0", 7777)
    guest = pasta.guest("--config-net", "-T", "none")
    guest.serve_tcp("0.0.0.0", lambda connection: connection.sendall(b"guest"), port=7777)
    guest.serve_tcp("0.0.0.0", echo, port=7778)
    wait_until(lambda: is_open(host, "127.0.0.1", 7778), "another forward", 2)
    taken.close()
    wait_until(lambda: is_open(host, "127.0.0.1", 7777), "the forward", 2)
    with host.connect("127.0.0.1", 7777) as connection:
        assert receive(connection) == b"guest"


# Safety


@both_versions
@pytest.mark.parametrize("closed", [
    ("--no-map-gw",),
    ("--map-host-loopback", "none"),
    ("--map-host-loopback", "none", "--map-guest-addr", "none"),
    ("--no-map-gw", "--map-guest-addr", "{mapped}"),  # that leads to the host, not to its loopback
], ids=" ".join)  # fmt: skip
def test_L18_without_the_bypass_and_the_gateway_no_way_leads_to_the_loopback_of_the_host(
    pasta: Pasta, version: int, closed: tuple[str, ...]
) -> None:
    host = pasta.topology.host
    for address in (LOOPBACK[version], ANY[version]):
        with contextlib.suppress(OSError):
            host.serve_tcp(address, echo, port=7777)
    got = host.serve_udp(LOOPBACK[version], lambda data, _: data, port=7777)
    taken: list[bool] = []
    for address in (LOOPBACK[version], ANY[version]):
        with contextlib.suppress(OSError):
            host.serve_tcp(address, lambda _: taken.append(True), port=7778)
    options = [option.format(mapped=MAPPED[version]) for option in closed]
    guest = pasta.guest("--config-net", *options, "-T", "none", "-U", "none")
    gateway = {4: GATEWAY4, 6: GATEWAY6}
    time.sleep(1.2)  # a look for ports later
    for address in (LOOPBACK[version], HOST[version], gateway[version], MAPPED[version]):
        with pytest.raises(OSError, match=r"refused|timed out|unreachable"):
            guest.connect(address, 7777, timeout=2).close()
        with guest.connect(address, 7777, kind=socket.SOCK_DGRAM, timeout=0.3) as client, contextlib.suppress(OSError):
            client.send(b"anybody?")
            assert client.recv(10) == b""
    # And whoever is root there writes frames of its own
    guest.inside(lambda: send_frames(to_loopbacks(version, 7777, 7778)))
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    with guest.connect(SERVER[version], server.port) as connection:  # behind them
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
    assert got.peers == []
    assert taken == []


def to_loopbacks(version: int, udp: int, tcp: int) -> list[bytes]:
    """Frames to every address that could mean the host's loopback: a datagram and a SYN each."""
    if version == 4:
        targets = ("127.0.0.1", "127.255.255.254", "0.0.0.0", GATEWAY4, MAPPED[4])
        heads = [IP(src=HOST[4], dst=to) for to in targets]
    else:
        mapped = ("::1", "::", "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0.0.0.0", "64:ff9b::127.0.0.1", GATEWAY6)
        heads = [IPv6(src=HOST[6], dst=to) for to in (*mapped, MAPPED[6], "fe80::1", "fe80::9855:9aff:fe55:9a55")]
    ether = Ether(src="02:00:00:00:00:99", dst="9a:55:9a:55:9a:55")
    return [
        bytes(ether / head / payload)
        for head in heads
        for payload in (UDP(sport=5555, dport=udp) / b"anybody?", TCP(sport=5555, dport=tcp, flags="S", seq=1))
    ]


def send_frames(frames: list[bytes]) -> None:
    """Send on the interface of the guest that this runs in."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("host0", 0))
        for frame in frames:
            raw.send(frame)


def maker_of(guest: Guest) -> int:
    """The process that makes sockets in the guest's namespace: a pasta there that is nobody's child."""
    inside = os.readlink(f"/proc/{guest.holder}/ns/net")
    parents = {}
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns/net") == inside:
                status = (entry / "status").read_text()
                parents[int(entry.name)] = int(status.partition("PPid:")[2].split()[0])
    found = [pid for pid, parent in parents.items() if parent != guest.pid and parent not in parents]
    assert len(found) == 1
    return found[0]


@only_unprivileged
def test_without_the_process_in_the_namespace_everything_else_goes_on(pasta: Pasta) -> None:
    over = way(pasta, "in", 4)
    over.server.serve_tcp(over.serve, echo, port=SERVED)
    server = pasta.topology.server.serve_tcp(SERVER[4], echo)

    with over.connect() as connection:
        connection.sendall(b"before")
        assert receive(connection, 6) == b"before"
        os.kill(maker_of(over.guest), signal.SIGKILL)
        wait_until(lambda: any("process that makes sockets" in line for line in over.guest.output), "a warning")
        connection.sendall(b"after")
        assert receive(connection, 5) == b"after"
    for connect in (
        lambda: over.guest.connect(SERVER[4], server.port),
        lambda: pasta.topology.server.connect(HOST[4], PORT),
    ):
        with connect() as connection:
            connection.sendall(b"x")
            assert connection.recv(1) == b"x"
    wait_until(lambda: not is_served(over), "the end of what was in the pool", 5)
    assert_quiet(over.guest.pid, 1)


@only_unprivileged
def test_a_process_in_the_namespace_that_stands_still_holds_nothing_up(pasta: Pasta) -> None:
    over = way(pasta, "in", 4)
    over.server.serve_tcp(over.serve, echo, port=SERVED)
    server = pasta.topology.server.serve_tcp(SERVER[4], echo)
    maker = maker_of(over.guest)
    os.kill(maker, signal.SIGSTOP)
    try:
        assert not any(is_served(over) for _ in range(100))

        def other() -> None:
            with over.guest.connect(SERVER[4], server.port) as connection:
                connection.sendall(b"x")
                assert connection.recv(1) == b"x"

        assert elapsed(other)[1] < 2
        assert_quiet(over.guest.pid, 1)
    finally:
        os.kill(maker, signal.SIGCONT)
    wait_until(lambda: is_served(over), "service again", 5)
