"""What many connections cost, and that what comes and goes leaves nothing behind.

`make churn` shows the figures.
"""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Callable

import pytest

from system.namespaces import end, wait_until
from system.test_attacks import moved, status
from system.topology import SERVER4, Guest, Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.release]

CHURN = 180_000  # connections, and as many UDP flows: 50 of each a second for an hour
MOST = resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 200
WANTED = 100_000
CONNECTIONS = min(WANTED, MOST)
PER_CLIENT = 15_000  # ports of one address, and descriptors
TRAFFIC = (sys.executable, "-m", "bucatini.bench.traffic")
Record = Callable[[str, object], None]

CHURNER = """
import resource, socket, struct, sys
address, port, datagrams, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
now = struct.pack('ii', 1, 0)
for number in range(count):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', number & 1, 0))  # by RST and by FIN
    sock.connect((address, port))
    sock.sendall(b'x')
    assert sock.recv(1) == b'x'
    sock.close()
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(b'x', (address, datagrams))
    sock.settimeout(0.5)
    try:
        sock.recv(1)
    except TimeoutError:
        pass
    sock.close()
sys.stdout.write('done\\n')
"""


def churn(guest: Guest, port: int, datagrams: int, count: int) -> None:
    """Open and close connections and UDP flows, by four clients."""
    clients = [
        guest.start(sys.executable, "-I", "-S", "-c", CHURNER, SERVER4, str(port), str(datagrams), str(count // 4))
        for _ in range(4)
    ]
    for client in clients:
        assert client.communicate(timeout=600)[0] == "done\n"


@pytest.mark.timeout(120 + CHURN // 100)
def test_an_hour_of_flows_that_come_and_go_leaves_nothing_behind(pasta: Pasta, record_property: Record) -> None:
    server = pasta.topology.server
    guest = pasta.guest("--config-net", "--stats", "1")
    guest.settle()
    server.start(*TRAFFIC, "requests", SERVER4, "7200", "1", "1", tcp=7200)
    server.start(*TRAFFIC, "datagrams", SERVER4, "7201", "1", "1", udp=7201)
    churn(guest, 7200, 7201, CHURN // 2)  # as many flows at once as there will be
    before = status(guest.pid, "VmRSS")
    begin = time.monotonic()
    churn(guest, 7200, 7201, CHURN)
    took = time.monotonic() - begin
    grown = status(guest.pid, "VmHWM") - before
    found = moved(guest)
    told = {"flows": 2 * CHURN, "seconds": round(took, 1), "grown KiB": grown, "before KiB": before}
    record_property("churn", told)
    sys.stdout.write(f"{told}\n")
    assert found["tcp_opened_guest"] >= CHURN * 3 // 2
    assert found["tcp_opened_guest"] - found["tcp_closed"] <= 1  # the one that asked for statistics
    assert found["udp_flows"] >= CHURN  # they end half a minute after their last datagram, or give way
    assert found.get("flow_refused", 0) == 0
    assert grown < 1024  # KiB: the table is as large as it was ever used


@pytest.mark.timeout(120 + CONNECTIONS // 200)
def test_thousands_of_connections_at_once(pasta: Pasta, record_property: Record) -> None:
    """As many as there are descriptors for, each half a KiB of ours, and the first one works as before."""
    server = pasta.topology.server
    guest = pasta.guest("--config-net", "--stats", "1")
    guest.settle()
    guest.sysctl(net__ipv4__ip_local_port_range="2000 65000")
    pasta.topology.host.sysctl(net__ipv4__ip_local_port_range="2000 65000")
    server.start(*TRAFFIC, "echo", SERVER4, "7100", "1", "1", tcp=7100)
    server.start(*TRAFFIC, "echo", SERVER4, "7101", "1", "1", tcp=7101)
    first = guest.connect(SERVER4, 7100)
    before, begin = status(guest.pid, "VmRSS"), time.monotonic()
    servers, clients = [], []
    parts = [min(PER_CLIENT, CONNECTIONS - at) for at in range(0, CONNECTIONS, PER_CLIENT)]
    for number, part in enumerate(parts):
        port = 7300 + number
        servers.append(server.start(*TRAFFIC, "held", SERVER4, str(port), "1", "1", tcp=port))
        clients.append(guest.start(*TRAFFIC, "hold", SERVER4, str(port), str(part), "1", stdin=-1))
    opened = 0
    for client in clients:
        assert client.stdout is not None
        opened += json.loads(client.stdout.readline())["open"]
    took = time.monotonic() - begin
    assert opened == CONNECTIONS
    grown = status(guest.pid, "VmRSS") - before
    first.sendall(b"x")
    assert first.recv(1) == b"x"
    found = moved(guest)
    told = {"open": opened, "wanted": WANTED, "seconds": round(took, 1), "grown KiB": grown}
    record_property("connections", told)
    sys.stdout.write(f"{told}: the hard limit of descriptors is {MOST + 200:,}\n")
    assert found["tcp_opened_guest"] >= CONNECTIONS
    assert found.get("flow_refused", 0) == 0
    assert grown < 4096 + CONNECTIONS
    for client in clients:
        assert client.stdin is not None
        client.stdin.close()
    for process in servers:  # which keep what they have accepted
        end(process)
    wait_until(lambda: guest.descriptors() < 100, "the end of the connections", 60)
    with contextlib.closing(guest.connect(SERVER4, 7101)) as again:
        again.sendall(b"y")
        assert again.recv(1) == b"y"
