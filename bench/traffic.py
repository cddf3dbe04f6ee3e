"""One end of a measurement, run inside a namespace: `traffic.py ROLE ADDRESS PORT [SIZE] [SECONDS]`.

Servers print "ready" when their socket is bound and serve until they are ended; clients print one JSON object.
"""

import json
import socket
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import load


def address_of(host: str, port: int) -> tuple[int, tuple[object, ...]]:
    """Return family and socket address."""
    if ":" in host:
        return socket.AF_INET6, (host, port, 0, 0)
    return socket.AF_INET, (host, port)


def raw_address(host: str, port: int) -> bytes:
    """Return the struct sockaddr_in or sockaddr_in6."""
    family = (socket.AF_INET6 if ":" in host else socket.AF_INET).to_bytes(2, sys.byteorder)
    if ":" in host:
        return family + port.to_bytes(2, "big") + bytes(4) + socket.inet_pton(socket.AF_INET6, host) + bytes(4)
    return family + port.to_bytes(2, "big") + socket.inet_aton(host) + bytes(8)


def serve(role: str, host: str, port: int, size: int, seconds: float) -> None:
    """Run a server on one address."""
    kind = socket.SOCK_STREAM if role in ("echo", "requests") else socket.SOCK_DGRAM
    family, address = address_of(host, port)
    sock = socket.socket(family, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen(4096)
    print("ready", flush=True)
    if role == "requests":
        load.serve_requests(sock.fileno())
    elif role == "echo":
        while True:
            peer, _ = sock.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                load.tcp_echo(peer.fileno())
    elif role == "udpecho":
        load.udp_echo(sock.fileno())
    elif role == "sink":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        _, source = sock.recvfrom(65536)
        sock.settimeout(None)
        set_timeout(sock, 0.5)
        print(json.dumps(dict(zip(("count", "bytes"), load.udp_sink(sock.fileno(), seconds), strict=True))), flush=True)
    elif role == "blast":
        _, source = sock.recvfrom(65536)
        sock.connect(source)
        print(json.dumps({"count": load.udp_blast(sock.fileno(), size, seconds)}), flush=True)


def set_timeout(sock: socket.socket, seconds: float) -> None:
    """Set the kernel's receive timeout (Python's own would make the socket non-blocking)."""
    whole = int(seconds)
    value = whole.to_bytes(8, sys.byteorder) + int((seconds - whole) * 1e6).to_bytes(8, sys.byteorder)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, value)


def measure(role: str, host: str, port: int, size: int, seconds: float) -> dict[str, float]:
    """Run a client."""
    if role == "crr":
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        count, failed = load.connect_request_response(raw_address(host, port), family, seconds)
        return {"per_second": count / seconds, "failed": failed}
    family, address = address_of(host, port)
    kind = socket.SOCK_STREAM if role == "pingpong" else socket.SOCK_DGRAM
    sock = socket.socket(family, kind)
    sock.connect(address)
    if role == "pingpong":
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return {"per_second": load.tcp_ping_pong(sock.fileno(), size, seconds) / seconds}
    set_timeout(sock, 0.5)
    if role == "udppingpong":
        return {"per_second": load.udp_ping_pong(sock.fileno(), size, seconds) / seconds}
    if role == "udpsend":
        return {"sent": load.udp_blast(sock.fileno(), size, seconds) / seconds}
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.send(b"x")
    count, total = load.udp_sink(sock.fileno(), seconds)
    return {"per_second": count / seconds, "bytes": total}


def main() -> None:
    """Run one end."""
    role, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    size = int(sys.argv[4]) if len(sys.argv) > 4 else 1
    seconds = float(sys.argv[5]) if len(sys.argv) > 5 else 1.0
    if role in ("echo", "requests", "udpecho", "sink", "blast"):
        serve(role, host, port, size, seconds)
    else:
        print(json.dumps(measure(role, host, port, size, seconds)))


if __name__ == "__main__":
    main()
