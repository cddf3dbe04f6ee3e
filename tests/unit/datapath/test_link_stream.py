"""The stream link: frames in and out of a byte stream, superframes cut, checksums completed. scapy checks them."""

import contextlib
import errno
import random
import socket
import time
from collections.abc import Iterator

import pytest
from scapy.all import IP, TCP, UDP, Ether

from bucatini.wire import tcp, udp
from unit.datapath.guest_link import GUEST, HOST, StreamLink, wait


@pytest.fixture
def link() -> Iterator[StreamLink]:
    link = StreamLink()
    yield link
    link.close()


def checked(frame: bytes) -> Ether:
    """The frame, when its checksums are what scapy makes of it."""
    found = Ether(frame)
    again = Ether(frame)
    del again[IP].chksum
    if TCP in again:
        del again[TCP].chksum
    if UDP in again:
        del again[UDP].chksum
    assert bytes(again) == frame
    return found


def connect(link: StreamLink, server: socket.socket, mss: int) -> tuple[socket.socket, int]:
    """A connection of the guest with this MSS; the server's socket, and our next sequence number."""
    port = server.getsockname()[1]
    raw = IP(src="192.0.2.15", dst="192.0.2.1") / TCP(
        sport=40000, dport=port, seq=1000, flags="S", window=65535, options=[("MSS", mss), ("WScale", 7)]
    )
    link.send_frame(bytes(Ether(src="02:00:00:00:00:0f", dst="9a:55:9a:55:9a:55") / raw))
    answer = checked(link.receive_frame())
    assert answer[TCP].flags == "SA"
    link.segment(40000, port, tcp.ACK, 1001, answer[TCP].seq + 1)
    peer, _ = server.accept()
    return peer, answer[TCP].seq + 1


@pytest.mark.parametrize("mss", [88, 536, 1448, 9000])
def test_superframes_are_cut_into_segments_of_the_guests_size(link: StreamLink, mss: int) -> None:
    data = random.Random(mss).randbytes(100_000)
    size = min(mss, 1460)  # what the link's MTU allows
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer, seq = connect(link, server, mss)
        port = server.getsockname()[1]
        with peer:
            peer.sendall(data)
            got = b""
            while len(got) < len(data):
                frame = checked(link.receive_frame())
                segment = frame[TCP]
                payload = bytes(segment.payload)[: frame[IP].len - 40]
                assert segment.seq == (seq + len(got)) % (1 << 32)
                assert 0 < len(payload) <= size
                got += payload
                assert len(payload) == size or segment.flags & 0x08  # what ends a superframe pushes
                if len(got) % 20_000 < mss:
                    link.segment(40000, port, tcp.ACK, 1001, seq + len(got))
    assert got == data


def test_runs_of_datagrams_are_cut_and_padded(link: StreamLink) -> None:
    sizes = [1] * 5 + [700] * 20 + [701] * 3 + [2]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        port = server.getsockname()[1]
        link.send(17, udp.Udp(40000, port, b"hello").emit(GUEST, HOST))
        _, source = server.recvfrom(100)
        for index, size in enumerate(sizes):
            server.sendto(bytes([index]) * size, source)
        for index, size in enumerate(sizes):
            data = link.receive_frame()
            assert len(data) == max(60, 42 + size)
            frame = Ether(data)
            assert frame[UDP].len == 8 + size
            assert data[42 : 42 + size] == bytes([index]) * size
            assert not any(data[42 + size :])
            checked(data[: 42 + size])


def test_short_frames_and_long_ones_in_any_pieces(link: StreamLink) -> None:
    frames = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # all of them may be there before one is read
        server.bind(("127.0.0.1", 0))
        server.settimeout(5)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)  # nothing is read until all was sent
        for size in (0, 1, 1400, 65507, 3):
            datagram = IP(src="192.0.2.15", dst="192.0.2.1") / UDP(sport=40000, dport=server.getsockname()[1])
            frame = bytes(Ether(src="02:00:00:00:00:0f", dst="9a:55:9a:55:9a:55") / datagram / bytes(size))
            frames.append(len(frame).to_bytes(4, "big") + frame)
        stream = b"".join(frames * 3)
        rng = random.Random(4)
        while stream:
            size = rng.choice([1, 2, 3, 5, 100, 5000, 70000])
            link.end.sendall(stream[:size])
            stream = stream[size:]
        assert [len(server.recv(70000)) for _ in range(15)] == [0, 1, 1400, 65507, 3] * 3


@pytest.mark.parametrize("length", [0, 13, 65550, 0xFFFFFFFF])
def test_L15_a_length_that_cannot_be_is_the_end(link: StreamLink, length: int) -> None:
    link.end.sendall(length.to_bytes(4, "big"))
    wait(lambda: bool(link.lost))
    assert link.lost == [(errno.EPROTO, length)]


@pytest.mark.parametrize(("sent", "size"), [(b"", 0), (b"\0\0", 2), (b"\0\0\0\x40abc", 7)])
@pytest.mark.parametrize("how", [errno.ENOTCONN, errno.ECONNRESET])
def test_L15_the_end_of_the_stream_says_what_was_cut(link: StreamLink, sent: bytes, size: int, how: int) -> None:
    if how == errno.ECONNRESET:  # what a client that closes without having read everything makes of it: unix(7)
        with socket.create_server(("127.0.0.1", 0)) as server:
            link.segment(40000, server.getsockname()[1], tcp.SYN, 999)
            server.accept()[0].close()
        wait(lambda: bool(link.end.recv(1, socket.MSG_PEEK)))
    link.end.sendall(sent)
    if how == errno.ECONNRESET:
        link.end.close()
    else:
        link.end.shutdown(socket.SHUT_WR)
    wait(lambda: bool(link.lost))
    assert link.lost == [(how, size)]


def test_without_a_client_data_stays_in_the_hosts_socket(link: StreamLink) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer, _ = connect(link, server, 1448)
        with peer:
            link.end.shutdown(socket.SHUT_WR)
            wait(lambda: bool(link.lost))
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while True:
                    peer.send(bytes(1 << 16))
            time.sleep(0.2)
            assert link.path.counters()["drop_link_full"] == 0


def test_a_client_that_does_not_read_holds_back_the_host_and_then_gets_everything(link: StreamLink) -> None:
    data = random.Random(5).randbytes(3_000_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        peer, seq = connect(link, server, 60000)
        port = server.getsockname()[1]
        with peer:
            link.segment(40000, port, tcp.ACK, 1001, seq)
            peer.settimeout(0.1)
            sent = 0
            got = b""
            while len(got) < len(data):
                if sent < len(data):
                    try:
                        sent += peer.send(data[sent : sent + 100_000])
                    except TimeoutError:
                        pass
                    if sent < 300_000:
                        continue
                segment = checked(link.receive_frame())[TCP]
                if segment.payload and segment.seq == (seq + len(got)) % (1 << 32):
                    got += bytes(segment.payload)
                    link.segment(40000, port, tcp.ACK, 1001, (seq + len(got)) % (1 << 32))
    assert got == data
    counters = link.path.counters()
    assert counters["drop_link_full"] == counters["drop_link_error"] == 0
