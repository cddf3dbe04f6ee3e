"""What a guest, or a peer at a forward, can use up, and what gives way: traces over the whole packet path."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.wire import arp, icmp, ipv4, tcp, udp
from bucatini.wire.ethernet import BROADCAST, ETHERTYPE_ARP, ETHERTYPE_IPV4, Ethernet
from unit.datapath.guest_link import GUEST, GUEST_MAC, HOST, Link, count, wait

RANGE = Path("/proc/sys/net/ipv4/ping_group_range")
FLOWS = 64
HALF_OPEN = FLOWS // 8
SYN_ACK = tcp.SYN | tcp.ACK


@pytest.fixture
def link() -> Iterator[Link]:
    link = Link(flows=FLOWS)
    yield link
    link.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=128) as server:
        server.settimeout(5)
        yield server


@pytest.fixture
def hole() -> Iterator[int]:
    """A port whose connections are never answered: its queue is full, the kernel drops further SYNs."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):
            sock = stack.enter_context(socket.socket())
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        yield full.getsockname()[1]


def establish(link: Link, server: socket.socket, sport: int) -> tuple[socket.socket, int]:
    """A connection of the guest; the server's end, and our next sequence number."""
    port = server.getsockname()[1]
    link.segment(sport, port, tcp.SYN, 1000)
    answer = link.receive_segment()
    assert (answer.flags, answer.dport) == (SYN_ACK, sport)
    link.segment(sport, port, tcp.ACK, 1001, answer.seq + 1)
    peer, _ = server.accept()
    peer.settimeout(5)
    return peer, answer.seq + 1


def works(link: Link, peer: socket.socket, sport: int, ours: int, port: int) -> None:
    """The guest's byte arrives at the server's end of a connection."""
    link.segment(sport, port, tcp.ACK | tcp.PSH, 1001, ours, b"x")
    assert peer.recv(2) == b"x"


# Connections that are not established


def test_of_connects_that_nobody_answers_the_oldest_give_way_without_a_word(
    link: Link, server: socket.socket, hole: int
) -> None:
    told: list[str] = []
    link.path.tell_notices(told.append)
    port = server.getsockname()[1]
    peer, ours = establish(link, server, 40000)
    with peer:
        for sport in range(50000, 50000 + 3 * HALF_OPEN):
            link.segment(sport, hole, tcp.SYN, 1)
        wait(lambda: count(link, "tcp_opened_guest") == 1 + 3 * HALF_OPEN)
        assert count(link, "tcp_half_open_evicted") == 2 * HALF_OPEN
        assert link.path.flows == 1 + HALF_OPEN
        assert told == ["half-open"]
        # Nothing was sent to the guest meanwhile: what comes next is about the established one, then a new one
        works(link, peer, 40000, ours, port)
        assert link.receive_segment().ack == 1002
        establish(link, server, 40001)[0].close()
        # One that was given up and asks again starts anew, and is one of those now
        link.segment(50000, hole, tcp.SYN, 1)
        wait(lambda: count(link, "tcp_half_open_evicted") == 2 * HALF_OPEN + 1)
        assert count(link, "flow_refused") == 0
    assert told == ["half-open"]


def test_a_guest_that_never_confirms_its_connections_keeps_an_eighth_of_the_table(
    link: Link, server: socket.socket
) -> None:
    port = server.getsockname()[1]
    peers = []
    for sport in range(50000, 50000 + 2 * HALF_OPEN):
        link.segment(sport, port, tcp.SYN, 1)
        assert link.receive_segment().flags == SYN_ACK
        peers.append(server.accept()[0])
    assert link.path.flows == HALF_OPEN
    for peer in peers[:HALF_OPEN]:
        peer.settimeout(5)
        with peer, pytest.raises(ConnectionResetError):
            peer.recv(1)
    # What comes for one of those after all is answered with RST
    link.segment(50000, port, tcp.ACK, 2, 77)
    refusal = link.receive_segment()
    assert (refusal.flags, refusal.dport, refusal.seq) == (tcp.RST, 50000, 77)
    for peer in peers[HALF_OPEN:]:
        peer.close()


def test_connections_at_a_forward_that_the_guest_does_not_answer_take_nothing_from_it(
    server: socket.socket, hole: int
) -> None:
    forward = socket.create_server(("127.0.0.1", 0), backlog=128)
    address = forward.getsockname()
    forward.setblocking(False)
    link = Link(flows=FLOWS)
    try:
        link.path.add_listener(forward.detach(), 6, 4, address[1], 80)
        port = server.getsockname()[1]
        peer, ours = establish(link, server, 40000)
        link.segment(50000, hole, tcp.SYN, 1)  # one of the guest's that waits too
        clients = [socket.create_connection(address, 5) for _ in range(3 * HALF_OPEN)]
        wait(lambda: count(link, "tcp_opened_host") == 3 * HALF_OPEN)
        assert count(link, "tcp_half_open_evicted") == 2 * HALF_OPEN
        assert link.path.flows == 2 + HALF_OPEN
        for client in clients[: 2 * HALF_OPEN]:
            with client, pytest.raises(ConnectionResetError):
                client.recv(1)
        syns = [link.receive_segment() for _ in clients]
        assert {segment.flags for segment in syns} == {tcp.SYN}
        # The youngest is answered now, and served
        link.segment(80, syns[-1].sport, SYN_ACK, 500, syns[-1].seq + 1)
        assert link.receive_segment().ack == 501
        link.segment(80, syns[-1].sport, tcp.ACK | tcp.PSH, 501, syns[-1].seq + 1, b"served")
        assert clients[-1].recv(10) == b"served"
        with peer:
            works(link, peer, 40000, ours, port)
        for client in clients[2 * HALF_OPEN :]:
            client.close()
    finally:
        link.close()


def knock(address: tuple[str, int]) -> None:
    with socket.create_connection(address, 5) as connection:
        connection.recv(1)


def test_connections_at_a_forward_leave_an_eighth_of_the_table_to_the_guest(server: socket.socket) -> None:
    forward = socket.create_server(("127.0.0.1", 0), backlog=128)
    address = forward.getsockname()
    forward.setblocking(False)
    link = Link(flows=FLOWS)
    clients: list[socket.socket] = []
    try:
        link.path.guest_mac(GUEST_MAC)
        link.path.add_listener(forward.detach(), 6, 4, address[1], 80)

        def come() -> tcp.Tcp:
            clients.append(socket.create_connection(address, 5))
            syn = link.receive_segment()
            assert syn.flags == tcp.SYN
            link.segment(80, syn.sport, SYN_ACK, 500, syn.seq + 1)
            assert link.receive_segment().ack == 501
            return syn

        syns = [come() for _ in range(FLOWS - HALF_OPEN)]
        with pytest.raises(ConnectionResetError):
            knock(address)
        assert count(link, "flow_refused") == 1
        establish(link, server, 40000)[0].close()
        while link.receive_segment().dport != 40000:  # its end
            pass
        # One of them ends: there is room for another
        link.segment(80, syns[0].sport, tcp.RST, 501)
        wait(lambda: count(link, "tcp_reset_by_guest") == 1)
        come()
    finally:
        for client in clients:
            client.close()
        link.close()


def test_a_full_table_lets_half_open_and_silent_flows_give_way_to_new_ones(
    link: Link, server: socket.socket, hole: int
) -> None:
    told: list[str] = []
    link.path.tell_notices(told.append)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(5)
        half = FLOWS // 2
        for sport in (*range(6000, 6000 + half), *range(6000, 6000 + half)):
            link.send(17, udp.Udp(sport, sink.getsockname()[1], b"?").emit(GUEST, HOST))
            sink.recv(1)
        peers = [establish(link, server, 41000 + number)[0] for number in range(half - 1)]
        link.segment(50000, hole, tcp.SYN, 1)
        wait(lambda: link.path.flows == FLOWS)
        peers.append(establish(link, server, 40000)[0])  # the connect that waits goes
        assert count(link, "tcp_half_open_evicted") == 1
        assert told == ["flows"]
        link.segment(40001, server.getsockname()[1], tcp.SYN, 7)  # no flow is silent yet
        assert link.receive_segment().flags == tcp.RST | tcp.ACK
        time.sleep(1.1)  # a second of silence
        peers.append(establish(link, server, 40001)[0])
        assert count(link, "udp_evicted") == 1
        assert count(link, "flow_refused") == 1
        for peer in peers:
            peer.close()
    assert told == ["flows"]


def test_a_sweep_over_source_ports_pushes_out_its_own_and_neither_connects_nor_pings(
    link: Link, server: socket.socket, hole: int
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
        sink.bind(("127.0.0.1", 0))
        sink.settimeout(5)
        port = sink.getsockname()[1]
        link.segment(50000, hole, tcp.SYN, 1)
        for _ in range(2):  # a flow in use
            link.send(17, udp.Udp(5999, port, b"?").emit(GUEST, HOST))
            sink.recv(1)
        for sport in range(6000, 6000 + 5 * FLOWS):
            link.send(17, udp.Udp(sport, port, b"?").emit(GUEST, HOST))
            sink.recv(1)
        assert link.path.flows == 1 + FLOWS // 2
        assert count(link, "udp_evicted") == 5 * FLOWS + 1 - FLOWS // 2
        establish(link, server, 40000)[0].close()
        assert count(link, "tcp_half_open_evicted") == count(link, "flow_refused") == 0
        opened = count(link, "udp_flows")
        link.send(17, udp.Udp(5999, port, b"?").emit(GUEST, HOST))
        sink.recv(1)
        assert count(link, "udp_flows") == opened


def may_ping() -> bool:
    with contextlib.suppress(PermissionError):
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()
        return True
    return False


@pytest.fixture
def pings() -> Iterator[None]:
    """Echo requests may be sent: where the machine forbids it, root allows it for the test."""
    if may_ping():
        yield
        return
    if os.geteuid():
        pytest.skip(f"{RANGE} allows no ping sockets")
    former = RANGE.read_text()
    RANGE.write_text("0 2147483647")
    yield
    RANGE.write_text(former)


def test_of_pings_the_oldest_give_way(link: Link, pings: None) -> None:
    for number in range(1000, 1000 + 3 * HALF_OPEN):
        link.send(1, icmp.Icmp(icmp.ECHO_REQUEST, 0, number << 16 | 1, b"ping").emit())
        assert link.receive().protocol == 1
    assert link.path.flows == HALF_OPEN
    assert count(link, "ping_evicted") == 2 * HALF_OPEN


# Acknowledgements and windows


def test_a_storm_of_acknowledgements_sends_nothing_more_than_once(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    peer, ours = establish(link, server, 40000)
    with peer:
        data = bytes(20_000)
        peer.sendall(data)
        got = frames = 0
        while got < len(data):
            got += len(link.receive_segment().payload)
            frames += 1
        for _ in range(10_000):
            link.segment(40000, port, tcp.ACK, 1001, ours)
        # Three duplicates say that something was lost, and without SACK not what: all is sent again, once
        peer2, _ = establish_beside(link, server, 40001)
        peer2.close()
        assert count(link, "tcp_fast_retransmit") == 1
        # (what a timeout sends again comes on top: nothing is ever acknowledged here)
        assert count(link, "frames_out") <= 4 + frames * (2 + count(link, "tcp_retransmit"))


def establish_beside(link: Link, server: socket.socket, sport: int) -> tuple[socket.socket, int]:
    """As `establish`, while segments of another connection come too."""
    port = server.getsockname()[1]
    link.segment(sport, port, tcp.SYN, 1000)
    while (answer := link.receive_segment()).dport != sport:
        pass
    link.segment(sport, port, tcp.ACK, 1001, answer.seq + 1)
    peer, _ = server.accept()
    return peer, answer.seq + 1


def test_a_window_of_one_byte_gets_one_byte_for_each_acknowledgement(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    link.segment(40000, port, tcp.SYN, 1000)
    ours = link.receive_segment().seq + 1

    def acknowledge(number: int) -> None:
        link.send(6, tcp.Tcp(40000, port, 1001, number, tcp.ACK, 1).emit(GUEST, HOST))

    acknowledge(ours)
    peer, _ = server.accept()
    with peer:
        peer.sendall(bytes(100_000))
        for number in range(200):
            segment = link.receive_segment()
            assert (segment.seq, len(segment.payload)) == (ours + number, 1)
            acknowledge(ours + number + 1)
        assert count(link, "frames_out") <= 203


# The slow path


def arp_request(target: bytes) -> bytes:
    request = arp.Arp(arp.REQUEST, GUEST_MAC, GUEST, bytes(6), target)
    return Ethernet(BROADCAST, GUEST_MAC, ETHERTYPE_ARP, request.emit()).emit()


def dhcp_frame(size: int = 300) -> bytes:
    packet = ipv4.IPv4(bytes(4), b"\xff" * 4, 17, udp.Udp(68, 67, bytes(size)).emit(bytes(4), b"\xff" * 4))
    return Ethernet(BROADCAST, GUEST_MAC, ETHERTYPE_IPV4, packet.emit()).emit()


class Slow:
    """A slow path that takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.frames: list[bytes] = []
        self.failure: BaseException | None = None
        self.at: int | None = None
        self.timeouts = 0

    def on_frame(self, frame: bytes, now: int) -> list[bytes]:
        self.frames.append(frame)
        if self.failure is not None:
            raise self.failure
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            pass
        return []

    def next_timeout(self) -> int | None:
        return self.at

    def on_timeout(self, now: int) -> list[bytes]:
        self.timeouts += 1
        if self.failure is not None:
            raise self.failure
        self.at = None
        return []


def test_a_storm_for_the_slow_path_gets_its_share_of_time_and_other_kinds_theirs(server: socket.socket) -> None:
    slow = Slow(seconds=0.0005)
    link = Link(slow=slow, flows=FLOWS)
    try:
        begin = time.monotonic()
        for _ in range(2000):
            link.send_frame(arp_request(HOST))
        establish(link, server, 40000)[0].close()  # all of them are through
        took = time.monotonic() - begin
        served = len(slow.frames)
        assert served + count(link, "drop_slow_budget") == 2000
        # 50 ms at once, then a twentieth of the time; a frame is charged up to 1 ms
        assert 50 <= served <= 110 + took / 20 / 0.0005
        link.send_frame(dhcp_frame())
        wait(lambda: len(slow.frames) == served + 1)
        # The debt is paid off after a while
        time.sleep(0.1)
        link.send_frame(arp_request(HOST))
        wait(lambda: len(slow.frames) == served + 2)
    finally:
        link.close()


def test_a_frame_longer_than_any_message_of_the_services_does_not_reach_them(server: socket.socket) -> None:
    slow = Slow()
    link = Link(slow=slow, flows=FLOWS)
    try:
        link.send_frame(dhcp_frame(60_000))
        link.send_frame(dhcp_frame(1400))
        wait(lambda: len(slow.frames) == 1)
        assert len(slow.frames[0]) < 1500
        assert count(link, "drop_slow") == 1
    finally:
        link.close()


@pytest.mark.parametrize(
    "kind", [ValueError, MemoryError, RecursionError, KeyboardInterrupt, SystemExit, GeneratorExit, BaseException]
)
def test_whatever_the_slow_path_raises_costs_that_frame(server: socket.socket, kind: type[BaseException]) -> None:
    slow = Slow()
    slow.failure = kind()
    link = Link(slow=slow, flows=FLOWS)
    try:
        for _ in range(3):
            link.send_frame(arp_request(HOST))
        establish(link, server, 40000)[0].close()
        assert count(link, "slow_errors") == count(link, "slow_in") == 3
        assert len(slow.frames) == 3
        slow.failure = None
        link.send_frame(arp_request(HOST))
        wait(lambda: len(slow.frames) == 4)
        assert count(link, "slow_errors") == 3
    finally:
        link.close()


def test_a_timer_that_fails_is_tried_again_and_does_not_spin() -> None:
    slow = Slow()
    slow.at = 1  # due
    slow.failure = RecursionError()
    link = Link(slow=slow, flows=FLOWS)
    try:
        wait(lambda: count(link, "slow_errors") > 0)
        time.sleep(0.3)
        assert slow.timeouts == 1
        slow.failure = None
        wait(lambda: slow.timeouts == 2, 3)
        assert count(link, "slow_errors") == 1
    finally:
        link.close()


def test_a_callback_that_fails_costs_the_call(server: socket.socket) -> None:
    link = Link(flows=FLOWS)
    ours, theirs = socket.socketpair()
    calls: list[bytes] = []
    try:

        def readable() -> None:
            calls.append(ours.recv(10))
            raise KeyboardInterrupt

        link.path.watch(ours.fileno(), readable)
        theirs.send(b"1")
        wait(lambda: calls == [b"1"])
        establish(link, server, 40000)[0].close()
        assert count(link, "slow_errors") == 1
    finally:
        link.close()
        ours.close()
        theirs.close()


# Fragments


def test_a_datagram_in_fragments_gets_through_a_flood_of_first_fragments(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        body = bytes(range(256)) * 12
        datagram = udp.Udp(5000, sock.getsockname()[1], body).emit(GUEST, HOST)
        for number in range(500):
            link.send(17, bytes(1480), identification=1000 + number, more_fragments=True)
            if number == 250:
                link.send(17, datagram[:1480], identification=9, more_fragments=True)
            if number == 260:  # ten strangers came between its parts: there is room for 32
                link.send(17, datagram[1480:2960], identification=9, offset=1480, more_fragments=True)
                link.send(17, datagram[2960:], identification=9, offset=2960)
        assert sock.recv(10000) == body
        wait(lambda: count(link, "fragments_in") == 503)
        assert count(link, "drop_fragment_budget") == 500 - 32


# The turn


def test_timers_that_are_due_at_once_all_fire(server: socket.socket) -> None:
    """They do so in portions (`TIMERS`), and no portion waits for an event."""
    link = Link(flows=8192)
    try:
        port = server.getsockname()[1]
        for sport in range(50000, 50100):
            link.segment(sport, port, tcp.SYN, 1)
        first = [link.receive_segment() for _ in range(100)]
        again = [link.receive_segment() for _ in range(100)]  # after a second, since nobody has confirmed them
        assert {(segment.flags, segment.dport) for segment in again} == {(SYN_ACK, segment.dport) for segment in first}
    finally:
        link.close()
