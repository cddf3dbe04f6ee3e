"""Every kind of traffic, again and again: `memory_traffic.py LINK ROUNDS`, alone in a network namespace as its root.

LINK is "tap" or "stream" (QEMU's), with "-capture" or "-reread" (no SO_PEEK_OFF) behind it. A round is the same each
time: pings, datagrams in runs and superframes, transfers both ways with a reader that does not read and with loss,
connections opened and closed from both sides, forwards, and what bypasses the tap. Some rounds are a warm-up. What
comes in bursts waits until all of it is there (`Subject.stopped`), so that none is deeper than those before. Prints
what the others have changed in the packet path's process, in JSON.
"""

import contextlib
import json
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from bucatini.wire import icmp, tcp
from bucatini.wire.tcp import ACK, FIN, PSH, SYN, Tcp
from bucatini.wire.udp import Udp
from unit.datapath.memory_guest import GUEST, GUEST6, HOST, HOST6, Subject

WARM_UP = 6
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
MAPPED_LOOPBACK = {4: bytes(10) + b"\xff\xff\x7f\0\0\1", 6: bytes(15) + b"\1"}
ENDS = {4: (GUEST, HOST), 6: (GUEST6, HOST6)}
MSS = 1400
SUPER = 20 * MSS
WINDOW = 65535  # of the guest
IN_FLIGHT = 3 * SUPER  # bytes of the guest's: in small frames too the socket of the link takes them at once
PULLED = 400_000  # bytes of a transfer to the guest
BURST = 64  # datagrams
PINGED = 65_000  # bytes of the largest ping
PORTS = {"tcp": 7000, "udp": 7001, "forward": 7002, "bypass": 7003, "bypass-guest": 7004, "closed": 7999}
TO = 7100  # the guest's port of the forwards
QUEUE = Path("/proc/sys/net/unix/max_dgram_qlen")
IP_PKTINFO, IPV6_RECVPKTINFO = 8, 49  # linux/in.h, linux/in6.h


class Host(NamedTuple):
    """Sockets of the host's side, of one IP version."""

    server: socket.socket
    sink: socket.socket
    asker: socket.socket  # at the forwards of UDP, always from the same port


class Connection:
    """One of the guest's or of a forward's: numbers from the guest's point of view."""

    def __init__(self, subject: Subject, version: int, sport: int, dport: int, *, sack: bool = False) -> None:
        self.subject, self.version, self.sport, self.dport, self.sack = subject, version, sport, dport, sack
        self.una = self.nxt = 1000
        self.rcv = self.edge = 0
        self.shift = 7

    def options(self) -> tuple[tuple[int, bytes], ...]:
        mss = (tcp.OPTION_MSS, MSS.to_bytes(2, "big"))
        return (mss, (3, b"\0"), (tcp.OPTION_SACK_PERMITTED, b"")) if self.sack else (mss, (3, b"\0"))

    def say(
        self, flags: int, payload: bytes = b"", *, at: int | None = None, segment: int = 0,
        options: tuple[tuple[int, bytes], ...] = (),
    ) -> None:  # fmt: skip
        seq = self.nxt if at is None else at
        made = Tcp(self.sport, self.dport, seq, self.rcv, flags, WINDOW, payload, options=options)
        self.subject.send(6, made.emit(*ENDS[self.version]), version=self.version, segment=segment)
        self.nxt = max(self.nxt, seq + len(payload) + bool(flags & (SYN | FIN)))

    def hear(self) -> Tcp:
        """The next segment for it."""
        while True:
            segment = Tcp.parse(self.subject.receive(self.version, 6))
            if segment.sport == self.dport and segment.dport == self.sport:
                if segment.flags & ACK and not segment.flags & SYN:
                    self.una = max(self.una, segment.ack)
                    self.edge = max(self.edge, segment.ack + (segment.window << self.shift))
                return segment

    def open(self, server: socket.socket) -> socket.socket:
        """As the guest; returns the host's end."""
        self.say(SYN, options=self.options())
        answer = self.hear()
        assert answer.flags == SYN | ACK
        self.una, self.rcv, self.edge = answer.ack, answer.seq + 1, answer.ack + answer.window
        self.say(ACK)
        peer, _ = server.accept()
        peer.settimeout(20)
        return peer

    def accept(self) -> None:
        """What a forward asks of the guest."""
        while True:
            asked = Tcp.parse(self.subject.receive(self.version, 6))
            if asked.flags == SYN and asked.dport == self.sport:
                break
        self.dport, self.rcv, self.una, self.nxt = asked.sport, asked.seq + 1, 1000, 1000
        self.say(SYN | ACK, options=self.options())
        while self.una != self.nxt:
            self.hear()

    def wait_acknowledged(self) -> None:
        while self.una < self.nxt:
            self.hear()

    def stall(self) -> int:
        """Send until the window has room for no segment and all is acknowledged, the first frames at once; how much."""
        begin, size = self.nxt, MSS if self.subject.stream else SUPER
        with self.subject.stopped():
            while self.room() >= size:
                self.data(size)
        while self.una < self.nxt or self.edge - self.nxt >= MSS:
            size = min(size, (self.edge - self.nxt) // MSS * MSS)
            if self.room() >= size > 0:
                self.data(size)
            else:
                self.hear()
                size = MSS if self.subject.stream else SUPER
        return self.nxt - begin

    def room(self) -> int:
        return min(self.edge - self.nxt, IN_FLIGHT - (self.nxt - self.una))

    def data(self, size: int) -> None:
        self.say(ACK, bytes(size), segment=MSS if size > MSS else 0)

    def read_at(self, peer: socket.socket, size: int) -> None:
        """The host reads what was kept from it, and the window opens."""
        while size:
            size -= len(peer.recv(min(size, 1 << 16)))
        while self.edge - self.nxt < IN_FLIGHT:
            self.hear()

    def disorder(self, peer: socket.socket) -> None:
        """Segments whose first comes last."""
        begin = self.nxt
        for number in (1, 2, 4, 3, 0):
            self.say(ACK, bytes(MSS), at=begin + number * MSS)
        self.wait_acknowledged()
        self.read_at(peer, 5 * MSS)

    def pull(self, peer: socket.socket, *, lose: bool) -> None:
        """Take data of the host's; of the first frame a segment, or all of it, is lost once."""
        peer.setblocking(False)
        left, got = PULLED, 0
        with self.subject.stopped():
            left -= peer.send(bytes(left))
        while got < PULLED:
            if left:
                with contextlib.suppress(BlockingIOError):
                    left -= peer.send(bytes(left))
            segment = self.hear()
            size = len(segment.payload)
            if not size or segment.seq != self.rcv:
                continue
            if lose and self.sack:
                size = self.fill_hole(size)
                lose = False
            elif lose and not self.sack:
                for _ in range(4):
                    self.say(ACK)
                lose = False
                continue
            self.rcv = (self.rcv + size) & 0xFFFFFFFF
            got += size
            self.say(ACK)
        peer.settimeout(20)

    def pull_at_once(self, peer: socket.socket) -> None:
        """Take data of the host's with all in flight that the window allows, of which first a segment is acknowledged.

        Without SO_PEEK_OFF a read has what is in flight in front of it, which is nowhere longer than here.
        """
        last = self.rcv + WINDOW + MSS
        with self.subject.stopped():
            assert peer.send(bytes(last - self.rcv)) == last - self.rcv
        end = self.rcv
        for acknowledged in (0, MSS):
            self.rcv += acknowledged
            self.say(ACK)
            while end - self.rcv <= WINDOW - MSS:
                end = self.follow(end)
        while self.rcv < last:
            self.rcv = end
            self.say(ACK)
            if end < last:
                end = self.follow(end)

    def follow(self, end: int) -> int:
        """Wait for what comes next; returns where it ends."""
        while True:
            segment = self.hear()
            if segment.payload and segment.seq == end & 0xFFFFFFFF:
                return end + len(segment.payload)

    def fill_hole(self, size: int) -> int:
        """Of what has come a segment is lost, and comes again when three behind it were told; how much there is."""
        told = False
        while True:
            if not told and size >= 4 * MSS:
                edges = struct.pack("!II", *((self.rcv + at) & 0xFFFFFFFF for at in (MSS, size)))
                self.say(ACK, options=((1, b""), (1, b""), (tcp.OPTION_SACK, edges)))
                told = True
            segment = self.hear()
            if segment.seq == (self.rcv + size) & 0xFFFFFFFF:
                size += len(segment.payload)
            elif told and segment.seq == self.rcv:
                assert len(segment.payload) == MSS
                return size

    def close(self, peer: socket.socket, *, first: bool) -> None:
        """Both ways; `first`: the guest's end before the host's."""
        if first:
            self.say(FIN | ACK)
            self.wait_acknowledged()
            assert peer.recv(1) == b""
            peer.close()
        else:
            peer.shutdown(socket.SHUT_WR)
        while not (said := self.hear()).flags & FIN:
            pass
        self.rcv = said.seq + len(said.payload) + 1
        self.say(ACK if first else FIN | ACK)
        if not first:
            self.wait_acknowledged()
            assert peer.recv(1) == b""
            peer.close()


class Traffic:
    """The sockets of the host, and what goes on between them and the guest."""

    def __init__(self, kind: str) -> None:
        self.stack = contextlib.ExitStack()
        self.queue = min(BURST, int(QUEUE.read_text()))  # frames that may wait for the packet path
        stream = kind.startswith("stream")
        capture = os.open(os.devnull, os.O_WRONLY)
        self.stack.callback(os.close, capture)
        listeners = [one for version in (4, 6) for one in self.listen(version)]
        maker, pool = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        asker, requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        made = (
            f"from bucatini.datapath.socket_pool import make_sockets; make_sockets({maker.fileno()}, {asker.fileno()})"
        )
        self.maker = subprocess.Popen([sys.executable, "-c", made], pass_fds=[maker.fileno(), asker.fileno()])
        settings = {"capture": capture} if kind.endswith("capture") else {}
        self.subject = Subject(
            stream=stream, offload=True, flows=2048, maker=pool.fileno(), peek_off=not kind.endswith("reread"),
            listeners=listeners, **settings,
            descriptors=(pool.fileno(), capture, *(int(one["fd"]) for one in listeners)),
        )  # fmt: skip
        self.requests = requests
        for sock in (maker, asker, pool):
            sock.close()
        self.host = {version: self.serve(version) for version in (4, 6)}
        self.connections = {
            (version, sack): Connection(self.subject, version, 40000 + sack, PORTS["tcp"], sack=sack)
            for version in (4, 6) for sack in (False, True)
        }  # fmt: skip
        self.peers = {
            key: self.stack.enter_context(connection.open(self.host[key[0]].server))
            for key, connection in self.connections.items()
        }

    def close(self) -> None:
        self.subject.close()
        self.requests.close()
        self.maker.wait(10)
        self.stack.close()

    def socket(self, version: int, kind: int, port: int, buffer: int = 0) -> socket.socket:
        sock = self.stack.enter_context(socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, kind))
        if version == 6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        sock.bind((LOOPBACK[version], port))
        sock.settimeout(20)
        if kind == socket.SOCK_STREAM:
            sock.listen(64)
        return sock

    def serve(self, version: int) -> Host:
        return Host(
            self.socket(version, socket.SOCK_STREAM, PORTS["tcp"], 1 << 16),
            self.socket(version, socket.SOCK_DGRAM, PORTS["udp"], 1 << 20),
            self.socket(version, socket.SOCK_DGRAM, 7005, 1 << 20),
        )

    def listen(self, version: int) -> list[dict[str, object]]:
        """The forwards: over the tap, past it, and past it from the guest's namespace."""
        made: list[dict[str, object]] = []
        for protocol, kind in ((6, socket.SOCK_STREAM), (17, socket.SOCK_DGRAM)):
            for name in ("forward", "bypass", "bypass-guest"):
                sock = self.socket(version, kind, PORTS[name], 1 << 20)
                sock.setblocking(False)
                if protocol == 17 and version == 4:
                    sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
                elif protocol == 17:
                    sock.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVPKTINFO, 1)
                one: dict[str, object] = {
                    "fd": sock.fileno(), "protocol": protocol, "version": version, "port": PORTS[name], "to": TO,
                }  # fmt: skip
                if name != "forward":
                    one |= {
                        "to": PORTS["tcp"] if protocol == 6 else PORTS["udp"], "bypass": True,
                        "guest": name == "bypass-guest", "to_address": MAPPED_LOOPBACK[version].hex(),
                    }  # fmt: skip
                made.append(one)
        return made

    # A round

    def round(self) -> None:
        for version in (4, 6):
            self.ping(version)
            self.datagrams(version)
            self.forward_datagrams(version)
            for sack in (False, True):
                connection, peer = self.connections[version, sack], self.peers[version, sack]
                connection.read_at(peer, connection.stall())
                connection.disorder(peer)
                connection.pull(peer, lose=True)
            for number in range(8):
                self.open_and_close(version, 41000 + number, first=number % 2 == 0)
                self.forward_connection(version, first=number % 2 == 0)
            for name in ("bypass", "bypass-guest"):
                self.bypass_connection(version, PORTS[name])
                self.bypass_datagrams(version, PORTS[name])

    def all_at_once(self) -> None:
        """More than a round has at a time: every connection full, both ways, and pings whose answers nobody reads."""
        sizes = {key: connection.stall() for key, connection in self.connections.items()}
        for key, size in sizes.items():
            self.connections[key].read_at(self.peers[key], size)
            self.connections[key].pull_at_once(self.peers[key])
        ping = self.subject.frame(1, self.echo(4, 9, bytes(PINGED)))
        for _ in range(40):
            self.subject.end.sendall(ping)

    def echo(self, version: int, number: int, data: bytes) -> bytes:
        request = icmp.Echo(version, False, 77, number, data).emit()
        return request.emit() if version == 4 else request.emit(*ENDS[6])

    def ping(self, version: int) -> None:
        protocol = 1 if version == 4 else 58
        for number, size in enumerate((0, 56, 1400, 8000, PINGED)):
            data = bytes(size)
            self.subject.send(protocol, self.echo(version, number, data), version=version)
            answer = icmp.Icmp.parse(self.subject.receive(version, protocol), *(ENDS[6][::-1] if version == 6 else ()))
            assert icmp.Echo.parse(answer, version) == icmp.Echo(version, True, 77, number, data)

    def datagrams(self, version: int) -> None:
        sink, ends = self.host[version].sink, ENDS[version]
        datagram = self.subject.frame(17, Udp(5000, PORTS["udp"], bytes(MSS)).emit(*ends), version=version)
        with self.subject.stopped():
            for _ in range(self.queue):
                self.subject.end.sendall(datagram)
        for _ in range(self.queue):
            assert len(sink.recv(2000)) == MSS
        if not self.subject.stream:
            self.subject.send(17, Udp(5000, PORTS["udp"], bytes(SUPER)).emit(*ends), version=version, segment=MSS)
            for _ in range(SUPER // MSS - 1):
                assert len(sink.recv(2000)) == MSS
        else:
            self.subject.send(17, Udp(5000, PORTS["udp"], b"?").emit(*ends), version=version)
        _, peer = sink.recvfrom(2000)
        with self.subject.stopped():
            for _ in range(BURST):
                sink.sendto(bytes(MSS), peer)
        self.take_datagrams(version, BURST * MSS)
        # Nobody is there
        self.subject.send(17, Udp(5001, PORTS["closed"], b"?").emit(*ends), version=version)
        told = self.subject.receive(version, 1 if version == 4 else 58)
        assert told[0] == (icmp.UNREACHABLE if version == 4 else icmp.V6_UNREACHABLE)

    def take_datagrams(self, version: int, size: int) -> int:
        """So many bytes for the guest; returns the port that they come from."""
        while size:
            datagram = self.subject.receive(version, 17)
            size -= len(datagram) - 8
        return int.from_bytes(datagram[:2], "big")

    def forward_datagrams(self, version: int) -> None:
        asker = self.host[version].asker
        with self.subject.stopped():
            for _ in range(BURST):
                asker.sendto(bytes(MSS), (LOOPBACK[version], PORTS["forward"]))
        port = self.take_datagrams(version, BURST * MSS)
        for _ in range(4):
            self.subject.send(17, Udp(TO, port, bytes(100)).emit(*ENDS[version]), version=version)
        for _ in range(4):
            data, peer = asker.recvfrom(2000)
            assert (len(data), peer[1]) == (100, PORTS["forward"])

    def open_and_close(self, version: int, sport: int, *, first: bool) -> None:
        connection = Connection(self.subject, version, sport, PORTS["tcp"])
        peer = connection.open(self.host[version].server)
        connection.say(ACK | PSH, b"question")
        assert peer.recv(100) == b"question"
        peer.sendall(b"answer")
        while not (said := connection.hear()).payload:
            pass
        connection.rcv = said.seq + len(said.payload)
        connection.say(ACK)
        connection.close(peer, first=first)

    def forward_connection(self, version: int, *, first: bool) -> None:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as peer:
            peer.settimeout(20)
            peer.connect((LOOPBACK[version], PORTS["forward"]))
            connection = Connection(self.subject, version, TO, 0)
            connection.accept()
            connection.say(ACK | PSH, b"hello")
            assert peer.recv(100) == b"hello"
            connection.close(peer, first=first)

    def bypass_connection(self, version: int, port: int) -> None:
        with socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6) as near:
            near.settimeout(20)
            near.connect((LOOPBACK[version], port))
            far, _ = self.host[version].server.accept()
            with far:
                far.settimeout(20)
                for source, sink in ((near, far), (far, near)):
                    # The reader does not read for a while: the pipe is full
                    sent = 0
                    source.settimeout(0.02)
                    with contextlib.suppress(TimeoutError):
                        while True:
                            sent += source.send(bytes(1 << 16))
                    source.settimeout(20)
                    while sent:
                        sent -= len(sink.recv(1 << 20))
                near.shutdown(socket.SHUT_WR)
                assert far.recv(1) == b""

    def bypass_datagrams(self, version: int, port: int) -> None:
        asker, sink = self.host[version].asker, self.host[version].sink
        with self.subject.stopped():
            for _ in range(BURST):
                asker.sendto(bytes(MSS), (LOOPBACK[version], port))
        for _ in range(BURST):
            data, peer = sink.recvfrom(2000)
            assert len(data) == MSS
        with self.subject.stopped():
            for _ in range(BURST):
                sink.sendto(bytes(MSS), peer)
        for _ in range(BURST):
            assert len(asker.recv(2000)) == MSS


def main() -> None:
    kind, rounds = sys.argv[1], int(sys.argv[2])
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    with contextlib.suppress(OSError):  # before Linux 6 it is not there for users who are root in a namespace only
        QUEUE.write_text("512")
    # What waits in the kernel is no more than it takes, and no less than the window of the guest
    for name, usual in (("tcp_rmem", 262144), ("tcp_wmem", 65536)):
        Path(f"/proc/sys/net/ipv4/{name}").write_text(f"4096 {usual} 262144")
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    traffic = Traffic(kind)
    for _ in range(WARM_UP):
        traffic.round()
    traffic.all_at_once()
    traffic.subject.drain()
    traffic.round()
    for _ in range(5):  # the first ones fill caches of Python's
        before = traffic.subject.measure()
    for _ in range(rounds):
        traffic.round()
    after = traffic.subject.measure()
    traffic.close()
    sys.stdout.write(json.dumps({name: after[name] - before[name] for name in after if after[name] != before[name]}))


main()
