"""What pasta writes down: captures, logs, statistics, traces."""

import re
import socket
import subprocess

import pytest
from scapy.all import TCP, rdpcap

from system.namespaces import echo, receive
from system.programs import need
from system.topology import HOST4, SERVER, SERVER4, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged


def traffic(pasta: Pasta, *options: str, connections: int = 1) -> None:
    """A few exchanges over TCP and ICMP in both versions."""
    servers = {version: pasta.topology.server.serve_tcp(SERVER[version], echo) for version in (4, 6)}
    guest = pasta.guest("--config-net", *options)
    for version, server in servers.items():
        for _ in range(connections):
            with guest.connect(SERVER[version], server.port) as connection:
                connection.sendall(b"x" * 3000)
                assert receive(connection, 3000) == b"x" * 3000
        guest.run("ping", f"-{version}", "-c", "1", SERVER[version])
    assert guest.finish() == 0


def tshark(path: str, *arguments: str) -> str:
    """What tshark says; it has no complaint."""
    result = subprocess.run(["tshark", "-n", "-r", path, *arguments], check=True, capture_output=True, text=True)
    complaints = [line for line in result.stderr.splitlines() if "Running as user" not in line and line.strip()]
    assert not complaints
    return result.stdout


def test_a_capture_opens_in_tshark_without_complaint(pasta: Pasta) -> None:
    need("tshark", "tshark")
    path = str(pasta.workspace / "capture.pcap")
    traffic(pasta, "--pcap", path)
    assert not tshark(path, "-Y", "_ws.malformed || _ws.short || _ws.expert.severity == error")
    for display_filter in (
        f"tcp && ip.dst == {SERVER4}",
        f"tcp && ip.src == {SERVER4}",
        "ipv6 && tcp",
        "icmp",
        "icmpv6",
    ):
        assert tshark(path, "-Y", display_filter), display_filter
    # What the guest sent is what it sent: the whole stream can be put together.
    followed = tshark(path, "-q", "-z", "follow,tcp,raw,0")
    octets = "".join(line.strip() for line in followed.splitlines() if re.fullmatch(r"\t?[0-9a-f]{64,}", line))
    assert octets == "78" * 6000


def test_a_log_file_is_kept_below_its_size(pasta: Pasta) -> None:
    path = pasta.workspace / "log"
    traffic(pasta, "--trace", "--log-file", str(path), "--log-size", "65536", connections=100)
    text = path.read_text()
    assert 1000 < len(text) <= 65536
    assert text.endswith("\n")


def test_a_log_file_says_what_was_started(pasta: Pasta) -> None:
    path = pasta.workspace / "log"
    traffic(pasta, "--log-file", str(path))
    assert path.read_text().strip()


def output_of(pasta: Pasta, *options: str) -> str:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    code = f"""
import socket
with socket.create_connection(('{SERVER4}', {server.port})) as connection:
    connection.sendall(b'x' * 100)
    print(len(connection.recv(100)))
"""
    result = pasta.python("--config-net", *options, code=code)
    return result.stdout + result.stderr


def test_a_trace_names_the_packets(pasta: Pasta) -> None:
    text = output_of(pasta, "--trace")
    assert re.search(rf"{re.escape(HOST4)}.*{re.escape(SERVER4)}", text)


def test_quiet_says_nothing(pasta: Pasta) -> None:
    assert output_of(pasta, "-q") == "100\n"


def test_statistics_are_printed_when_something_happened(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    code = f"""
import socket, time
s = socket.create_connection(('{SERVER4}', {server.port}))
for _ in range(15):
    s.sendall(b'x')
    s.recv(1)
    time.sleep(0.1)
"""
    result = pasta.python("--config-net", "--foreground", "--stats", "1", code=code)
    assert re.search(r"statistics: flows \d+, .*\btcp_opened_guest 1\b", result.stdout + result.stderr)


@pytest.mark.parametrize("option", ["--debug", "--trace"])
def test_debug_output_is_more(pasta: Pasta, option: str) -> None:
    assert len(output_of(pasta, option)) > len(output_of(pasta))


def test_T23_T33_every_frame_to_the_guest_is_whole_and_every_segment_acknowledges(pasta: Pasta) -> None:
    path = str(pasta.workspace / "capture.pcap")
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    guest = pasta.guest("--config-net", "--pcap", path)
    with guest.connect(SERVER4, server.port) as connection:
        connection.sendall(b"x" * 3000)
        connection.shutdown(socket.SHUT_WR)
        assert receive(connection) == b"x" * 3000
    with pytest.raises(ConnectionRefusedError):
        guest.connect(SERVER4, 1)
    assert guest.finish() == 0
    ours = [frame for frame in rdpcap(path) if frame.src == "9a:55:9a:55:9a:55"]
    segments = [frame[TCP].flags for frame in ours if TCP in frame]
    assert {"SA", "RA"} <= {str(flags) for flags in segments}
    assert any(flags.F for flags in segments)
    assert all(flags.A for flags in segments)
    assert min(len(frame) for frame in ours) >= 60
