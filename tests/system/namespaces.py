"""Network namespaces as a test sees them: a place to open sockets in and to run programs in.

A socket belongs for ever to the namespace that it was made in, so a test holds sockets of the guest, the host and
the server side by side: a short-lived thread enters the namespace and makes them. That is why servers are ready when
`Namespace.listen` returns, with nothing to wait for.
"""

import contextlib
import ctypes
import os
import select
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

from system.users import ROOT, User

CLONE_NEWNET = 0x40000000  # linux/sched.h
DEADLINE = 10.0  # seconds in which anything local must have happened

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def wait_until(condition: Callable[[], T], what: str, timeout: float = DEADLINE) -> T:
    """Look again and again until `condition` holds; its value. Fails after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while True:
        if value := condition():
            return value
        if time.monotonic() > deadline:
            message = f"not within {timeout:g} s: {what}"
            raise AssertionError(message)
        time.sleep(0.01)


def alive(pid: int) -> bool:
    """Whether there is a process `pid` that is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False


class Namespace:
    """A network namespace, by a path that names it."""

    def __init__(self, path: str, enter: Sequence[str] = ()) -> None:
        self.path = path
        self._enter = tuple(enter) or ("nsenter", f"--net={path}")
        self._cleanup = contextlib.ExitStack()

    # Sockets

    def inside(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread that lives in this namespace."""
        results: list[T] = []
        failures: list[BaseException] = []

        def body() -> None:
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), f"setns {self.path}")
                finally:
                    os.close(descriptor)
                results.append(function())
            except BaseException as error:
                failures.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        return results[0]

    def open_socket(self, address: str, kind: int = socket.SOCK_STREAM, *, timeout: float = DEADLINE) -> socket.socket:
        """A socket of the family of `address`, closed at the end of the test."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.inside(lambda: socket.socket(family, kind))
        made.settimeout(timeout)
        self._cleanup.callback(made.close)
        return made

    def connect(
        self,
        address: str,
        port: int,
        *,
        kind: int = socket.SOCK_STREAM,
        source: str | None = None,
        timeout: float = DEADLINE,
    ) -> socket.socket:
        """A connected socket."""
        made = self.open_socket(address, kind, timeout=timeout)
        if source is not None:
            made.bind((source, 0))
        # An address with a scope (fe80::1%eth0) is only known inside.
        target = self.inside(lambda: socket.getaddrinfo(address, port, made.family, kind)[0][4])
        made.connect(target)
        return made

    def listen(self, address: str, port: int = 0, *, backlog: int = 256) -> socket.socket:
        """A listening TCP socket."""
        made = self.open_socket(address)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(backlog)
        return made

    def bind(self, address: str, port: int = 0) -> socket.socket:
        """A bound UDP socket."""
        made = self.open_socket(address, socket.SOCK_DGRAM)
        made.bind((address, port))
        return made

    # Servers

    def serve_tcp(self, address: str, handler: Callable[[socket.socket], None], port: int = 0) -> "TcpServer":
        """A TCP server that runs `handler` in a thread of its own for each connection."""
        return self._cleanup.enter_context(TcpServer(self.listen(address, port), handler))

    def serve_udp(self, address: str, handler: Callable[[bytes, Any], bytes | None], port: int = 0) -> "UdpServer":
        """A UDP server that answers each datagram with what `handler` makes of it and its source."""
        return self._cleanup.enter_context(UdpServer(self.bind(address, port), handler))

    # Programs

    def command(self, arguments: Sequence[str], user: User = ROOT) -> list[str]:
        """The command line that runs `arguments` here as `user`."""
        return [*self._enter, *user.prefix, *arguments]

    def run(
        self, *arguments: str, user: User = ROOT, check: bool = True, timeout: float = 60, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program here to its end; its output is captured as text."""
        result = subprocess.run(
            self.command(arguments, user), check=False, capture_output=True, text=True, timeout=timeout, **options
        )
        if check and result.returncode != 0:
            message = f"{' '.join(arguments)}: exit status {result.returncode}\n{result.stdout}{result.stderr}"
            raise AssertionError(message)
        return result

    def start(
        self, *arguments: str, tcp: int | None = None, udp: int | None = None, user: User = ROOT, **options: Any
    ) -> "subprocess.Popen[str]":
        """Start a program here; with `tcp` or `udp`, return when it listens on that port. Ended with the test."""
        streams = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.STDOUT,
            "text": True,
        } | options
        process: subprocess.Popen[str] = subprocess.Popen(self.command(arguments, user), **streams)
        self._cleanup.callback(end, process)
        for port, table, state in ((tcp, "tcp", "0A"), (udp, "udp", "07")):
            if port is not None:
                wait_until(lambda: self._bound(process, table, state, port), f"{arguments[0]} listening on port {port}")
        return process

    def _bound(self, process: "subprocess.Popen[str]", table: str, state: str, port: int) -> bool:
        if process.poll() is not None:
            output = process.stdout.read() if process.stdout else ""
            message = f"{process.args}: ended with status {process.returncode}\n{output}"
            raise AssertionError(message)
        lines = self.inside(
            lambda: [
                line.split()
                for name in (table, f"{table}6")
                for line in Path(f"/proc/thread-self/net/{name}").read_text().splitlines()[1:]
            ]
        )
        return any(line[1].endswith(f":{port:04X}") and line[3] == state for line in lines)

    def sysctl(self, **values: object) -> None:
        """Set sysctls, dots written as two underscores: net__ipv4__ip_forward=1."""

        def write() -> None:
            for name, value in values.items():
                Path("/proc/sys", *name.split("__")).write_text(f"{value}\n")

        self.inside(write)

    def close(self) -> None:
        """End all programs and servers here and close all sockets."""
        self._cleanup.close()


class NamedNamespace(Namespace):
    """A namespace made by `ip netns add`, with a resolv.conf of its own."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._etc = Path("/etc/netns", name)
        super().__init__(f"/run/netns/{name}", ("ip", "netns", "exec", name))

    def __enter__(self) -> Self:
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        self._etc.mkdir(parents=True)
        self.resolv_conf("")
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
        shutil.rmtree(self._etc, ignore_errors=True)
        subprocess.run(["ip", "netns", "delete", self.name], check=True)

    def resolv_conf(self, text: str) -> None:
        """What programs started here from now on read as /etc/resolv.conf."""
        (self._etc / "resolv.conf").write_text(text)

    def ip(self, *lines: str) -> None:
        """Configure this namespace: each line is a command of ip(8)."""
        self.run("ip", "-batch", "-", input="\n".join(lines) + "\n")


def stop(process: "subprocess.Popen[str]") -> None:
    """SIGTERM, after five seconds SIGKILL."""
    process.terminate()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def end(process: "subprocess.Popen[str]") -> None:
    """Stop a process if it still runs, and close its pipes."""
    if process.poll() is None:
        stop(process)
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()


class _Server:
    """A thread that serves a socket until it is told to stop."""

    def __init__(self, listener: socket.socket) -> None:
        self.listener = listener
        self.port: int = listener.getsockname()[1]
        self.peers: list[tuple[str, int]] = []  # who came, in order
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Any:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.close()
        self._thread.join(DEADLINE)
        self._stopped.close()
        self.listener.close()

    def _loop(self) -> None:
        while True:
            ready, _, _ = select.select([self.listener, self._stopped], [], [])
            if self._stopped in ready:
                return
            self._serve()

    def _serve(self) -> None:
        raise NotImplementedError


class TcpServer(_Server):
    """Accepts connections; each is handled, and then closed, by a thread of its own."""

    def __init__(self, listener: socket.socket, handler: Callable[[socket.socket], None]) -> None:
        super().__init__(listener)
        self._handler = handler
        self._connections: list[tuple[threading.Thread, socket.socket]] = []
        self.errors: list[OSError] = []  # what handlers ended with

    def _serve(self) -> None:
        connection, peer = self.listener.accept()
        connection.settimeout(60)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.peers.append(peer[:2])
        thread = threading.Thread(target=self._handle, args=(connection,), daemon=True)
        self._connections.append((thread, connection))
        thread.start()

    def _handle(self, connection: socket.socket) -> None:
        try:
            self._handler(connection)
        except OSError as error:
            self.errors.append(error)
        finally:
            connection.close()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        for thread, connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE)


class UdpServer(_Server):
    """Answers datagrams."""

    def __init__(self, listener: socket.socket, handler: Callable[[bytes, Any], bytes | None]) -> None:
        super().__init__(listener)
        self._handler = handler

    def _serve(self) -> None:
        # Errors of earlier answers (ICMP) are reported here; they are the client's affair.
        with contextlib.suppress(ConnectionRefusedError):
            data, peer = self.listener.recvfrom(1 << 16)
            self.peers.append(peer[:2])
            answer = self._handler(data, peer)
            if answer is not None:
                self.listener.sendto(answer, peer)


def echo(connection: socket.socket) -> None:
    """TCP handler: what comes goes back, and so does the end."""
    while data := connection.recv(1 << 16):
        connection.sendall(data)


def receive(connection: socket.socket, limit: int | None = None) -> bytes:
    """Everything up to the end of the stream, or `limit` bytes of it."""
    parts = []
    while limit is None or limit > 0:
        data = connection.recv(min(1 << 20, limit) if limit is not None else 1 << 20)
        if not data:
            break
        parts.append(data)
        if limit is not None:
            limit -= len(data)
    return b"".join(parts)


def descendants(pid: int) -> Iterator[int]:
    """All processes below `pid`."""
    try:
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return
    for child in children:
        yield child
        yield from descendants(child)
