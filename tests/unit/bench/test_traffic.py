"""The ends of a measurement talk to each other, each in a process of its own as in a run."""

import json
import socket
import subprocess
import sys

import pytest

SIZE = 1400
SECONDS = "0.1"


def free_port() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        return str(sock.getsockname()[1])


def command(role: str, port: str) -> list[str]:
    return [sys.executable, "-m", "bucatini.bench.traffic", role, "127.0.0.1", port, str(SIZE), SECONDS]


@pytest.mark.parametrize(
    ("server", "client", "guest_sends"),
    [("paced", "udp-receive", False), ("blast", "udp-receive", False), ("sink", "udp-paced", True)],
)
def test_datagrams_arrive_and_both_ends_count_them(server: str, client: str, guest_sends: bool) -> None:
    port = free_port()
    with subprocess.Popen(command(server, port), stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        assert served.stdout.readline() == "ready\n"
        asked = subprocess.run(command(client, port), capture_output=True, text=True, check=True, timeout=30)
        one, other = json.loads(served.stdout.readline()), json.loads(asked.stdout)
    sent, came = (other, one) if guest_sends else (one, other)
    assert 0 < came["bytes"] <= sent["bytes"]
    assert came["bytes"] % SIZE == sent["bytes"] % SIZE == 0
