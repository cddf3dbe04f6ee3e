"""TCP that the guest begins, with real programs and with sockets made inside the guest."""

import contextlib
import errno
import hashlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.namespaces import TcpServer, echo, receive, wait_until
from system.programs import need
from system.servers import http, sink, source
from system.topology import GATEWAY, LOOPBACK, REJECTED, SERVER, UNROUTED, Pasta, elapsed, url
from system.users import only_unprivileged

both_versions = pytest.mark.parametrize("version", [4, 6])
UNREACHABLE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ECONNREFUSED, errno.EACCES}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close sends RST


@both_versions
def test_curl_fetches_a_page(pasta: Pasta, version: int) -> None:
    need("curl", "curl")
    server = pasta.topology.server.serve_tcp(SERVER[version], http({"/": b"a page"}))
    result = pasta.run("--config-net", command=["curl", "-sS", "-m", "20", url(SERVER[version], server.port)])
    assert result.stdout == "a page"


@both_versions
def test_the_gateway_address_is_the_loopback_of_the_host(pasta: Pasta, version: int) -> None:
    need("curl", "curl")
    server = pasta.topology.host.serve_tcp(LOOPBACK[version], http({"/": b"host"}))
    result = pasta.run("--config-net", command=["curl", "-sS", "-m", "20", url(GATEWAY[version], server.port)])
    assert result.stdout == "host"


@both_versions
def test_without_the_mapping_the_gateway_address_is_the_gateway(pasta: Pasta, version: int) -> None:
    need("curl", "curl")
    pasta.topology.host.serve_tcp(LOOPBACK[version], http({"/": b"host"}), port=8000)
    pasta.topology.server.serve_tcp(GATEWAY[version], http({"/": b"gateway"}), port=8000)
    result = pasta.run("--config-net", "--no-map-gw", command=["curl", "-sS", "-m", "20", url(GATEWAY[version], 8000)])
    assert result.stdout == "gateway"


@both_versions
def test_64_megabytes_arrive_whole(pasta: Pasta, version: int, payload: bytes) -> None:
    need("curl", "curl")
    server = pasta.topology.server.serve_tcp(SERVER[version], http({"/payload": payload}))
    script = f"curl -sS -m 50 {url(SERVER[version], server.port, '/payload')} | sha256sum"
    result = pasta.run("--config-net", command=["sh", "-c", script])
    assert result.stdout.split()[0] == hashlib.sha256(payload).hexdigest()


@both_versions
def test_64_megabytes_leave_whole(pasta: Pasta, version: int, payload: bytes, payload_file: Path) -> None:
    need("curl", "curl")
    server = pasta.topology.server.serve_tcp(SERVER[version], http({}))
    command = ["curl", "-sS", "-m", "50", "-T", str(payload_file), url(SERVER[version], server.port, "/upload")]
    result = pasta.run("--config-net", command=command)
    assert result.stdout == hashlib.sha256(payload).hexdigest()


@both_versions
def test_at_a_small_mtu_too(pasta: Pasta, version: int, payload: bytes) -> None:
    data = payload[: 16 << 20]
    digests: list[str] = []
    server = pasta.topology.server
    down, up = server.serve_tcp(SERVER[version], source(data)), server.serve_tcp(SERVER[version], sink(digests))
    guest = pasta.guest("--config-net", "-m", "1500")
    with guest.connect(SERVER[version], down.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == data
    with guest.connect(SERVER[version], up.port) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b""
    wait_until(lambda: digests, "the end of the upload")
    assert digests == [hashlib.sha256(data).hexdigest()]


@both_versions
def test_T8_a_half_closed_download_is_complete(pasta: Pasta, version: int, payload: bytes) -> None:
    data = payload[: 50 << 20]
    server = pasta.topology.server.serve_tcp(SERVER[version], source(data))
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.sendall(b"request")
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == data


@both_versions
def test_T8_a_half_closed_upload_is_complete(pasta: Pasta, version: int, payload: bytes) -> None:
    data = payload[: 50 << 20]
    digests: list[str] = []
    server = pasta.topology.server.serve_tcp(SERVER[version], sink(digests))
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        assert connection.recv(1) == b""
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: digests, "the end of the upload", 30)
    assert digests == [hashlib.sha256(data).hexdigest()]


@both_versions
def test_T1_a_closed_port_refuses_at_once(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    with pytest.raises(ConnectionRefusedError):
        guest.connect(SERVER[version], 9, timeout=5)
    with pytest.raises(ConnectionRefusedError):
        guest.connect(GATEWAY[version], 9, timeout=5)
    for address in (SERVER[version], GATEWAY[version]):
        status, seconds = elapsed(guest.open_socket(address).connect_ex, (address, 9))
        assert status == errno.ECONNREFUSED
        assert seconds < 1


@both_versions
def test_T2_an_address_without_a_route_is_reported_at_once(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    status, seconds = elapsed(guest.open_socket(UNROUTED[version]).connect_ex, (UNROUTED[version], 80))
    assert status in UNREACHABLE, errno.errorcode[status]
    assert seconds < 1


@both_versions
def test_T2_an_address_that_a_router_rejects_is_reported_at_once(pasta: Pasta, version: int) -> None:
    guest = pasta.guest("--config-net")
    status, seconds = elapsed(guest.open_socket(REJECTED[version]).connect_ex, (REJECTED[version], 80))
    assert status in UNREACHABLE, errno.errorcode[status]
    # Over veth the router's answer comes back while connect() still holds the socket, and then only the answer to
    # the second SYN, a second later, counts: the kernel's own connections wait as long here.
    assert seconds < 2


@contextlib.contextmanager
def first_answers_lost(pasta: Pasta, port: int, octets: int) -> Iterator[None]:
    """The server's first SYN-ACKs, `octets` of them on the network layer, are lost."""
    need("nft", "nftables")
    rules = f"""
    table inet loss {{
        chain output {{
            type filter hook output priority 0;
            tcp sport {port} tcp flags & (syn | ack) == (syn | ack) quota until {octets} bytes drop
        }}
    }}"""
    pasta.topology.server.run("nft", "-f", "-", input=rules)
    yield
    pasta.topology.server.run("nft", "delete", "table", "inet", "loss")


@both_versions
def test_T3_a_slow_answer_still_makes_a_connection(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    # Three answers at the least are lost: what is retried until then is the SYN of the host and that of the guest.
    with first_answers_lost(pasta, server.port, 150):
        connection, seconds = elapsed(guest.connect, SERVER[version], server.port, timeout=20)
        connection.sendall(b"late")
        assert receive(connection, 4) == b"late"
    assert seconds > 0.5
    assert len(server.peers) == 1


@both_versions
def test_T5_a_reset_by_the_guest_reaches_the_server(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    connection = pasta.guest("--config-net").connect(SERVER[version], server.port)
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    connection.close()
    wait_until(lambda: server.errors, "the reset at the server")
    assert isinstance(server.errors[0], ConnectionResetError)


@both_versions
def test_T5_a_reset_by_the_server_reaches_the_guest(pasta: Pasta, version: int) -> None:
    def reset(connection: socket.socket) -> None:
        connection.recv(1)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    server = pasta.topology.server.serve_tcp(SERVER[version], reset)
    connection = pasta.guest("--config-net").connect(SERVER[version], server.port)
    connection.sendall(b"x")
    with pytest.raises(ConnectionResetError):
        connection.recv(1)


@both_versions
def test_300_connections_one_after_the_other(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    for number in range(300):
        with guest.connect(SERVER[version], server.port) as connection:
            message = b"%d" % number
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            assert receive(connection) == message


@both_versions
def test_200_connections_at_the_same_time(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    guest = pasta.guest("--config-net")
    connections = guest.inside(
        lambda: [socket.create_connection((SERVER[version], server.port), 20) for _ in range(200)]
    )
    try:
        for number, connection in enumerate(connections):
            connection.sendall(b"%03d" % number * 1000)
        for number, connection in enumerate(connections):
            assert receive(connection, 3000) == b"%03d" % number * 1000
    finally:
        for connection in connections:
            connection.close()


@both_versions
@pytest.mark.parametrize("ending", ["reset", "fin"])
def test_T25_a_port_can_be_used_again_at_once(pasta: Pasta, version: int, ending: str) -> None:
    def until_end(connection: socket.socket) -> None:
        """For an end without TIME_WAIT in the guest the server closes first."""
        while (data := connection.recv(100)) not in {b"", b"end"}:
            connection.sendall(data)

    server = pasta.topology.server.serve_tcp(SERVER[version], until_end)
    guest = pasta.guest("--config-net")
    for _ in range(10):
        connection = guest.open_socket(SERVER[version])
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        connection.bind(("", 20000))
        connection.connect((SERVER[version], server.port))
        connection.sendall(b"again")
        assert receive(connection, 5) == b"again"
        if ending == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        else:
            connection.sendall(b"end")
            assert connection.recv(1) == b""
        connection.close()
        # The kernel of the guest has to see its end acknowledged.
        wait_until(lambda: not guest.run("ss", "-Hatn", "sport = :20000").stdout, "end of the guest's connection")


@both_versions
def test_T28_small_writes_do_not_wait_for_acknowledgements(pasta: Pasta, version: int) -> None:
    rounds = 200

    def pairs(connection: socket.socket) -> None:
        while receive(connection, 2):
            # Two writes: with Nagle's algorithm the second waits for the delayed acknowledgement of the first.
            connection.sendall(b"a")
            connection.sendall(b"b")

    server = pasta.topology.server.serve_tcp(SERVER[version], pairs)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        start = time.monotonic()
        for _ in range(rounds):
            connection.sendall(b"1")
            connection.sendall(b"2")
            assert receive(connection, 2) == b"ab"
        # With stalls it would be 40 ms a round at least.
        assert time.monotonic() - start < rounds * 0.020


@only_unprivileged
@both_versions
def test_T16_keep_alives_of_the_guest_are_answered(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in ((socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
            connection.setsockopt(socket.IPPROTO_TCP, option, value)
        # Unanswered, the guest would give the connection up after three seconds.
        connection.settimeout(5)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.sendall(b"alive")
        assert receive(connection, 5) == b"alive"


@both_versions
def test_T17_the_socket_on_the_host_has_keep_alive(pasta: Pasta, version: int) -> None:
    server = pasta.topology.server.serve_tcp(SERVER[version], echo)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        command = ("ss", "-Htno", "state", "established", f"dport = :{server.port}")
        deadline = time.monotonic() + 10
        while "timer:(keepalive," not in pasta.topology.host.run(*command).stdout:
            assert time.monotonic() < deadline
            time.sleep(0.1)


@both_versions
def test_a_reader_that_pauses_loses_nothing(pasta: Pasta, version: int, payload: bytes) -> None:
    data = payload  # more than all buffers on the way hold
    server = pasta.topology.server.serve_tcp(SERVER[version], source(data))
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        got = receive(connection, 1 << 20)
        _window_closes(pasta, server)
        assert got + receive(connection) == data


@both_versions
def test_a_server_that_pauses_loses_nothing(pasta: Pasta, version: int, payload: bytes) -> None:
    data = payload
    go_on = threading.Event()
    digests: list[str] = []

    def slow(connection: socket.socket) -> None:
        got = receive(connection, 1 << 20)
        assert go_on.wait(30)
        digests.append(hashlib.sha256(got + receive(connection)).hexdigest())

    server = pasta.topology.server.serve_tcp(SERVER[version], slow)
    with pasta.guest("--config-net").connect(SERVER[version], server.port) as connection:
        connection.settimeout(1)
        # What is in flight and in all buffers is bounded: at some point a write has to wait.
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < len(data):
                sent += connection.send(data[sent : sent + (1 << 16)])
        assert sent < len(data)
        go_on.set()
        connection.settimeout(30)
        connection.sendall(data[sent:])
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b""
    wait_until(lambda: digests, "the end of the upload")
    assert digests == [hashlib.sha256(data).hexdigest()]


def _window_closes(pasta: Pasta, server: TcpServer) -> None:
    """Wait until what the server has queued no longer gets less."""

    def queued() -> int:
        line = pasta.topology.server.run("ss", "-Htn", f"sport = :{server.port}").stdout.split()
        return int(line[2]) if line else 0

    last = [-1]

    def steady() -> bool:
        now = queued()
        same = now == last[0] and now > 0
        last[0] = now
        return same

    wait_until(steady, "a full window")


@both_versions
def test_no_tcp_leaves_tcp_unanswered_and_udp_alone(pasta: Pasta, version: int) -> None:
    tcp = pasta.topology.server.serve_tcp(SERVER[version], echo)
    udp = pasta.topology.server.serve_udp(SERVER[version], lambda data, _: data)
    guest = pasta.guest("--config-net", "--no-tcp")
    with guest.connect(SERVER[version], udp.port, kind=socket.SOCK_DGRAM) as connection:
        connection.send(b"hello")
        assert connection.recv(10) == b"hello"
    with pytest.raises(OSError):
        guest.connect(SERVER[version], tcp.port, timeout=1)
    assert not tcp.peers
