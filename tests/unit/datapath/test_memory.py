"""What the packet path needs is there when it starts: packets, flows and floods allocate nothing and touch nothing new.

The packet path runs in a process of its own (`memory_subject.py`) and tells what malloc has given out and how many
page faults it had. Tables are mapped at the start and pages come when they are first used; so everything is done once
before, for as many flows as there may be, and then a million packets must change nothing. The first test floods; the
second has every kind of traffic there is (`memory_traffic.py`), over every kind of link.

What the kernel needs for sockets and pipes is its own and not seen here. Nor is what a page of a table costs the first
time: a port of UDP (`Udp.held`, 2,048 to a page), a bucket of the flow table. All of it is mapped, so it has a bound.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bucatini.wire import arp, ipv4, tcp, udp
from bucatini.wire.ethernet import BROADCAST, ETHERTYPE_ARP, Ethernet
from unit.datapath.guest_link import GUEST, GUEST_MAC, HOST, OUR_MAC
from unit.datapath.memory_guest import NO_OFFLOAD, Subject

FLOWS = 2048
STORM = 60_000  # quick as it is, one after the other they take more than their share of the time
FLOOD = STORM + 9 * FLOWS
PACKETS = int(os.environ.get("BUCATINI_PACKETS", "1000000"))
ROUNDS = 20
TRAFFIC = Path(__file__).with_name("memory_traffic.py")


@pytest.fixture
def subject() -> Iterator[Subject]:
    made = Subject(flows=FLOWS)
    yield made
    made.close()


def segment(
    subject: Subject, sport: int, dport: int, flags: int, seq: int, ack: int = 0, payload: bytes = b""
) -> bytes:
    return subject.frame(6, tcp.Tcp(sport, dport, seq, ack, flags, 65535, payload).emit(GUEST, HOST))


def syn_ack(subject: Subject) -> int:
    """Skip what else has come; our next sequence number."""
    while True:
        answer = tcp.Tcp.parse(subject.receive(4, ipv4.PROTOCOL_TCP))
        if answer.flags == tcp.SYN | tcp.ACK:
            return answer.seq + 1


@pytest.fixture
def servers() -> Iterator[tuple[int, int, int]]:
    """Ports: TCP that is served by nobody, one whose queue is full, UDP."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind(("127.0.0.1", 0))
        yield server.getsockname()[1], full.getsockname()[1], sink.getsockname()[1]


def storm() -> bytes:
    """What Python answers."""
    request = arp.Arp(arp.REQUEST, GUEST_MAC, GUEST, bytes(6), HOST).emit()
    return NO_OFFLOAD + Ethernet(BROADCAST, GUEST_MAC, ETHERTYPE_ARP, request).emit()


def mixture(subject: Subject, port: int, sink: int, ours: int) -> list[bytes]:
    """Packets of every kind: of flows that are there, and such that are dropped."""
    good = udp.Udp(5000, sink, bytes(100)).emit(GUEST, HOST)
    return [
        subject.frame(17, good),
        subject.frame(17, udp.Udp(5000, sink, bytes(1400)).emit(GUEST, HOST)),
        segment(subject, 40000, port, tcp.ACK, 1001, ours),
        segment(subject, 40000, port, tcp.ACK, 900, ours, b"again"),
        segment(subject, 40000, port, tcp.ACK, 1003, ours, b"out of order"),
        segment(subject, 41000, port, tcp.ACK, 7, 7, b"unknown"),
        subject.frame(17, good[:-1]),
        subject.frame(17, good[:6] + b"\1\1" + good[8:]),
        subject.frame(99, good),
        subject.frame(17, bytes(64), identification=1, offset=8, more_fragments=True),
        storm(),
        NO_OFFLOAD + Ethernet(OUR_MAC, GUEST_MAC, 0x88CC, bytes(46)).emit(),
        bytes(len(NO_OFFLOAD) + 13),
    ]


def floods(subject: Subject, full: int, sink: int) -> None:
    """Storms and new flows without end (connects that nobody answers, source ports, fragments): more than has room."""
    send = subject.end.send
    request = storm()
    for _ in range(STORM):
        send(request)
    for sport in range(10000, 10000 + 3 * FLOWS):
        send(segment(subject, sport, full, tcp.SYN, 1))
        send(subject.frame(17, udp.Udp(sport, sink, b"?").emit(GUEST, HOST)))
        send(subject.frame(17, bytes(1480), identification=sport & 0xFFFF, more_fragments=True))


@pytest.mark.release  # the sanitizers have an allocator and page faults of their own
@pytest.mark.timeout(120)
def test_a_million_packets_and_floods_of_flows_allocate_nothing(
    subject: Subject, servers: tuple[int, int, int], record_property: Callable[[str, object], None]
) -> None:
    port, full, sink = servers
    send = subject.end.send
    send(segment(subject, 40000, port, tcp.SYN, 1000))
    ours = syn_ack(subject)
    send(segment(subject, 40000, port, tcp.ACK, 1001, ours))
    packets = mixture(subject, port, sink, ours)
    # Everything once: the whole table, every kind of packet; nobody reads the answers, so that those are dropped too
    floods(subject, full, sink)
    for number in range(PACKETS // 10):
        send(packets[number % len(packets)])
    taken = 2 + PACKETS // 10 + FLOOD
    subject.measure_when(taken)
    subject.drain()
    for _ in range(5):  # the first ones fill caches of Python's, which what was asked before leaves as they are
        before = subject.measure_when(taken)
    begin = time.monotonic()
    floods(subject, full, sink)
    for number in range(PACKETS):
        send(packets[number % len(packets)])
    expected = before["frames_in"] + PACKETS + FLOOD
    after = subject.measure_when(expected)
    took = time.monotonic() - begin
    moved = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    record_property("figures", moved | {"seconds": round(took, 2)})
    assert after["frames_in"] == expected
    for name in ("tcp_half_open_evicted", "udp_evicted", "drop_fragment_budget", "drop_slow_budget", "tcp_duplicate"):
        assert moved.get(name, 0) > 0, name
    assert moved.get("malloc", 0) == 0
    assert moved.get("major", 0) == 0
    assert moved.get("minor", 0) == 0


@pytest.mark.release
@pytest.mark.parametrize("link", ["tap", "tap-reread", "tap-capture", "stream", "stream-capture"])
def test_no_kind_of_traffic_allocates_anything(link: str, record_property: Callable[[str, object], None]) -> None:
    command = ["unshare", "--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"]
    done = subprocess.run(
        [*command, sys.executable, str(TRAFFIC), link, str(ROUNDS)], check=True, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TRAFFIC.parents[2]), *sys.path])}, timeout=100,
    )  # fmt: skip
    moved = json.loads(done.stdout)
    record_property("figures", moved)
    # It was all there: in both versions, and each connection a stalled reader and a loss in every round
    assert moved["frames_in"] > 300 * ROUNDS
    assert moved["tcp_overflow"] > 4 * ROUNDS
    assert moved["tcp_fast_retransmit"] == 4 * ROUNDS
    assert moved["tcp_out_of_order"] == 16 * ROUNDS
    assert moved["tcp_opened_guest"] == moved["tcp_opened_host"] == 16 * ROUNDS
    assert moved["splice_closed"] == 4 * ROUNDS
    assert moved["splice_bytes"] > ROUNDS << 20
    assert moved["udp_errors"] == 2 * ROUNDS
    assert not {name for name in moved if name.startswith(("drop_", "slow_"))} | moved.keys() & {
        "flows",
        "flow_refused",
    }
    # And it has cost nothing
    assert moved.get("malloc", 0) == 0
    assert moved.get("major", 0) == 0
    assert moved.get("minor", 0) == 0
