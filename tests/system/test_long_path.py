"""A long path, or a fast one: a delay line of 1 Gbit/s between the host and the server.

How fast that is depends on what else the machine does, and the benchmark measures it. What is held here does not: how
much is on its way at a time, and how often somebody had to wait for a timer.
"""

import contextlib
import hashlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from system.namespaces import Namespace, end, receive, wait_until
from system.servers import sink, source
from system.topology import Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.release]

SERVER = {4: "198.18.0.2", 6: "2001:db8:18::2"}
HOST = {4: "198.18.0.1", 6: "2001:db8:18::1"}
both_versions = pytest.mark.parametrize("version", [4, 6])
UNSCALED = 65535  # bytes, what may be on its way without window scaling


@contextlib.contextmanager
def line(pasta: Pasta, rtt: float) -> Iterator[None]:
    """Join the host and the server by a path of this round trip, in seconds."""
    host, server = pasta.topology.host, pasta.topology.server
    command = [sys.executable, "-m", "bucatini.bench.path", host.name, server.name, "line0", "300"]
    command += [f"delay={rtt / 2}", "rate=1e9", "backlog=0.02", "loss=0", "mtu=1500", "reorder=0", "seed=1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for side, addresses in ((host, HOST), (server, SERVER)):
            side.ip(
                f"address add {addresses[4]}/24 dev line0",
                f"address add {addresses[6]}/64 dev line0 nodad",
                "link set line0 up",
            )
        yield
    finally:
        end(process)


def on_its_way(sender: Namespace, port: int) -> int:
    """Bytes that the sockets of this port have sent and nobody has acknowledged yet."""
    shown = sender.run("ss", "-tinH", f"( sport = :{port} or dport = :{port} )").stdout
    unacked = max((int(number) for number in re.findall(r"\bunacked:(\d+)", shown)), default=0)
    size = min((int(number) for number in re.findall(r"\bmss:(\d+)", shown)), default=0)
    return unacked * size


@both_versions
def test_T22_more_is_on_its_way_than_fits_an_unscaled_window_when_the_guest_sends(
    pasta: Pasta, version: int, payload: bytes
) -> None:
    digests: list[str] = []
    with line(pasta, 0.2), ThreadPoolExecutor() as pool:
        server = pasta.topology.server.serve_tcp(SERVER[version], sink(digests))
        with pasta.guest("--config-net").connect(SERVER[version], server.port, timeout=60) as connection:
            sending = pool.submit(connection.sendall, payload)
            wait_until(lambda: on_its_way(pasta.topology.host, server.port) > 4 * UNSCALED, "wide windows", 30)
            sending.result(60)
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: digests, "the end of the data", 60)
    assert digests == [hashlib.sha256(payload).hexdigest()]


@both_versions
def test_T22_more_is_on_its_way_than_fits_an_unscaled_window_when_the_server_sends(
    pasta: Pasta, version: int, payload: bytes
) -> None:
    with line(pasta, 0.2), ThreadPoolExecutor() as pool:
        server = pasta.topology.server.serve_tcp(SERVER[version], source(payload))
        with pasta.guest("--config-net").connect(SERVER[version], server.port, timeout=60) as connection:
            connection.shutdown(socket.SHUT_WR)
            receiving = pool.submit(receive, connection)
            wait_until(lambda: on_its_way(pasta.topology.server, server.port) > 4 * UNSCALED, "wide windows", 30)
            assert receiving.result(60) == payload


def timers(guest: Namespace) -> int:
    """How often a connection of the guest waited for a timer: to send again, or to ask for a window."""
    shown = guest.run("nstat", "-asz", "TcpExtTCPTimeouts", "TcpExtTCPWinProbe").stdout
    return sum(int(line.split()[1]) for line in shown.splitlines() if line.startswith("TcpExt"))


@both_versions
@pytest.mark.parametrize("rtt", [0.0003, 0.001], ids=["0.3 ms", "1 ms"])
def test_T21_an_upload_over_a_short_path_does_not_wait_for_timers(
    pasta: Pasta, version: int, rtt: float, payload: bytes
) -> None:
    """With a window that opens by less than a segment there would be one for every window (256 KiB): 381 of them."""
    digests: list[str] = []
    data = payload + payload[: 100_000_000 - len(payload)]
    with line(pasta, rtt):
        server = pasta.topology.server.serve_tcp(SERVER[version], sink(digests))
        guest = pasta.guest("--config-net")
        with guest.connect(SERVER[version], server.port, timeout=60) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            wait_until(lambda: digests, "the end of the data", 60)
        assert timers(guest) < 8
    assert digests == [hashlib.sha256(data).hexdigest()]
