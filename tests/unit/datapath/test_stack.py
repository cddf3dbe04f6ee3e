"""Against a guest that is not Linux: segments made one by one, as odd stacks make them, with real sockets behind."""

import contextlib
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bucatini.wire import tcp
from bucatini.wire.tcp import ACK, FIN, PSH, RST, SYN, URG, Tcp
from unit.datapath.guest_link import GUEST, GUEST_MAC, HOST, Link, mapped

SPORT = 40000
ISS = 0xFFFFFFF0  # of the guest: wraps at once
MSS_536 = ((tcp.OPTION_MSS, (536).to_bytes(2, "big")),)
SACK_PERMITTED = ((tcp.OPTION_SACK_PERMITTED, b""),)


class Stack(NamedTuple):
    """A connection of the guest's, whose numbers count from the first byte after SYN."""

    link: Link
    peer: socket.socket  # the server's end
    port: int
    theirs: int  # initial number of the other end
    syn_ack: Tcp

    def send(
        self, flags: int, seq: int, ack: int = 0, payload: bytes = b"", window: int = 65535, urgent: int = 0
    ) -> None:
        number = (ISS + 1 + seq) & 0xFFFFFFFF
        segment = Tcp(SPORT, self.port, number, (self.theirs + 1 + ack) & 0xFFFFFFFF, flags, window, payload, urgent)
        self.link.send(6, segment.emit(GUEST, HOST))

    def receive(self) -> tuple[int, int, int, bytes]:
        """Flags, number, acknowledgement, payload."""
        segment = self.link.receive_segment()
        seq, ack = segment.seq - self.theirs - 1, segment.ack - ISS - 1
        return segment.flags, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, segment.payload

    def acknowledged(self) -> int:
        """What the next segment acknowledges."""
        return self.receive()[2]


@contextlib.contextmanager
def connected(
    options: tuple[tuple[int, bytes], ...] = (), *, window: int = 65535, receive_buffer: int = 0
) -> Iterator[Stack]:
    link = Link()
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            if receive_buffer:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            port = server.getsockname()[1]
            link.send(6, Tcp(SPORT, port, ISS, 0, SYN, window, options=options).emit(GUEST, HOST))
            syn_ack = link.receive_segment()
            peer, _ = server.accept()
            peer.settimeout(5)
            with peer:
                stack = Stack(link, peer, port, syn_ack.seq, syn_ack)
                stack.send(ACK, 0, window=window)
                yield stack
    finally:
        link.close()


def everything(peer: socket.socket) -> bytes:
    data = b""
    while piece := peer.recv(65536):
        data += piece
    return data


def test_a_stack_without_options_gets_small_segments() -> None:
    with connected() as stack:
        assert [kind for kind, _ in stack.syn_ack.options] == [tcp.OPTION_MSS]
        stack.peer.sendall(bytes(2000))
        sizes = []
        while sum(sizes) < 2000:
            _, seq, _, payload = stack.receive()
            assert seq == sum(sizes)
            sizes.append(len(payload))
        assert max(sizes) <= 536  # RFC 9293 §3.7.1


def test_T24_segments_in_any_order_are_put_together() -> None:
    with connected(SACK_PERMITTED) as stack:
        data = bytes(range(250)) * 4
        for start in (750, 250, 500):
            stack.send(ACK | PSH, start, payload=data[start : start + 250])
            segment = stack.link.receive_segment()
            assert segment.ack == (ISS + 1) & 0xFFFFFFFF
            blocks = segment.option(tcp.OPTION_SACK)
            assert blocks is not None
            assert int.from_bytes(blocks[:4], "big") <= ((ISS + 1 + start) & 0xFFFFFFFF)
        stack.send(ACK | PSH, 0, payload=data[:250])
        assert stack.acknowledged() == 1000
        stack.send(ACK | FIN, 1000)
        assert everything(stack.peer) == data


def test_segments_that_overlap_and_repeat_give_the_bytes_once() -> None:
    with connected() as stack:
        data = bytes(range(200)) * 3
        for start, end in ((0, 100), (50, 150), (100, 101), (300, 400), (140, 320), (0, 400), (380, 600), (599, 600)):
            stack.send(ACK | PSH, start, payload=data[start:end])
        stack.send(ACK | FIN, 600)
        assert everything(stack.peer) == data


def test_empty_segments_say_nothing() -> None:
    with connected() as stack:
        for _ in range(5):
            stack.send(ACK, 0)
        stack.send(ACK | PSH, 0, payload=b"x")
        assert stack.peer.recv(10) == b"x"


def test_simultaneous_close() -> None:
    with connected() as stack:
        stack.peer.shutdown(socket.SHUT_WR)
        flags, seq, _, _ = stack.receive()
        assert flags & FIN
        assert seq == 0
        # The guest's FIN crosses ours: it does not acknowledge it
        stack.send(ACK | FIN, 0, 0)
        assert stack.acknowledged() == 1
        stack.send(ACK, 1, 1)
        assert stack.peer.recv(10) == b""


@contextlib.contextmanager
def crossing() -> Iterator[tuple[Stack, socket.socket]]:
    """A client has connected to a forward of port SPORT, and its SYN is at the guest; and the client's socket."""
    link = Link()
    try:
        server = socket.create_server(("127.0.0.1", 0))
        server.setblocking(False)
        address = server.getsockname()
        loopback = mapped(bytes([127, 0, 0, 1]))
        link.path.guest_mac(GUEST_MAC)  # else it would be sent to everybody
        handle = link.path.add_listener(server.detach(), 6, 4, address[1], SPORT, address=loopback)
        with socket.create_connection(address, 5) as client:
            syn = link.receive_segment()
            assert (syn.flags, syn.dport) == (SYN, SPORT)
            yield Stack(link, client, syn.sport, syn.seq, syn), client
        link.path.remove_listener(handle)
    finally:
        link.close()


@pytest.mark.parametrize("answer", [SYN | ACK, ACK])
def test_simultaneous_open(answer: int) -> None:
    with crossing() as (stack, client):
        # The guest connects by the same ports: its SYN crosses ours, and is no answer to it (RFC 9293 §3.5)
        stack.send(SYN, -1, -1)
        assert stack.receive()[:3] == (SYN | ACK, 0xFFFFFFFF, 0)
        stack.send(answer, -1 if answer & SYN else 0)
        if answer & SYN:
            assert stack.receive()[:3] == (ACK, 0, 0)
        client.sendall(b"to the guest")
        assert stack.receive() == (ACK | PSH, 0, 0, b"to the guest")
        stack.send(ACK | PSH, 0, 12, payload=b"to the host")
        assert client.recv(100) == b"to the host"


def test_a_fin_with_the_last_data_and_lost_once() -> None:
    with connected() as stack:
        stack.send(ACK | PSH | FIN, 5, payload=b"world")
        assert stack.acknowledged() == 0
        stack.send(ACK | PSH, 0, payload=b"hello")
        assert stack.acknowledged() == 11
        assert everything(stack.peer) == b"helloworld"


def test_a_window_of_one_byte_gets_bytes_one_by_one() -> None:
    with connected(window=1) as stack:
        stack.peer.sendall(b"abcd")
        came = b""
        while len(came) < 4:
            _, seq, _, payload = stack.receive()
            if payload:
                assert seq == len(came)
                assert len(payload) == 1
                came += payload
                stack.send(ACK, 0, len(came), window=1)
        assert came == b"abcd"


def test_a_window_that_closes_and_opens() -> None:
    with connected(window=0) as stack:
        stack.peer.sendall(b"later")
        probe = stack.receive()  # zero window probe: numbered below what was sent
        assert probe[1] == 0xFFFFFFFF
        assert probe[3] == b""
        stack.send(ACK, 0, 0, window=0)
        stack.send(ACK, 0, 0, window=100)
        assert stack.receive()[3] == b"later"


def test_T32_data_behind_a_fin_is_ignored_counted_and_told_once() -> None:
    told: list[str] = []
    with connected() as stack:
        stack.link.path.tell_notices(told.append)
        for _ in range(2):  # the FIN again is no data
            stack.send(ACK | FIN, 0)
            assert stack.acknowledged() == 1
        assert stack.link.path.counters()["tcp_data_after_fin"] == 0
        for _ in range(3):
            stack.send(ACK | PSH, 1, payload=b"too late")
            assert stack.acknowledged() == 1
        assert stack.peer.recv(10) == b""
        stack.peer.sendall(b"still open")
        assert stack.receive()[3] == b"still open"
        assert stack.link.path.counters()["tcp_data_after_fin"] == 3
        assert told == ["data-after-fin"]


def test_T31_urgent_data_stays_in_its_place() -> None:
    with connected() as stack:
        stack.send(ACK | PSH | URG, 0, payload=b"ab!cd", urgent=3)
        stack.send(ACK | FIN, 5)
        assert everything(stack.peer) == b"ab!cd"


def test_T29_ports_of_zero_are_dropped() -> None:
    with connected() as stack:
        for sport, dport in ((0, stack.port), (SPORT, 0)):
            stack.link.send(6, Tcp(sport, dport, 1, 0, SYN, 100).emit(GUEST, HOST))
        stack.send(ACK | PSH, 0, payload=b"alive")
        assert stack.peer.recv(10) == b"alive"
        assert stack.link.path.counters()["drop_port_zero"] == 2


@pytest.mark.parametrize("flags", [0, FIN | SYN | RST | PSH | ACK | URG, SYN | FIN, FIN])
def test_flags_that_make_no_sense_do_no_harm(flags: int) -> None:
    with connected() as stack:
        stack.link.send(6, Tcp(SPORT + 1, stack.port, 77, 88, flags, 100, b"?").emit(GUEST, HOST))
        stack.send(ACK | PSH, 0, payload=b"alive")
        assert stack.peer.recv(10) == b"alive"


def test_T5_a_reset_of_the_guest_is_one_for_the_server() -> None:
    with connected() as stack:
        stack.send(RST, 0)
        with pytest.raises(ConnectionResetError):
            stack.peer.recv(10)


def test_a_reset_elsewhere_in_the_window_is_challenged() -> None:
    with connected() as stack:
        stack.send(RST, 100)  # RFC 5961 §3.2
        assert stack.acknowledged() == 0
        stack.send(ACK | PSH, 0, payload=b"alive")
        assert stack.peer.recv(10) == b"alive"


def test_more_than_the_server_takes_is_neither_lost_nor_acknowledged_twice() -> None:
    with connected(receive_buffer=4096) as stack:
        data = bytes(range(256)) * 4000
        sent = acknowledged = 0
        edge = 65535
        received = b""
        stack.peer.setblocking(False)
        while acknowledged < len(data):
            while sent < min(len(data), edge):
                piece = data[sent : min(sent + 1460, edge)]
                stack.send(ACK | PSH, sent, payload=piece)
                sent += len(piece)
                if sent % 8 == 0:
                    break
            segment = stack.link.receive_segment()
            ack = (segment.ack - ISS - 1) & 0xFFFFFFFF
            assert acknowledged <= ack <= sent
            acknowledged, edge = ack, max(edge, ack + segment.window)
            with contextlib.suppress(BlockingIOError):
                received += stack.peer.recv(8192)
        stack.peer.settimeout(5)
        stack.send(ACK | FIN, sent)
        received += everything(stack.peer)
        assert received == data
