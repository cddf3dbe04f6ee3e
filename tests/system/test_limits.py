"""What happens at the limits: refused in a stated way, and served again afterwards."""

import contextlib
import os
import resource
import socket
import subprocess
import time

import pytest

from system.namespaces import echo
from system.quiet import assert_quiet, nearly_idle
from system.topology import ANY, HOST4, SERVER4, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged


def test_out_of_descriptors_connections_are_refused_and_later_ones_served(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = f"""
import socket
opened = []
refused = 0
for _ in range(60):
    try:
        opened.append(socket.create_connection(('{SERVER4}', {server.port}), 5))
    except ConnectionRefusedError:
        refused += 1
opened[0].sendall(b'x')
assert opened[0].recv(1) == b'x'
for connection in opened:
    connection.close()
for _ in range(50):
    try:
        again = socket.create_connection(('{SERVER4}', {server.port}), 5)
    except ConnectionRefusedError:
        continue
    again.sendall(b'y')
    assert again.recv(1) == b'y'
    break
else:
    raise SystemExit('never served again')
print(len(opened), refused)
"""
    command = ["prlimit", "--nofile=40:40", *pasta.argv("-q", "--config-net", command=["python3", "-c", code])]
    try:
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    finally:
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == before
    assert result.returncode == 0, result.stderr
    opened, refused = map(int, result.stdout.split())
    assert opened > 5
    assert refused > 5
    assert opened + refused == 60


NONE = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")


@pytest.mark.parametrize("options", [NONE, ()], ids=["none", "auto"])
def test_a_limit_of_4096_descriptors_is_for_connections(pasta: Pasta, options: tuple[str, ...]) -> None:
    """As the kernel gives by default: ports that forward themselves have a part of it, if there are any."""
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    log = pasta.workspace / "log"
    code = f"""
import selectors, socket
opened = []
for _ in range(200):
    opened.append(socket.socket())
    opened[-1].setblocking(False)
    opened[-1].connect_ex(('{SERVER4}', {server.port}))
for connection in opened:
    connection.settimeout(5)
    with selectors.DefaultSelector() as selector:
        selector.register(connection, selectors.EVENT_WRITE)
        assert selector.select(5)
    connection.sendall(b'x')
print(sum(connection.recv(1) == b'x' for connection in opened))
"""
    argv = pasta.argv(
        "--config-net", "--stats", "3600", "--log-file", str(log), *options, command=["python3", "-c", code]
    )
    command = ["prlimit", "--nofile=4096:4096", *argv]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert result.stdout == "200\n"
    assert "tcp_opened_guest 200" in log.read_text()
    assert "tcp_half_open_evicted" not in log.read_text()


@pytest.mark.parametrize("direction", ["out", "in"])
def test_a_table_that_is_full_costs_nothing(pasta: Pasta, direction: str) -> None:
    """T27: connections that nobody can serve wait for nothing, and those that knock once more are not a storm."""
    guest = pasta.guest("-q", "--config-net", "-t", "8080:80")
    guest.settle()
    pasta.topology.host.run("prlimit", f"--pid={guest.pid}", "--nofile=60:60", user=pasta.user)
    if direction == "out":
        server = pasta.topology.server.serve_tcp(SERVER4, echo)
        client, address, port = guest, SERVER4, server.port
    else:
        guest.serve_tcp(ANY[4], echo, port=80)
        client, address, port = pasta.topology.server, HOST4, 8080

    def served() -> socket.socket | None:
        with contextlib.suppress(ConnectionError):
            connection = client.connect(address, port)
            connection.sendall(b"x")
            if connection.recv(1) == b"x":
                return connection
        return None

    open_ = [connection for connection in [served() for _ in range(80)] if connection is not None]
    assert 5 < len(open_) < 60
    assert_quiet(guest.pid, 2)
    with nearly_idle(guest.pid):
        for _ in range(20):
            assert served() is None
            time.sleep(0.1)
    for connection in open_:
        connection.sendall(b"y")
        assert connection.recv(1) == b"y"


def test_a_forward_uses_the_last_descriptor_that_there_is(pasta: Pasta) -> None:
    guest = pasta.guest("-q", "--config-net", "-t", "8080:80", "-u", "none", "-T", "none", "-U", "none")
    guest.settle()
    guest.serve_tcp(ANY[4], echo, port=80)
    limit = max(int(fd) for fd in os.listdir(f"/proc/{guest.pid}/fd")) + 4
    free = limit - guest.descriptors()
    pasta.topology.host.run("prlimit", f"--pid={guest.pid}", f"--nofile={limit}:{limit}", user=pasta.user)
    served = []
    for _ in range(free + 2):
        with contextlib.suppress(ConnectionResetError):
            connection = pasta.topology.server.connect(HOST4, 8080)
            connection.sendall(b"x")
            if connection.recv(1) == b"x":
                served.append(connection)
    assert len(served) == free
    for connection in served:
        connection.sendall(b"y")
        assert connection.recv(1) == b"y"
