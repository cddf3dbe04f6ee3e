"""The guest's end of a link that is a pair of sockets, with the whole packet path running behind it.

The guest is 192.0.2.15; 192.0.2.1 stands for the host's loopback, where the servers of a test are.
"""

import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from bucatini.datapath.loop import DataPath
from bucatini.wire import ipv4, tcp
from bucatini.wire.ethernet import ETHERTYPE_IPV4, Ethernet

if TYPE_CHECKING:
    from bucatini.datapath.loop import SlowPath

GUEST_MAC, OUR_MAC = b"\x02\0\0\0\0\x0f", b"\x9a\x55\x9a\x55\x9a\x55"
GUEST, HOST = bytes([192, 0, 2, 15]), bytes([192, 0, 2, 1])
VNET = 10  # bytes of virtio-net header
FLOWS = 4


def mapped(address: bytes) -> bytes:
    return bytes(10) + b"\xff\xff" + address


def wait(condition: Callable[[], bool], seconds: float = 5) -> None:
    """Until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class NoServices:
    def on_frame(self, frame: bytes, now: int) -> list[bytes]:
        raise RuntimeError("a slow path that fails")

    def next_timeout(self) -> int | None:
        return None

    def on_timeout(self, now: int) -> list[bytes]:
        return []


class Link:
    """The guest's end of the link, and the packet path running behind it."""

    kind = socket.SOCK_SEQPACKET

    def __init__(
        self, capture: int = -1, flows: int = FLOWS, slow: "SlowPath | None" = None, *, peek_off: bool = True,
        ports: int = 28232,
    ) -> None:  # fmt: skip
        self.end, self.other = socket.socketpair(socket.AF_UNIX, self.kind)
        self.end.settimeout(5)
        self.other.setblocking(False)
        self.path = DataPath(flows=flows, listeners=1)
        self.path.settings(
            mtu=1500, our_mac=OUR_MAC, no_tcp=False, no_udp=False, no_icmp=False, freebind=False, peek_off=peek_off,
            ports=ports,
        )  # fmt: skip
        self.path.family(
            4, guest=mapped(GUEST), learn=False, ours=mapped(HOST), map_host_loopback=mapped(HOST), host=mapped(HOST)
        )
        self.open()
        if capture >= 0:
            self.path.capture(capture)
        self.path.set_slow_path(slow or NoServices())
        self.waker, wake = socket.socketpair()
        self.wake = wake
        self.path.watch(wake.fileno(), self.path.stop)
        self.thread = threading.Thread(target=self.path.run)
        self.thread.start()

    def open(self) -> None:
        self.path.open_tap(self.other.fileno(), 0)

    def close(self) -> None:
        self.waker.send(b"x")
        self.thread.join(5)
        assert not self.thread.is_alive()
        for sock in (self.end, self.other, self.waker, self.wake):
            sock.close()

    def send(self, protocol: int, payload: bytes, **fields: int) -> None:
        packet = ipv4.IPv4(GUEST, HOST, protocol, payload, **fields).emit()  # type: ignore[arg-type]
        self.send_frame(Ethernet(OUR_MAC, GUEST_MAC, ETHERTYPE_IPV4, packet).emit())

    def send_frame(self, frame: bytes) -> None:
        self.end.send(bytes(VNET) + frame)

    def receive_frame(self) -> bytes:
        return self.end.recv(70000)[VNET:]

    def receive(self) -> ipv4.IPv4:
        ethernet = Ethernet.parse(self.receive_frame())
        assert (ethernet.dst, ethernet.src) == (GUEST_MAC, OUR_MAC)
        return ipv4.IPv4.parse(ethernet.payload)

    def segment(self, sport: int, dport: int, flags: int, seq: int, ack: int = 0, payload: bytes = b"") -> None:
        self.send(6, tcp.Tcp(sport, dport, seq, ack, flags, 65535, payload).emit(GUEST, HOST))

    def receive_segment(self) -> tcp.Tcp:
        packet = self.receive()
        assert packet.protocol == ipv4.PROTOCOL_TCP
        return tcp.Tcp.parse(packet.payload)


def count(link: Link, name: str) -> int:
    """One of the counters."""
    return link.path.counters()[name]


class StreamLink(Link):
    """The same over a stream socket: each frame behind its length."""

    kind = socket.SOCK_STREAM

    def open(self) -> None:
        self.lost: list[tuple[int, int]] = []
        self.path.open_stream(lambda number, size: self.lost.append((number, size)))
        self.path.attach(self.other.fileno())

    def send_frame(self, frame: bytes) -> None:
        self.end.sendall(len(frame).to_bytes(4, "big") + frame)

    def receive_frame(self) -> bytes:
        return self._exactly(int.from_bytes(self._exactly(4), "big"))

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            parts.append(self.end.recv(size))
            assert parts[-1]
            size -= len(parts[-1])
        return b"".join(parts)
