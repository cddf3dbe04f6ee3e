"""`bucatini demo`: a network namespace for somebody who has never seen one, explained while it is used.

This is the host's side: it starts a web server, a source and a sink of bytes on the loopback of the host, then `pasta`
with `bucatini.cli.demo_guest` as the command, which does the rest from inside and on a terminal ends as a shell. The
servers are reached through the address of the gateway, which stands for the host's loopback: so the demo needs nothing
but lo. When the command ends the namespace is gone; nothing is left behind on any way out.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Self

from bucatini.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Callable

USAGE = """Usage: bucatini demo [--no-shell]

Makes a network namespace with pasta, shows its addresses, fetches a page from a web server on this host over IPv4 and
IPv6, measures throughput both ways for a second each, and on a terminal leaves you in a shell inside it.

  --no-shell   leave out the shell
  --help       this text
"""

PAGE = b"Hello from the host! This page left it over its loopback interface."
BUFFER = 1 << 20  # bytes

LOOPBACK = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


def main(arguments: list[str]) -> int:
    """Run with the arguments after "demo"; the exit status."""
    if arguments in (["--help"], ["-h"]):
        print(USAGE, end="")
        return 0
    if arguments not in ([], ["--no-shell"]):
        print(f"bucatini demo: unexpected argument {arguments[-1]!r}\n\n{USAGE}", end="", file=sys.stderr)
        return 1
    shell = not arguments and sys.stdin.isatty() and sys.stdout.isatty()
    who = "root" if os.geteuid() == 0 else "an ordinary user, without any privilege"
    print(f"Bucatini gives a network namespace full connectivity. You run it as {who}.\n", flush=True)
    with Servers() as servers:
        return _run(servers, shell)


class Servers:
    """The host's side: a page, zeros without end, and somebody who takes everything, on one port each."""

    def __init__(self) -> None:
        self._listeners: list[socket.socket] = []
        self.page = self._open(_give_page)
        self.source = self._open(_give_zeros)
        self.sink = self._open(_take_all)

    def _open(self, handler: Callable[[socket.socket], None]) -> int:
        """Listen on the loopback of both versions, on the same port, which is returned."""
        port = 0
        for family, address in LOOPBACK.items():
            try:
                listener = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                continue  # a kernel without IPv6
            try:
                if family == socket.AF_INET6:
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind((address, port))
                listener.listen()
            except OSError:
                # No IPv6 on the loopback (or, hardly ever, its port is taken): IPv4 alone will do.
                listener.close()
                if port == 0:
                    raise
                continue
            port = listener.getsockname()[1]
            self._listeners.append(listener)
            threading.Thread(target=_accept, args=(listener, handler), daemon=True).start()
        return port

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for listener in self._listeners:
            listener.close()


def _accept(listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return  # closed: the demo is over
        threading.Thread(target=_serve, args=(connection, handler), daemon=True).start()


def _serve(connection: socket.socket, handler: Callable[[socket.socket], None]) -> None:
    with connection:
        try:
            handler(connection)
        except OSError:
            return  # the client has gone: all that a demo needs to know


def _give_page(connection: socket.socket) -> None:
    connection.settimeout(10)
    request = b""
    while b"\r\n\r\n" not in request and len(request) < 8192:
        data = connection.recv(4096)
        if not data:
            return
        request += data
    head = f"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {len(PAGE) + 1}\r\n\r\n"
    connection.sendall(head.encode() + PAGE + b"\n")


def _give_zeros(connection: socket.socket) -> None:
    zeros = memoryview(bytes(BUFFER))
    while True:
        connection.sendall(zeros)


def _take_all(connection: socket.socket) -> None:
    """Count what comes; the answer at the end is the count."""
    buffer = bytearray(BUFFER)
    taken = 0
    while count := connection.recv_into(buffer):
        taken += count
    connection.sendall(b"%d\n" % taken)


def pasta_command() -> list[str]:
    """How to start the pasta that belongs to this package: another one may come first in PATH."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "pasta")
    if os.access(beside, os.X_OK):
        return [beside]
    return [sys.executable, "-c", "import sys; from bucatini.cli.pasta import main; sys.exit(main())"]


def _run(servers: Servers, shell: bool) -> int:
    with tempfile.TemporaryDirectory(prefix="bucatini-demo-") as directory:
        # The guest's first act is to write into this: it is the moment from which the network can be used.
        # As root it is somebody else's: pasta becomes nobody before it makes the namespace.
        os.chmod(directory, 0o711)  # noqa: S103
        ready = os.path.join(directory, "ready")
        os.mkfifo(ready)
        os.chmod(ready, 0o622)  # noqa: S103
        descriptor = os.open(ready, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        times = os.path.join(directory, "time")
        guest = [sys.executable, "-m", "bucatini.cli.demo_guest"]
        ports = [str(servers.page), str(servers.source), str(servers.sink)]
        script = 'echo > "$1"; shift; exec "$@"'
        command = ["sh", "-c", script, "sh", ready, *guest, times, *ports, "shell" if shell else "leave"]
        options = []
        if os.geteuid() == 0 and not (_open_to_all(sys.executable) and _open_to_all(__file__)):
            print("(This copy of Bucatini is closed to other users, so pasta stays root instead of becoming nobody.)\n")
            options = ["--runas", "0"]
        sys.stdout.flush()
        start = time.monotonic()
        try:
            process = subprocess.Popen([*pasta_command(), *options, "--config-net", "--quiet", "--", *command])
        except OSError as error:
            raise HostError("start pasta", error.errno or 0) from error
        try:
            if _wait_ready(process, descriptor):
                # Renamed into place, so that it is complete when the guest sees it.
                with open(f"{times}.new", "w") as file:
                    file.write(f"{time.monotonic() - start}\n")
                os.chmod(f"{times}.new", 0o644)
                os.rename(f"{times}.new", times)
            status = process.wait()
        finally:
            os.close(descriptor)
            if process.poll() is None:
                process.terminate()
                process.wait()
    if shell:
        print("\nYou have left the namespace, and with its last process it is gone.")
        return 0
    if status != 0:
        print("\nThe demo did not succeed. 'bucatini doctor' tells what this host allows.", file=sys.stderr)
        return 1
    print("\nThat was the last process of the namespace: it is gone, and nothing is left of it.")
    return 0


def _open_to_all(path: str) -> bool:
    """Whether everybody may read a file and pass the directories above it, those of links included."""
    for file in {os.path.abspath(path), os.path.realpath(path)}:
        if not os.stat(file).st_mode & 0o004:
            return False
        above = os.path.dirname(file)
        while above != "/":
            if not os.stat(above).st_mode & 0o001:
                return False
            above = os.path.dirname(above)
    return True


def _wait_ready(process: subprocess.Popen[bytes], descriptor: int) -> bool:
    """Wait for the guest's first line. False: pasta ended before."""
    while process.poll() is None:
        readable, _, _ = select.select([descriptor], [], [], 0.05)
        if readable and os.read(descriptor, 100):
            return True
    return False
