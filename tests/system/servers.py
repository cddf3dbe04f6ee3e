"""Handlers for `Namespace.serve_tcp` that speak a protocol."""

import hashlib
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler

from system.namespaces import receive


def http(pages: dict[str, bytes]) -> Callable[[socket.socket], None]:
    """A web server: GET gives a page, PUT answers with the SHA-256 of the body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            page = pages.get(self.path)
            self._answer(200 if page is not None else 404, page or b"")

        def do_PUT(self) -> None:
            digest = hashlib.sha256()
            left = int(self.headers["Content-Length"])
            while left and (data := self.rfile.read(min(left, 1 << 20))):
                digest.update(data)
                left -= len(data)
            self._answer(200, digest.hexdigest().encode())

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Say nothing."""

    def handle(connection: socket.socket) -> None:
        Handler(connection, connection.getpeername(), None)  # type: ignore[arg-type]

    return handle


def source(data: bytes) -> Callable[[socket.socket], None]:
    """Sends `data` once the client has ended its side."""

    def handle(connection: socket.socket) -> None:
        receive(connection)
        connection.sendall(data)

    return handle


def sink(digests: list[str]) -> Callable[[socket.socket], None]:
    """Ends its own side first, then takes what comes and notes its SHA-256."""

    def handle(connection: socket.socket) -> None:
        connection.shutdown(socket.SHUT_WR)
        digests.append(hashlib.sha256(receive(connection)).hexdigest())

    return handle
