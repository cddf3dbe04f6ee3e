"""Known cases at the link: the frames that the guest sends and gets, literally, with real sockets behind them."""

import contextlib
import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.wire import icmp, ipv4, tcp, udp
from bucatini.wire.ethernet import Ethernet
from bucatini.wire.tcp import ACK, FIN, PSH, RST, SYN, Tcp
from unit.datapath.guest_link import FLOWS, GUEST, GUEST_MAC, HOST, OUR_MAC, VNET, Link, count, mapped, wait

WINDOW_SCALE_7 = ((tcp.OPTION_MSS, (1460).to_bytes(2, "big")), (tcp.OPTION_WINDOW_SCALE, b"\x07"))
TESTS = Path(__file__).parents[2]
IP_PKTINFO, IP_RECVTTL = 8, 12  # linux/in.h
SIOCOUTQ = 0x5411  # linux/sockios.h


@pytest.fixture
def link(request: pytest.FixtureRequest) -> Iterator[Link]:
    link = Link(flows=getattr(request, "param", FLOWS))
    yield link
    link.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        yield server


@contextlib.contextmanager
def opened(link: Link, server: socket.socket, sport: int = 40000) -> Iterator[tuple[socket.socket, int, int]]:
    """A connection whose guest has number 1000: the server's end, its port, our first number."""
    port = server.getsockname()[1]
    link.segment(sport, port, SYN, 999)
    answer = link.receive_segment()
    peer, _ = server.accept()
    peer.settimeout(5)
    with peer:
        link.segment(sport, port, ACK, 1000, answer.seq + 1)
        yield peer, port, answer.seq + 1


def assert_idle() -> None:
    """The packet path, which runs in another thread, takes no processor."""
    before = time.thread_time(), time.process_time()
    time.sleep(0.5)
    others = (time.process_time() - before[1]) - (time.thread_time() - before[0])
    assert others < 0.05 * 0.5


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


HEAD = """
import os, pathlib, socket, subprocess
from bucatini.wire import icmp, ipv4, tcp, udp
from bucatini.wire.ethernet import Ethernet
from unit.datapath.guest_link import GUEST, GUEST_MAC, HOST, OUR_MAC, Link, mapped
pathlib.Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
link = Link()
try:
"""


def alone(code: str) -> str:
    """Run code with a link in a network namespace that has nothing but its loopback; what it prints."""
    program = HEAD + textwrap.indent(code, "    ") + "finally:\n    link.close()\n"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])}
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", program]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60).stdout


# TCP


def test_T1_a_closed_port_is_answered_by_a_reset_that_acknowledges_the_syn(link: Link) -> None:
    link.segment(40000, closed_port(), SYN, 999)
    answer = link.receive_segment()
    assert (answer.flags, answer.seq, answer.ack) == (RST | ACK, 0, 1000)


NO_ROUTE = """
nowhere = bytes([192, 0, 2, 77])
packet = ipv4.IPv4(GUEST, nowhere, 6, tcp.Tcp(40000, 80, 999, 0, tcp.SYN, 65535).emit(GUEST, nowhere)).emit()
link.send_frame(Ethernet(OUR_MAC, GUEST_MAC, 0x0800, packet).emit())
answer = link.receive()
error = icmp.Error.parse(icmp.Icmp.parse(answer.payload), 4) if answer.protocol == 1 else None
print(tcp.Tcp.parse(answer.payload).flags if error is None else error.type)
"""


def test_T2_what_no_route_leads_to_is_answered_at_once() -> None:
    assert alone(NO_ROUTE).strip() in {str(RST | ACK), str(icmp.UNREACHABLE)}


def test_T5_a_reset_of_the_server_is_one_for_the_guest(link: Link, server: socket.socket) -> None:
    with opened(link, server) as (peer, _, number):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        answer = link.receive_segment()
        assert answer.flags & RST
        assert answer.seq == number


def test_T5_what_came_before_a_reset_of_the_server_reaches_the_guest(link: Link, server: socket.socket) -> None:
    data = os.urandom(50_000)  # more than the guest's window, less than the host's
    port = server.getsockname()[1]

    def acknowledge(seq: int, ack: int, flags: int = ACK) -> None:
        link.send(6, Tcp(40000, port, seq, ack, flags, 8192).emit(GUEST, HOST))

    acknowledge(999, 0, SYN)
    number = link.receive_segment().seq + 1
    peer, _ = server.accept()
    acknowledge(1000, number)
    peer.sendall(data)
    # What is not with us yet a reset takes away
    wait(lambda: struct.unpack("i", fcntl.ioctl(peer, SIOCOUTQ, bytes(4))) == (0,))
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()
    got = bytearray()
    while True:
        segment = link.receive_segment()
        if segment.flags & RST:
            break
        if segment.seq - number == len(got):
            got += segment.payload
        acknowledge(1000, number + len(got))
    assert bytes(got) == data


@pytest.mark.parametrize("ended", [True, False])
def test_T5_a_reset_reaches_a_guest_whose_data_waits_for_the_server(
    link: Link, server: socket.socket, ended: bool
) -> None:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    with opened(link, server) as (peer, port, number):
        peer.sendall(b"answer")
        assert link.receive_segment().payload == b"answer"
        if ended:
            peer.shutdown(socket.SHUT_WR)
            assert link.receive_segment().flags & FIN
        sent, window = 1000, 65535
        while window > 1400:  # until the server's socket and ours are full
            link.segment(40000, port, ACK | PSH, sent, number + 6 * ended + ended, bytes(1400))
            answer = link.receive_segment()
            if answer.ack == sent + 1400:
                sent += 1400
            window = answer.window
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        peer.close()
        while not link.receive_segment().flags & RST:
            pass


def test_T8_what_was_acknowledged_reaches_a_slow_server_after_the_guest_is_gone(
    link: Link, server: socket.socket
) -> None:
    data = os.urandom(100_000)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    with opened(link, server) as (peer, port, number):
        acknowledged = 0
        while acknowledged < len(data):
            piece = data[acknowledged : acknowledged + 1400]
            last = acknowledged + len(piece) == len(data)
            link.segment(40000, port, ACK | (FIN if last else PSH), 1000 + acknowledged, number, piece)
            answer = link.receive_segment()
            assert answer.ack - 1000 >= acknowledged + len(piece)
            acknowledged = answer.ack - 1000 - last
        link.segment(40000, port, RST, 1000 + len(data) + 1)  # what is left of the guest's end forgets it
        link.segment(40000, closed_port(), SYN, 1)
        assert link.receive_segment().flags & RST
        assert link.path.flows == 0
        got = b""
        while part := peer.recv(1 << 16):
            got += part
        assert got == data


def test_T5_a_client_that_gives_up_before_the_guest_has_answered_resets_it_validly(link: Link) -> None:
    link.path.guest_mac(GUEST_MAC)  # else it would be sent to everybody
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        link.path.add_listener(listener.detach(), 6, 4, port, port)
        with socket.create_connection(("127.0.0.1", port), 5) as client:
            syn = link.receive_segment()
            assert syn.flags == SYN
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        reset = link.receive_segment()
        assert (reset.flags, reset.seq) == (RST, syn.seq + 1)


def test_T19_a_segment_of_an_unknown_connection_is_reset(link: Link) -> None:
    link.segment(40000, 80, ACK | PSH, 5000, 7000, b"still there?")
    answer = link.receive_segment()
    assert (answer.flags & (RST | SYN | FIN), answer.seq) == (RST, 7000)
    link.segment(40000, 80, FIN, 5000)
    answer = link.receive_segment()
    assert (answer.flags, answer.ack) == (RST | ACK, 5001)
    link.segment(40000, 80, RST, 5000)  # a reset is not answered
    link.segment(40000, closed_port(), SYN, 1)
    assert link.receive_segment().ack == 2


def test_T20_a_server_with_a_tiny_buffer_gets_everything(link: Link) -> None:
    data = os.urandom(60_000)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # less than a segment of the loopback
        server.settimeout(5)
        with opened(link, server) as (peer, port, number):
            got = bytearray()

            def read() -> None:
                while len(got) < len(data):
                    got.extend(peer.recv(100_000))

            reader = threading.Thread(target=read)
            reader.start()
            acknowledged = 0
            while acknowledged < len(data):
                piece = data[acknowledged : acknowledged + 1400]
                link.segment(40000, port, ACK | PSH, 1000 + acknowledged, number, piece)
                while True:
                    answer = link.receive_segment()
                    if answer.ack - 1000 > acknowledged and answer.window:
                        break
                acknowledged = answer.ack - 1000
            reader.join(5)
            assert bytes(got) == data


def test_small_segments_get_no_more_room_than_a_flow_has(link: Link) -> None:
    """Windows are rounded up to 128 bytes, so segments of less find one that never closes."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        port = server.getsockname()[1]
        link.send(6, Tcp(40000, port, 999, 0, SYN, 65535, options=WINDOW_SCALE_7).emit(GUEST, HOST))
        number = link.receive_segment().seq + 1
        acknowledged, edge, stuck = 1000, 66535, 0
        with server.accept()[0]:
            while not link.path.counters()["tcp_overflow_exhausted"]:
                size = min(edge - acknowledged, 1400) if edge - acknowledged > 4096 else 100
                assert edge - acknowledged >= size, "a window that closed"
                link.segment(40000, port, ACK | PSH, acknowledged, number, bytes(size))
                answer = link.receive_segment()
                stuck = 0 if answer.ack > acknowledged else stuck + 1
                acknowledged, edge = answer.ack, answer.ack + (answer.window << 7)
                assert stuck < 2
                assert acknowledged < 64 << 20, "a flow without a bound"
            # What found no room is not acknowledged, and the window is what it was
            link.segment(40000, port, ACK | PSH, acknowledged, number, bytes(100))
            assert link.receive_segment().ack == acknowledged


def test_T22_windows_are_wider_than_64_kib(link: Link, server: socket.socket) -> None:
    port = server.getsockname()[1]
    link.send(6, Tcp(40000, port, 999, 0, SYN, 65535, options=WINDOW_SCALE_7).emit(GUEST, HOST))
    answer = link.receive_segment()
    scale = (answer.option(tcp.OPTION_WINDOW_SCALE) or b"\0")[0]
    with server.accept()[0] as peer:
        link.segment(40000, port, ACK | PSH, 1000, answer.seq + 1, b"x")
        assert peer.recv(1) == b"x"
        assert link.receive_segment().window << scale == 256 << 10  # `BOUND` of tcp_io, four times what needs no scale


def test_T23_every_segment_acknowledges(link: Link, server: socket.socket) -> None:
    with opened(link, server) as (peer, port, number):
        segments = []
        link.segment(40000, port, ACK | PSH, 1000, number, b"data")
        segments.append(link.receive_segment())
        peer.sendall(b"answer")
        segments.append(link.receive_segment())
        peer.shutdown(socket.SHUT_WR)
        segments.append(link.receive_segment())
        link.segment(40000, port, ACK | FIN, 1004, number + 7)
        segments.append(link.receive_segment())
        assert all(segment.flags & ACK and segment.ack == 1004 for segment in segments[:-1])
        assert segments[-1].ack == 1005


def test_T26_five_hundred_connections_leave_nothing_behind(link: Link, server: socket.socket) -> None:
    before = set(os.listdir("/proc/self/fd"))
    for number in range(500):  # of one more table than there is: each has to go when it ends
        sport = 20000 + number
        with opened(link, server, sport) as (peer, port, ours):
            link.segment(sport, port, ACK | FIN, 1000, ours)
            assert peer.recv(1) == b""
            assert link.receive_segment().ack == 1001
            peer.shutdown(socket.SHUT_WR)
            assert link.receive_segment().flags & FIN
            link.segment(sport, port, ACK, 1001, ours + 1)
    link.segment(40000, closed_port(), SYN, 1)  # what is answered now has everything before it behind
    assert link.receive_segment().flags & RST
    assert set(os.listdir("/proc/self/fd")) <= before
    assert link.path.flows == 0
    assert link.path.counters()["tcp_opened_guest"] >= 500


@pytest.mark.parametrize("peek_off", [True, False])  # Linux 6.9 has it for TCP
def test_T31_urgent_data_and_what_follows_reach_the_guest(server: socket.socket, peek_off: bool) -> None:
    link = Link(peek_off=peek_off)
    try:
        with opened(link, server) as (peer, port, number):
            peer.sendall(b"aaaa")
            peer.send(b"b", socket.MSG_OOB)
            peer.sendall(b"cccc")
            peer.shutdown(socket.SHUT_WR)
            got, finished = b"", False
            while not finished:
                segment = link.receive_segment()
                at = segment.seq - number
                assert at <= len(got)
                got = got[:at] + segment.payload if segment.payload else got
                finished = bool(segment.flags & FIN) and at + len(segment.payload) == len(got)
                link.segment(40000, port, ACK, 1000, number + len(got) + finished)
            assert got == b"aaaabcccc"
    finally:
        link.close()


def test_T31_more_than_a_window_reaches_the_guest_without_peek_off(server: socket.socket) -> None:
    data = os.urandom(3 << 20)
    link = Link(peek_off=False)
    try:
        with opened(link, server) as (peer, port, number):
            sender = threading.Thread(target=peer.sendall, args=(data,))
            sender.start()
            got = bytearray()
            while len(got) < len(data):
                segment = link.receive_segment()
                if segment.seq - number == len(got):
                    got += segment.payload
                link.segment(40000, port, ACK, 1000, number + len(got))
            sender.join(5)
            assert bytes(got) == data
    finally:
        link.close()


def test_T24_of_pieces_in_descending_order_no_more_are_kept_than_a_flow_may(link: Link, server: socket.socket) -> None:
    """Each of them takes a block of its own, however small it is; what was not kept comes again."""
    data = os.urandom(500)
    options = (*WINDOW_SCALE_7, (tcp.OPTION_SACK_PERMITTED, b""))
    port = server.getsockname()[1]
    link.send(6, Tcp(40000, port, 999, 0, SYN, 65535, options=options).emit(GUEST, HOST))
    number = link.receive_segment().seq + 1
    peer, _ = server.accept()
    with peer:
        peer.settimeout(5)
        for at in range(499, 0, -1):
            link.segment(40000, port, ACK | PSH, 1000 + at, number, data[at : at + 1])
            answer = link.receive_segment()
        kept = struct.unpack("!II", answer.option(tcp.OPTION_SACK)[:8])
        assert kept == (1000 + 500 - 64, 1000 + 500)
        link.segment(40000, port, ACK | PSH, 1000, number, data)
        got = b""
        while len(got) < len(data):
            got += peer.recv(1000)
        assert got == data
        link.segment(40000, port, ACK | PSH, 1500, number, b"next")
        assert peer.recv(100) == b"next"


def test_T33_short_frames_are_padded(link: Link, server: socket.socket) -> None:
    with opened(link, server) as (peer, port, number):
        peer.sendall(b"x")
        frame = link.end.recv(70000)
        assert len(frame) == VNET + 60
        assert ipv4.IPv4.parse(Ethernet.parse(frame[VNET:]).payload).payload[-1:] == b"x"
        link.segment(40000, port, ACK, 1000, number + 1)


# UDP


@contextlib.contextmanager
def bound() -> Iterator[tuple[socket.socket, int]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        yield sock, sock.getsockname()[1]


def test_U6_the_source_port_is_kept(link: Link) -> None:
    with bound() as (_, port):
        pass
    with bound() as (sock, to):
        link.send(17, udp.Udp(port, to, b"who am I?").emit(GUEST, HOST))
        assert sock.recvfrom(100) == (b"who am I?", ("127.0.0.1", port))


def test_U5_a_source_port_that_another_has_is_not_shared(link: Link) -> None:
    with bound() as (other, port), bound() as (sock, to):
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        link.send(17, udp.Udp(port, to, b"question").emit(GUEST, HOST))
        _, peer = sock.recvfrom(100)
        assert peer[1] != port
        sock.sendto(b"answer", peer)
        assert udp.Udp.parse(link.receive().payload) == udp.Udp(to, port, b"answer")


@pytest.mark.parametrize("size", [0, 1, 17, 18, 512, 1472, 1473, 9000, 60_000])
def test_U7_a_datagram_of_any_size_arrives_whole(link: Link, size: int) -> None:
    data = os.urandom(size)
    with bound() as (sock, to):
        link.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        link.other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        link.send(17, udp.Udp(5000, to, data).emit(GUEST, HOST))
        got, peer = sock.recvfrom(70_000)
        assert got == data
        sock.sendto(data, peer)
        assert udp.Udp.parse(link.receive().payload).payload == data


def test_U9_what_is_asked_at_once_is_answered_in_order(link: Link) -> None:
    with bound() as (sock, to):
        for number in range(50):
            link.send(17, udp.Udp(5000, to, b"%d" % number).emit(GUEST, HOST))
        assert [sock.recv(100) for _ in range(50)] == [b"%d" % number for number in range(50)]


def test_what_a_forward_has_opened_goes_on_when_it_is_removed(link: Link) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer, socket.socket(peer.family, peer.type) as forward:
        forward.bind(("127.0.0.1", 0))
        port = forward.getsockname()[1]
        peer.settimeout(5)
        peer.connect(forward.getsockname())
        link.path.guest_mac(GUEST_MAC)  # else it would be sent to everybody
        handle = link.path.add_listener(forward.detach(), 17, 4, port, port, address=mapped(bytes([127, 0, 0, 1])))
        peer.send(b"question")
        asked = udp.Udp.parse(link.receive().payload)
        assert (asked.dport, asked.payload) == (port, b"question")
        for answer in (b"before", b"after"):
            link.send(17, udp.Udp(port, asked.sport, answer).emit(GUEST, HOST))
            assert peer.recv(100) == answer
            if answer == b"before":
                link.path.remove_listener(handle)


def test_U10_what_the_host_forbids_stops_that_flow_alone(link: Link) -> None:
    forbidden = bytes([255, 255, 255, 255])
    packet = ipv4.IPv4(GUEST, forbidden, 17, udp.Udp(5000, 9, b"?").emit(GUEST, forbidden)).emit()
    link.send_frame(Ethernet(b"\x9a\x55\x9a\x55\x9a\x55", b"\x02\0\0\0\0\x0f", 0x0800, packet).emit())
    with bound() as (sock, to):
        link.send(17, udp.Udp(5000, to, b"goes").emit(GUEST, HOST))
        assert sock.recv(10) == b"goes"
    assert link.path.counters()["udp_flows"] == 1


def test_U12_a_port_that_refuses_for_ever_is_reported_each_time_and_costs_nothing_between(link: Link) -> None:
    with bound() as (_, port):
        pass
    for number in range(5):
        link.send(17, udp.Udp(5000, port, b"%d" % number).emit(GUEST, HOST))
        assert icmp.Error.parse(icmp.Icmp.parse(link.receive().payload), 4).type == icmp.UNREACHABLE
    assert_idle()


MULTICAST = """
subprocess.run(["ip", "route", "add", "239.0.0.0/8", "dev", "lo"], check=True)
group = bytes([239, 255, 255, 250])
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    sock.settimeout(5)
    sock.bind((socket.inet_ntoa(group), 0))
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group + bytes([127, 0, 0, 1]))
    to = sock.getsockname()[1]
    packet = ipv4.IPv4(GUEST, group, 17, udp.Udp(5000, to, b"M-SEARCH").emit(GUEST, group)).emit()
    link.send_frame(Ethernet(bytes.fromhex("01005e7ffffa"), GUEST_MAC, 0x0800, packet).emit())
    print(sock.recv(100) == b"M-SEARCH")
    link.send(1, icmp.Echo(4, False, 7, 1, b"next").emit().emit())
    print(icmp.Echo.parse(icmp.Icmp.parse(link.receive().payload), 4).data == b"next")  # and nothing before it
"""


def test_U13_multicast_leaves_and_does_not_come_back() -> None:
    assert alone(MULTICAST).split() == ["True", "True"]


SUPERFRAME = 65_400  # bytes of payload


@pytest.mark.parametrize("size", [SUPERFRAME - 1, 65_001, 65_000, 64_999, 32_700, 1000, 1])
def test_U7_a_superframe_of_datagrams_of_any_size_arrives_whole(link: Link, size: int) -> None:
    """One of more than 65,000 bytes each once kept the worker busy for ever."""
    data = os.urandom(SUPERFRAME if size >= 1000 else 64)
    with bound() as (sock, to):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        link.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        packet = ipv4.IPv4(GUEST, HOST, 17, udp.Udp(5000, to, data).emit(GUEST, HOST)).emit()
        # struct virtio_net_hdr: NEEDS_CSUM, GSO_UDP_L4, and where the checksum of UDP is
        vnet = struct.pack("=BBHHHH", 1, 5, 42, size, 34, 6)
        link.end.send(vnet + Ethernet(OUR_MAC, GUEST_MAC, 0x0800, packet).emit())
        got = [sock.recv(70_000) for _ in range(-(-len(data) // size))]
        assert b"".join(got) == data
        assert {len(part) for part in got[:-1]} == {size}
        link.send(17, udp.Udp(5000, to, b"next").emit(GUEST, HOST))
        assert sock.recv(100) == b"next"


def test_L18_an_address_that_the_host_has_not_is_not_its_loopback(link: Link) -> None:
    """connect(2) takes the unspecified address for the loopback."""
    address = bytes([169, 254, 1, 2])
    link.path.family(4, guest=mapped(GUEST), learn=False, ours=mapped(HOST), map_guest_addr=mapped(address))
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::", 0))
        sock.settimeout(5)
        to = sock.getsockname()[1]
        for protocol, payload in (
            (17, udp.Udp(5000, to, b"?").emit(GUEST, address)),
            (6, Tcp(40000, to, 999, 0, SYN, 65535).emit(GUEST, address)),
            (1, icmp.Echo(4, False, 7, 1, b"?").emit().emit()),
        ):
            packet = ipv4.IPv4(GUEST, address, protocol, payload).emit()
            link.send_frame(Ethernet(OUR_MAC, GUEST_MAC, 0x0800, packet).emit())
        wait(lambda: count(link, "drop_ip_address") == 3)
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)


def test_U3_every_datagram_of_a_batch_leaves_with_its_own_ttl(link: Link) -> None:
    with bound() as (sock, to):
        sock.setsockopt(socket.IPPROTO_IP, IP_RECVTTL, 1)
        sent = [(b"%d" % number, 64 - number % 3) for number in range(60)]
        for payload, ttl in sent:
            link.send(17, udp.Udp(5000, to, payload).emit(GUEST, HOST), ttl=ttl)
        got = []
        for _ in sent:
            payload, control, _, _ = sock.recvmsg(100, 100)
            got.append((payload, control[0][2][0]))
        assert got == sent


@contextlib.contextmanager
def forwarded(link: Link, to: int = 0) -> Iterator[int]:
    """A forward of UDP on all addresses of the host; its port."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as forward:
        forward.bind(("", 0))
        forward.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        port = forward.getsockname()[1]
        link.path.guest_mac(GUEST_MAC)  # else it would be sent to everybody
        link.path.add_listener(forward.detach(), 17, 4, port, to or port)
        yield port


def test_U4_an_answer_comes_from_the_address_that_was_asked_last(link: Link) -> None:
    with bound() as (peer, _), forwarded(link) as port:
        for address in ("127.0.0.1", "127.0.0.2", "127.0.0.1"):
            peer.sendto(b"question", (address, port))
            asked = udp.Udp.parse(link.receive().payload)
            link.send(17, udp.Udp(port, asked.sport, b"answer").emit(GUEST, HOST))
            assert peer.recvfrom(100) == (b"answer", (address, port))


def test_U4_an_answer_comes_from_the_port_that_was_asked_whoever_spoke_first(link: Link) -> None:
    with bound() as (peer, number), bound() as (free, to):
        free.close()
        with forwarded(link, to) as port:
            link.send(17, udp.Udp(to, number, b"hello").emit(GUEST, HOST))
            assert peer.recvfrom(100) == (b"hello", ("127.0.0.1", to))
            peer.sendto(b"question", ("127.0.0.1", port))
            assert udp.Udp.parse(link.receive().payload).payload == b"question"
            link.send(17, udp.Udp(to, number, b"answer").emit(GUEST, HOST))
            assert peer.recvfrom(100) == (b"answer", ("127.0.0.1", port))


def test_U4_the_answers_of_one_peer_are_not_led_away_by_another_that_looks_the_same(link: Link) -> None:
    """All of the loopback is one address to the guest."""
    with bound() as (peer, number), forwarded(link) as port, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.2", number))
        peer.sendto(b"question", ("127.0.0.1", port))
        assert udp.Udp.parse(link.receive().payload).payload == b"question"
        other.sendto(b"mine", ("127.0.0.1", port))
        peer.sendto(b"again", ("127.0.0.1", port))
        assert udp.Udp.parse(link.receive().payload).payload == b"again"
        assert link.path.counters()["drop_udp_inbound"] == 1
        link.send(17, udp.Udp(port, number, b"answer").emit(GUEST, HOST))
        assert peer.recv(100) == b"answer"


def test_U4_a_flow_of_the_guest_that_was_answered_is_not_closed_by_a_datagram_at_a_forward(link: Link) -> None:
    with bound() as (peer, number), bound() as (free, to):
        free.close()
        with forwarded(link, to) as port:
            link.send(17, udp.Udp(to, number, b"query").emit(GUEST, HOST))
            _, asker = peer.recvfrom(100)
            peer.sendto(b"answer", asker)
            assert udp.Udp.parse(link.receive().payload).payload == b"answer"
            peer.sendto(b"hello", ("127.0.0.1", port))
            assert udp.Udp.parse(link.receive().payload).payload == b"hello"
            link.send(17, udp.Udp(to, number, b"query").emit(GUEST, HOST))
            assert peer.recvfrom(100) == (b"query", asker)


def test_U4_a_flow_of_the_guest_is_not_led_away_by_a_peer_that_looks_the_same(link: Link) -> None:
    with bound() as (peer, number), bound() as (free, to), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        free.close()
        other.bind(("127.0.0.2", number))
        with forwarded(link, to) as port:
            link.send(17, udp.Udp(to, number, b"one").emit(GUEST, HOST))
            assert peer.recv(100) == b"one"
            other.sendto(b"mine", ("127.0.0.1", port))
            wait(lambda: count(link, "drop_udp_inbound") == 1)
            link.send(17, udp.Udp(to, number, b"two").emit(GUEST, HOST))
            assert peer.recv(100) == b"two"


def test_U4_what_came_as_a_broadcast_is_answered_from_an_address_of_the_host(link: Link) -> None:
    with bound() as (peer, _), forwarded(link) as port:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        peer.sendto(b"anybody?", ("127.255.255.255", port))
        asked = udp.Udp.parse(link.receive().payload)
        assert asked.payload == b"anybody?"
        for _ in range(2):
            link.send(17, udp.Udp(port, asked.sport, b"here").emit(GUEST, HOST))
            assert peer.recvfrom(100) == (b"here", ("127.0.0.1", port))
        assert link.path.counters()["drop_udp_send"] == 0


def test_what_comes_again_over_several_holes_arrives_once(link: Link) -> None:
    data = bytes(random.Random(1).randbytes(500))
    with socket.create_server(("127.0.0.1", 0)) as server, opened(link, server) as (peer, port, ack):
        for first, last in ((100, 200), (300, 400), (0, 350), (350, 500), (400, 500)):
            link.segment(40000, port, ACK | PSH, 1000 + first, ack, data[first:last])
        got = b""
        while len(got) < 500:
            got += peer.recv(1000)
        link.segment(40000, port, ACK | FIN, 1500, ack)
        assert got + peer.recv(1000) == data


def test_a_sweep_over_source_ports_leaves_half_of_the_hosts_to_others() -> None:
    link = Link(flows=64, ports=20)
    try:
        with bound() as (server, to), forwarded(link) as port, contextlib.ExitStack() as peers:
            for sport in range(5000, 5030):
                link.send(17, udp.Udp(sport, to, b"question").emit(GUEST, HOST))
                server.recv(100)
            assert link.path.flows == 10
            assert link.path.counters()["udp_evicted"] == 20
            # Peers of a forward take none
            for number in range(15):
                peer, _ = peers.enter_context(bound())
                peer.sendto(b"%d" % number, ("127.0.0.1", port))
                assert udp.Udp.parse(link.receive().payload).payload == b"%d" % number
            assert link.path.flows == 25
            assert link.path.counters()["udp_evicted"] == 20
    finally:
        link.close()


@pytest.mark.parametrize("link", [8], indirect=True)  # half of them may be UDP's
def test_U11_a_flood_at_a_forward_does_not_push_out_what_the_guest_asked(link: Link) -> None:
    with bound() as (server, to), forwarded(link) as port, contextlib.ExitStack() as peers:
        link.send(17, udp.Udp(5000, to, b"question").emit(GUEST, HOST))
        _, asker = server.recvfrom(100)
        for number in range(20):
            peer, _ = peers.enter_context(bound())
            peer.sendto(b"%d" % number, ("127.0.0.1", port))
            assert udp.Udp.parse(link.receive().payload).payload == b"%d" % number
        assert link.path.counters()["udp_evicted"] >= 16
        server.sendto(b"answer", asker)
        assert udp.Udp.parse(link.receive().payload).payload == b"answer"


@pytest.mark.parametrize("link", [8], indirect=True)  # half of them may be UDP's
def test_U11_a_guest_that_uses_its_flows_does_not_keep_peers_of_a_forward_out(link: Link) -> None:
    with bound() as (server, to), forwarded(link) as port, contextlib.ExitStack() as peers:
        for _ in range(3):
            for sport in (5000, 5001):
                link.send(17, udp.Udp(sport, to, b"question").emit(GUEST, HOST))
                server.recv(100)
        for number in range(6):
            peer, _ = peers.enter_context(bound())
            peer.sendto(b"%d" % number, ("127.0.0.1", port))
            assert udp.Udp.parse(link.receive().payload).payload == b"%d" % number
        assert link.path.counters()["flow_refused"] == 0


@pytest.mark.parametrize("link", [2], indirect=True)  # one of them may be UDP's
def test_U9_a_flow_does_not_give_way_to_what_its_own_socket_has_taken(link: Link) -> None:
    """Strangers send to the port of the guest's flow all the while it is opened, with room for no other flow."""
    link.end.settimeout(0.2)
    with bound() as (server, to), forwarded(link) as port, contextlib.ExitStack() as stack:
        server.settimeout(0.2)
        strangers = [stack.enter_context(bound())[0] for _ in range(8)]
        stop = threading.Event()

        def flood() -> None:
            while not stop.is_set():
                for stranger in strangers:
                    stranger.sendto(b"stray", ("127.0.0.1", port))

        def drain() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    link.end.recv(70_000)

        threads = [threading.Thread(target=function) for function in (flood, drain)]
        for thread in threads:
            thread.start()
        try:
            got = 0
            for number in range(400):
                destination = bytes([192, 0, 2, 1])
                link.send(17, udp.Udp(port, to, b"%d" % number).emit(GUEST, destination))
                link.send(17, udp.Udp(5000 + number, to, b"other").emit(GUEST, destination))
                with contextlib.suppress(TimeoutError):
                    got += server.recv(100) != b""
        finally:
            stop.set()
            for thread in threads:
                thread.join(5)
        assert got
    link.end.settimeout(5)
    time.sleep(0.2)
    assert_idle()


ANOTHER_WAY = """
subprocess.run(["ip", "address", "add", "198.51.100.1/32", "dev", "lo"], check=True)
target, ours = bytes([198, 51, 100, 1]), bytes([203, 0, 113, 9])
for options in ({"outbound": mapped(ours)}, {"outbound_if": "none0"}):
    link.path.family(4, guest=mapped(GUEST), learn=False, ours=mapped(HOST), **options)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("198.51.100.1", 0))
        to = sock.getsockname()[1]
        for protocol, payload in ((17, udp.Udp(5000, to, b"?").emit(GUEST, target)),
                                  (1, icmp.Echo(4, False, 7, 1, b"?").emit().emit())):
            packet = ipv4.IPv4(GUEST, target, protocol, payload).emit()
            link.send_frame(Ethernet(OUR_MAC, GUEST_MAC, 0x0800, packet).emit())
            answer = icmp.Icmp.parse(link.receive().payload)
            print(answer.type == icmp.UNREACHABLE)
"""


def test_what_must_leave_by_an_address_or_an_interface_does_not_leave_by_another() -> None:
    assert alone(ANOTHER_WAY).split() == ["True"] * 4


# Echo


PINGS = """
link.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
for size in (0, 56, 1400, 40_000):
    for sequence in (1, 2):
        data = os.urandom(size)
        link.send(1, icmp.Echo(4, False, 0x1234, sequence, data).emit().emit())
        answer = icmp.Echo.parse(icmp.Icmp.parse(link.receive().payload), 4)
        print(answer == icmp.Echo(4, True, 0x1234, sequence, data))
"""


def test_U15_U16_the_gateway_answers_pings_with_everything_in_its_place() -> None:
    assert alone(PINGS).split() == ["True"] * 8


# The link


def test_L17_no_frame_is_cut_short_behind_others(link: Link) -> None:
    """A batch of small frames first, then one of the largest: the buffer that it is read into has room for it."""
    data = os.urandom(60_000)
    link.end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    with bound() as (sock, to):
        for number in range(31):
            link.send(17, udp.Udp(5000, to, b"%02d" % number).emit(GUEST, HOST))
        link.send(17, udp.Udp(5000, to, data).emit(GUEST, HOST))
        assert [sock.recv(100) for _ in range(31)] == [b"%02d" % number for number in range(31)]
        assert sock.recv(70_000) == data
