"""The whole packet path over a link that is a pair of sockets: frames in, frames out, real sockets behind it."""

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.wire import icmp, ipv4, ipv6, ndp, tcp, udp
from bucatini.wire.ethernet import ETHERTYPE_IPV4, ETHERTYPE_IPV6, Ethernet
from unit.datapath.guest_link import FLOWS, GUEST, GUEST_MAC, HOST, OUR_MAC, Link, count, wait


@pytest.fixture
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    link = Link(flows=getattr(request, "param", FLOWS))
    yield link
    link.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def test_a_connection_from_handshake_to_both_fins(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    link.segment(40000, port, tcp.SYN, 1000)
    answer = link.receive_segment()
    assert answer.flags == tcp.SYN | tcp.ACK
    assert answer.ack == 1001
    peer, _ = server.accept()
    with peer:
        peer.settimeout(5)
        link.segment(40000, port, tcp.ACK | tcp.PSH, 1001, answer.seq + 1, b"to the host")
        assert peer.recv(100) == b"to the host"
        acknowledgement = link.receive_segment()
        assert (acknowledgement.ack, acknowledgement.payload) == (1012, b"")
        peer.send(b"to the guest")
        data = link.receive_segment()
        assert data.payload == b"to the guest"
        assert data.flags & tcp.ACK
        link.segment(40000, port, tcp.ACK | tcp.FIN, 1012, data.seq + 12)
        assert peer.recv(100) == b""
        assert link.receive_segment().ack == 1013
    fin = link.receive_segment()
    assert fin.flags & tcp.FIN
    link.segment(40000, port, tcp.ACK, 1013, fin.seq + 1)


def test_T28_an_answer_in_time_carries_the_acknowledgement(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    link.segment(40000, port, tcp.SYN, 1000)
    seq = link.receive_segment().seq + 1
    peer, _ = server.accept()
    with peer:
        peer.settimeout(5)
        echo = threading.Thread(target=lambda: [peer.send(peer.recv(1)) for _ in range(20)])
        echo.start()
        for number in range(20):
            link.segment(40000, port, tcp.ACK | tcp.PSH, 1001 + number, seq + number, b"?")
            while not (answer := link.receive_segment()).payload:
                pass  # on a machine that is busy the answer may be late
            assert (answer.seq, answer.ack) == (seq + number, 1002 + number)
        echo.join()
        # The last one is not answered: its acknowledgement comes nevertheless
        link.segment(40000, port, tcp.ACK | tcp.PSH, 1021, seq + 20, b"!")
        assert link.receive_segment().ack == 1022


def test_a_full_flow_table_refuses_with_a_reset(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    for sport in range(FLOWS):
        link.segment(41000 + sport, port, tcp.SYN, 1)
        answer = link.receive_segment()
        assert answer.flags == tcp.SYN | tcp.ACK
        link.segment(41000 + sport, port, tcp.ACK, 2, answer.seq + 1)
    link.segment(41999, port, tcp.SYN, 7)
    refusal = link.receive_segment()
    assert refusal.flags == tcp.RST | tcp.ACK
    assert (refusal.dport, refusal.seq, refusal.ack) == (41999, 0, 8)
    assert link.path.counters()["flow_refused"] == 1
    # One goes, the next may come
    link.segment(41000, port, tcp.RST, 2)
    link.segment(41999, port, tcp.SYN, 7)
    assert link.receive_segment().flags == tcp.SYN | tcp.ACK


def test_datagrams_there_and_back(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        port = sock.getsockname()[1]
        link.send(17, udp.Udp(5000, port, b"question").emit(GUEST, HOST))
        data, peer = sock.recvfrom(100)
        assert data == b"question"
        sock.sendto(b"answer", peer)
        packet = link.receive()
        assert (packet.src, packet.dst) == (HOST, GUEST)
        assert udp.Udp.parse(packet.payload) == udp.Udp(port, 5000, b"answer")


def test_D17_what_others_on_the_link_send_does_not_divert_what_is_for_the_guest(link: Link) -> None:
    stranger = b"\x02\0\0\0\0\x99"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        port = sock.getsockname()[1]
        link.send(17, udp.Udp(5000, port, b"question").emit(GUEST, HOST))
        _, peer = sock.recvfrom(100)
        other = bytes([192, 0, 2, 77])
        packet = ipv4.IPv4(other, HOST, 17, udp.Udp(5001, port, b"me too").emit(other, HOST)).emit()
        link.send_frame(Ethernet(OUR_MAC, stranger, ETHERTYPE_IPV4, packet).emit())
        assert sock.recv(100) == b"me too"
        sock.sendto(b"answer", peer)
        assert udp.Udp.parse(link.receive().payload).payload == b"answer"  # which looks at the address


def test_D17_a_link_local_address_of_others_does_not_make_them_the_guest(link: Link) -> None:
    link.path.family(6, guest=bytes([0x20, 1]) + bytes(14), learn=False, ours=bytes([0xFE, 0x80]) + bytes(13) + b"\1")
    stranger, all_routers = bytes([0xFE, 0x80]) + bytes(13) + b"\x99", bytes([0xFF, 2]) + bytes(13) + b"\2"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        link.send(17, udp.Udp(5000, sock.getsockname()[1], b"question").emit(GUEST, HOST))
        _, peer = sock.recvfrom(100)
        message = ndp.RouterSolicitation(()).emit().emit(stranger, all_routers)
        solicitation = ipv6.IPv6(stranger, all_routers, 58, message, 255).emit()
        for _ in range(2):
            frame = Ethernet(b"\x33\x33\0\0\0\2", b"\x02\0\0\0\0\x99", ETHERTYPE_IPV6, solicitation).emit()
            link.send_frame(frame)
        wait(lambda: count(link, "slow_in") == 2)
        sock.sendto(b"answer", peer)
        assert udp.Udp.parse(link.receive().payload).payload == b"answer"  # which looks at the address


@pytest.mark.parametrize("link", [2 * FLOWS], indirect=True)  # half of them may be UDP's
def test_U11_when_flows_run_out_a_silent_one_goes_and_one_in_use_stays(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        port = sock.getsockname()[1]

        def ask(sport: int) -> None:
            link.send(17, udp.Udp(sport, port, b"%d" % sport).emit(GUEST, HOST))

        for sport in (*range(6000, 6000 + FLOWS), *range(6000, 6000 + FLOWS)):
            ask(sport)
            assert sock.recv(100) == b"%d" % sport
        ask(7000)  # all of them are in use: they have sent more than once
        ask(6000)
        assert sock.recv(100) == b"6000"
        assert link.path.counters()["flow_refused"] == 1
        time.sleep(1.1)  # a second of silence
        ask(6000)
        assert sock.recv(100) == b"6000"
        for sport in (7000, 7001):
            ask(sport)
            assert sock.recv(100) == b"%d" % sport
        ask(6000)  # spoke a moment ago: another one went
        assert sock.recv(100) == b"6000"
        assert link.path.counters()["udp_evicted"] == 2
        assert link.path.counters()["udp_flows"] == FLOWS + 2


def test_U1_U2_a_datagram_that_nobody_takes_is_answered_with_an_error(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    datagram = udp.Udp(5000, port, b"anybody?").emit(GUEST, HOST)
    link.send(17, datagram)
    packet = link.receive()
    error = icmp.Error.parse(icmp.Icmp.parse(packet.payload), 4)
    assert (error.type, error.code) == (icmp.UNREACHABLE, icmp.CODE_PORT_UNREACHABLE)
    quoted = error.quoted
    assert quoted[12:20] == GUEST + HOST
    assert quoted[20:24] == datagram[:4]


def test_U8_fragments_are_put_together(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        body = bytes(range(256)) * 12
        datagram = udp.Udp(5000, sock.getsockname()[1], body).emit(GUEST, HOST)
        for offset in (1600, 0):  # the later one first
            more = offset == 0
            part = datagram[offset : 1600 if more else None]
            link.send(17, part, identification=9, offset=offset, more_fragments=more)
        assert sock.recv(10000) == body


def test_data_behind_the_last_fragment_makes_no_packet_with_a_hole(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        port = sock.getsockname()[1]
        bad = struct.pack("!HHHH", 5000, port, 24, 0)  # no checksum
        for offset, part, more in ((24, b"behind..", True), (16, b"the last", False), (0, bad, True)):
            link.send(17, part, identification=9, offset=offset, more_fragments=more)
        link.send(17, udp.Udp(5000, port, b"good").emit(GUEST, HOST))
        assert sock.recv(10000) == b"good"
        assert link.path.counters()["reassembled"] == 0


def test_a_slow_path_that_fails_costs_the_frame(link: Link, server: socket.socket) -> None:
    link.send_frame(Ethernet(b"\xff" * 6, GUEST_MAC, 0x0806, bytes(28)).emit())
    link.segment(42000, server.getsockname()[1], tcp.SYN, 1)
    assert link.receive_segment().flags == tcp.SYN | tcp.ACK
    assert link.path.counters()["slow_errors"] == 1


def test_L15_every_bad_frame_counts_in_one_counter(link: Link, server: socket.socket) -> None:
    good = tcp.Tcp(1, 2, 3, 4, tcp.ACK, 5).emit(GUEST, HOST)
    packet = ipv4.IPv4(GUEST, HOST, 6, good).emit()
    frames = {
        "drop_runt": Ethernet(OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, b"").emit()[:13],
        "drop_ethertype": Ethernet(OUR_MAC, GUEST_MAC, 0x8100, bytes(46)).emit(),
        "drop_ip_header": Ethernet(OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, b"\x55" + packet[1:]).emit(),
        "drop_ip_checksum": Ethernet(OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, packet[:8] + b"\1" + packet[9:]).emit(),
        "drop_tcp_header": Ethernet(
            OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, ipv4.IPv4(GUEST, HOST, 6, good[:12] + b"\x10" + good[13:]).emit()
        ).emit(),
        "drop_l4_checksum": Ethernet(
            OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, ipv4.IPv4(GUEST, HOST, 6, good[:-1] + b"\1").emit()
        ).emit(),
        "drop_port_zero": Ethernet(
            OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4,
            ipv4.IPv4(GUEST, HOST, 6, tcp.Tcp(0, 2, 3, 4, tcp.SYN, 5).emit(GUEST, HOST)).emit(),
        ).emit(),
        "drop_ip_protocol": Ethernet(
            OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, ipv4.IPv4(GUEST, HOST, 132, bytes(20)).emit()
        ).emit(),
    }  # fmt: skip
    for frame in frames.values():
        link.send_frame(frame)
    # Frames are served in order: the answer to this one says that the others were
    link.segment(43000, server.getsockname()[1], tcp.SYN, 1)
    assert link.receive_segment().flags == tcp.SYN | tcp.ACK
    dropped = {name: value for name, value in link.path.counters().items() if name.startswith("drop_") and value}
    assert dropped == dict.fromkeys(frames, 1)


def test_a_capture_holds_every_frame(tmp_path: Path, server: socket.socket) -> None:
    file = tmp_path / "capture.pcap"
    with open(file, "wb", buffering=0) as out:
        link = Link(capture=out.fileno())
        link.segment(44000, server.getsockname()[1], tcp.SYN, 1)
        link.receive_segment()
        link.close()
    data = file.read_bytes()
    assert data[:4] == struct.pack("=I", 0xA1B23C4D)
    position, sizes = 24, []
    while position < len(data):
        captured, length = struct.unpack_from("=II", data, position + 8)
        assert captured == length
        sizes.append(length)
        position += 16 + captured
    assert sizes == [54, 60]
