"""One end of a measurement, run inside a namespace: `python -m bucatini.bench.traffic ROLE ADDRESS PORT SIZE SECONDS`.

Servers print "ready" when their socket is bound and serve until they are ended; clients print one JSON object.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time
from array import array
from typing import TYPE_CHECKING

from bucatini.bench import load

if TYPE_CHECKING:
    from collections.abc import Callable

ROOM = 1 << 20  # round trips whose time is kept
ROUND_TRIP = {
    "tcp-pingpong": (socket.SOCK_STREAM, load.tcp_ping_pong),
    "udp-pingpong": (socket.SOCK_DGRAM, load.udp_ping_pong),
}
BUFFER = 4 << 20  # bytes, of a receiver of datagrams
PACE = 1  # Gbit/s of payload, of a stream that is held back to what most can carry


def address_of(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    """Family and socket address."""
    if ":" in host:
        return socket.AF_INET6, (host, port, 0, 0)
    return socket.AF_INET, (host, port)


def raw_address(host: str, port: int) -> bytes:
    """The struct sockaddr_in or sockaddr_in6."""
    family = (socket.AF_INET6 if ":" in host else socket.AF_INET).to_bytes(2, sys.byteorder)
    if ":" in host:
        return family + port.to_bytes(2, "big") + bytes(4) + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    return family + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def set_timeout(sock: socket.socket, seconds: float) -> None:
    """Set the kernel's receive timeout (Python's own would make the socket non-blocking)."""
    whole = int(seconds)
    value = whole.to_bytes(8, sys.byteorder) + int((seconds - whole) * 1e6).to_bytes(8, sys.byteorder)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def received(fd: int, seconds: float) -> dict[str, float]:
    """Receive for a time; what came."""
    count, size, took = load.udp_sink(fd, seconds)
    return {"per_second": count / took, "bytes": size}


def blast(fd: int, size: int, seconds: float) -> dict[str, float]:
    """Send datagrams as fast as the socket takes them."""
    count = load.udp_blast(fd, size, seconds)
    return {"per_second": count / seconds, "bytes": count * size}


def pace(fd: int, size: int, seconds: float) -> dict[str, float]:
    """Send datagrams at `PACE`."""
    count = load.udp_paced(fd, size, seconds, PACE * 1e9)
    return {"per_second": count / seconds, "bytes": count * size}


SENDERS = {"udp-send": blast, "udp-paced": pace}


# Servers


def bound(kind: int, host: str, port: int) -> socket.socket:
    """A socket bound to the address, listening where that has a meaning."""
    family, address = address_of(host, port)
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(4096)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
    print("ready", flush=True)
    return sock


def serve_echo(host: str, port: int, size: int, seconds: float) -> None:
    sock = bound(socket.SOCK_STREAM, host, port)
    while True:
        peer, _ = sock.accept()
        with peer:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            load.tcp_echo(peer.fileno())


def serve_requests(host: str, port: int, size: int, seconds: float) -> None:
    sock = bound(socket.SOCK_STREAM, host, port)
    load.serve_requests(sock.fileno())


def serve_held(host: str, port: int, size: int, seconds: float) -> None:
    """Accept and keep."""
    sock = bound(socket.SOCK_STREAM, host, port)
    kept = []
    while True:
        kept.append(sock.accept()[0])


def serve_datagrams(host: str, port: int, size: int, seconds: float) -> None:
    sock = bound(socket.SOCK_DGRAM, host, port)
    load.udp_echo(sock.fileno())


def serve_sink(host: str, port: int, size: int, seconds: float) -> None:
    sock = bound(socket.SOCK_DGRAM, host, port)
    sock.recv(65536)
    set_timeout(sock, 0.5)
    print(json.dumps(received(sock.fileno(), seconds)), flush=True)


def serve_sender(role: str) -> Callable[[str, int, int, float], None]:
    """A server that sends datagrams to the first who asks."""

    def serve(host: str, port: int, size: int, seconds: float) -> None:
        sock = bound(socket.SOCK_DGRAM, host, port)
        _, source = sock.recvfrom(65536)
        sock.connect(source)
        print(json.dumps(SENDERS[role](sock.fileno(), size, seconds)), flush=True)

    return serve


SERVERS: dict[str, Callable[[str, int, int, float], None]] = {
    "echo": serve_echo,
    "requests": serve_requests,
    "held": serve_held,
    "datagrams": serve_datagrams,
    "sink": serve_sink,
    "blast": serve_sender("udp-send"),
    "paced": serve_sender("udp-paced"),
}


# Clients


def ping_pong(role: str, host: str, port: int, size: int, seconds: float) -> dict[str, float]:
    """Round trips per second, and their distribution in microseconds."""
    kind, run = ROUND_TRIP[role]
    family, address = address_of(host, port)
    samples = array("I", bytes(4 * ROOM))
    with socket.socket(family, kind) as sock:
        sock.connect(address)
        if kind == socket.SOCK_STREAM:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        else:
            set_timeout(sock, 0.5)
        count = run(sock.fileno(), size, seconds, samples)
    times = sorted(samples[: min(count, ROOM)])
    if not times:
        raise RuntimeError("no round trip")
    at = len(times)
    return {"per_second": count / seconds, "p50": times[at // 2] / 1000, "p99": times[at * 99 // 100] / 1000}


def hold(host: str, port: int, count: int) -> None:
    """Open `count` connections, say so, and keep them until standard input ends."""
    family, address = address_of(host, port)
    selector = selectors.DefaultSelector()
    kept: list[socket.socket] = []
    open_, begin = 0, time.monotonic()
    while open_ < count and time.monotonic() - begin < 60:
        while len(kept) < count and len(kept) - open_ < 64:
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            sock.connect_ex(address)
            selector.register(sock, selectors.EVENT_WRITE)
            kept.append(sock)
        for key, _ in selector.select(1):
            sock = key.fileobj  # type: ignore[assignment]
            selector.unregister(sock)
            if sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                print(json.dumps({"open": open_}), flush=True)
                return
            open_ += 1
    print(json.dumps({"open": open_, "seconds": time.monotonic() - begin}), flush=True)
    sys.stdin.read()


def measure(role: str, host: str, port: int, size: int, seconds: float) -> dict[str, float]:
    """Run a client."""
    family, address = address_of(host, port)
    if role in ROUND_TRIP:
        return ping_pong(role, host, port, size, seconds)
    if role in ("crr", "queries"):
        raw = raw_address(host, port)
        if role == "crr":
            count, failed = load.connect_request_response(raw, family, seconds)
        else:
            count, failed = load.udp_queries(raw, family, size, seconds)
        return {"per_second": count / seconds, "failed": failed}
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        set_timeout(sock, 0.5)
        if role in SENDERS:
            return SENDERS[role](sock.fileno(), size, seconds)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        sock.send(b"x")
        return received(sock.fileno(), seconds)


def main() -> None:
    role, host, port, size, seconds = sys.argv[1:]
    if role in SERVERS:
        SERVERS[role](host, int(port), int(size), float(seconds))
    elif role == "hold":
        hold(host, int(port), int(size))
    else:
        print(json.dumps(measure(role, host, int(port), int(size), float(seconds))))


if __name__ == "__main__":
    main()
