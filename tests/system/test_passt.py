"""passt: the socket, the clients that come and go, and what they may send. The guest is a namespace behind a cable."""

import contextlib
import os
import random
import re
import signal
import socket
import stat
import subprocess
import time
from pathlib import Path

import pytest
from scapy.all import ARP, IP, UDP, Ether

from system.machine import ASK, MAC, Machine, Passt, client, frames, is_served, receive_frame
from system.namespaces import alive, echo, receive, wait_until
from system.programs import need
from system.quiet import assert_quiet
from system.servers import source
from system.topology import ANY, HOST, HOST4, SERVER, SERVER4, elapsed
from system.users import only_root, only_unprivileged

pytestmark = pytest.mark.timeout(60)
both_versions = pytest.mark.parametrize("version", [4, 6])

# Start


def test_readiness_is_the_end_of_the_parent(passt: Passt) -> None:
    pid = passt.background()
    assert alive(pid)
    with client(passt.socket) as sock:  # at once, nothing to wait for
        assert is_served(sock)
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")


def test_L8_the_output_ends_with_readiness(passt: Passt) -> None:
    result, seconds = elapsed(passt.run, "--socket", passt.socket, "--pid", str(passt.workspace / "pid"))
    pid = int((passt.workspace / "pid").read_text())
    passt.terminate(pid)
    assert f"addr.path={passt.socket}" in result.stderr
    assert seconds < 5


def test_quiet_says_nothing(passt: Passt) -> None:
    pid_file = passt.workspace / "pid"
    result = passt.run("--quiet", "--socket", passt.socket, "--pid", str(pid_file))
    passt.terminate(int(pid_file.read_text()))
    assert (result.stdout, result.stderr) == ("", "")


def test_a_pid_file_that_is_there_is_overwritten(passt: Passt) -> None:
    """QEMU makes it itself, with mkstemp(3)."""
    pid_file = passt.workspace / "passt-XY.pid"
    pid_file.write_text("4194304999999999\n")
    pid_file.chmod(0o600)
    os.chown(pid_file, passt.user.uid, passt.user.gid)
    passt.run("-q", "--socket", passt.socket, "--pid", str(pid_file))
    pid = int(pid_file.read_text())
    passt.terminate(pid)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_it_with_status_0(passt: Passt, number: signal.Signals) -> None:
    process = passt.foreground("--socket", passt.socket)
    wait_until(lambda: Path(passt.socket).exists(), "the socket")
    with client(passt.socket) as sock:
        assert is_served(sock)
        process.send_signal(number)
        assert process.wait(5) == 0


def test_a_socket_that_is_in_use_is_an_error(passt: Passt) -> None:
    passt.background()
    result = passt.run("--socket", passt.socket, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"passt: listen at {passt.socket}: Address already in use"
    with client(passt.socket) as sock:
        assert is_served(sock)


def test_a_socket_that_a_dead_process_left_is_replaced(passt: Passt) -> None:
    pid = passt.background()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not alive(pid), "the end of it")
    assert stat.S_ISSOCK(os.stat(passt.socket).st_mode)
    passt.background()
    with client(passt.socket) as sock:
        assert is_served(sock)


def test_another_file_is_never_removed(passt: Passt) -> None:
    Path(passt.socket).write_text("precious")
    result = passt.run("--socket", passt.socket, check=False)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith(f"passt: listen at {passt.socket}: ")
    assert Path(passt.socket).read_text() == "precious"


def test_a_socket_that_cannot_be_is_one_line(passt: Passt) -> None:
    result = passt.run("-q", "--socket", "/nonexistent/socket", check=False)
    assert result.returncode == 1
    assert result.stderr == "passt: listen at /nonexistent/socket: No such file or directory\n"


def test_without_a_path_it_is_the_first_that_nobody_uses(passt: Passt) -> None:
    found = []
    for _ in range(2):
        process = passt.foreground()
        assert process.stdout is not None
        match = re.search(r"addr\.path=(/tmp/passt_(\d+)\.socket)", process.stdout.readline())
        assert match
        found.append(int(match[2]))
        with client(match[1]) as sock:
            assert is_served(sock)
    assert found[0] < found[1] <= 64
    for number in found:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/tmp/passt_{number}.socket")


def test_a_forward_that_cannot_be_bound_is_an_error(passt: Passt) -> None:
    passt.topology.host.listen(ANY[4], 8080)
    result = passt.run("-q", "--socket", passt.socket, "-t", "8080", check=False)
    assert result.returncode == 1
    assert result.stderr == "passt: cannot listen on TCP port 8080 for '-t 8080': Address already in use\n"


@pytest.mark.parametrize("default", [False, True])
def test_a_start_that_fails_leaves_nothing_behind(passt: Passt, default: bool) -> None:
    passt.topology.host.listen(ANY[4], 8080)
    before = set(Path("/tmp").glob("passt_*.socket"))
    place = [] if default else ["--socket", passt.socket]
    options = ["-q", *place, "--pid", str(passt.workspace / "pid"), "--pcap", str(passt.workspace / "pcap")]
    assert passt.run(*options, "-t", "8080", check=False).returncode == 1
    assert list(passt.workspace.iterdir()) == []
    assert set(Path("/tmp").glob("passt_*.socket")) == before


def test_a_socket_whose_start_fails_later_is_removed(passt: Passt) -> None:
    result = passt.run("-q", "--socket", passt.socket, "--pid", "/nonexistent/pid", check=False)
    assert result.stderr == "passt: open the pid file /nonexistent/pid: No such file or directory\n"
    assert not os.path.lexists(passt.socket)


def test_udp_that_only_follows_tcp_may_be_taken(passt: Passt) -> None:
    _busy = passt.topology.host.bind(ANY[4], 8080)
    passt.background("-q", "-t", "8080")
    passt.topology.host.connect("127.0.0.1", 8080).close()


@pytest.mark.release  # a start under the sanitizers takes longer
def test_it_has_a_user_namespace_of_its_own_within_a_second(passt: Passt) -> None:
    """As root sees it. Whoever else started it is refused (`test_muvm`)."""
    process, seconds = elapsed(passt.foreground, "-q", "--socket", passt.socket)
    ours = os.readlink("/proc/self/ns/user")
    wait_until(lambda: os.readlink(f"/proc/{process.pid}/ns/user") != ours, "a user namespace", 1 - seconds)


@only_root
def test_root_becomes_nobody(passt: Passt) -> None:
    pid = passt.background()
    status = Path(f"/proc/{pid}/status").read_text()
    assert re.search(r"^Uid:\s+65534\s+65534\s+65534\s+65534$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\s+0+$", status, re.MULTILINE)


# A connected socket


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    ours.settimeout(5)
    return ours, theirs


def test_an_inherited_socket_is_served_until_its_end(passt: Passt) -> None:
    ours, theirs = pair()
    with ours:
        process = passt.foreground("-q", "--fd", str(theirs.fileno()), pass_fds=[theirs.fileno()])
        theirs.close()
        assert is_served(ours)
    assert process.wait(5) == 0


def test_an_inherited_socket_survives_the_way_to_the_background(passt: Passt) -> None:
    ours, theirs = pair()
    with ours:
        pid = passt.background("-q", "--fd", str(theirs.fileno()), listen=False, pass_fds=[theirs.fileno()])
        theirs.close()
        assert is_served(ours)
    wait_until(lambda: not alive(pid), "the end of it", 5)


def test_a_descriptor_that_is_no_connected_socket_is_one_line(passt: Passt) -> None:
    result = passt.run("--fd", "77", check=False)
    assert (result.returncode, result.stderr) == (1, "passt: use descriptor 77 of --fd: Bad file descriptor\n")
    reader, writer = os.pipe()
    result = passt.run("--fd", str(reader), check=False, pass_fds=[reader])
    os.close(reader)
    os.close(writer)
    assert result.stderr.endswith(": Socket operation on non-socket\n")
    with socket.socket(socket.AF_UNIX) as alone:
        result = passt.run("--fd", str(alone.fileno()), check=False, pass_fds=[alone.fileno()])
        assert result.stderr.endswith(": Transport endpoint is not connected\n")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        result = passt.run("--fd", str(theirs.fileno()), check=False, pass_fds=[theirs.fileno()])
        assert result.stderr.endswith(": Protocol wrong type for socket\n")


# Clients come and go


def test_L16_a_client_may_come_back_and_another_come_after_it(passt: Passt) -> None:
    pid = passt.background()
    for _ in range(5):
        with client(passt.socket) as sock:
            assert is_served(sock)
    assert alive(pid)


def test_L16_one_off_ends_with_its_client(passt: Passt) -> None:
    process = passt.foreground("-q", "--one-off", "--socket", passt.socket)
    wait_until(lambda: Path(passt.socket).exists(), "the socket")
    with client(passt.socket) as sock:
        assert is_served(sock)
        with pytest.raises(ConnectionRefusedError):
            client(passt.socket)
    assert process.wait(5) == 0


def test_L16_one_off_waits_for_its_client_when_another_start_looks_at_its_socket(passt: Passt) -> None:
    process = passt.foreground("-q", "--one-off", "--socket", passt.socket)
    wait_until(lambda: Path(passt.socket).exists(), "the socket")
    other = passt.run("--socket", passt.socket, check=False)
    assert other.returncode == 1
    assert other.stderr.splitlines()[-1] == f"passt: listen at {passt.socket}: Address already in use"
    # Other programs connect to find out, and have gone when it sees that
    process.send_signal(signal.SIGSTOP)
    client(passt.socket).close()
    process.send_signal(signal.SIGCONT)
    with client(passt.socket) as sock:
        assert is_served(sock)
    assert process.wait(5) == 0


def test_a_second_client_is_turned_away(passt: Passt) -> None:
    passt.background()
    with client(passt.socket) as first, client(passt.socket) as second:
        assert not is_served(second)
        assert is_served(first)


@both_versions
def test_L16_a_connection_goes_on_when_the_client_comes_back(
    passt: Passt, machine: Machine, version: int, payload: bytes
) -> None:
    data = payload[: 16 << 20]
    passt.background()
    machine.cable.connect(passt.socket)
    machine.configure()
    server = passt.topology.server.serve_tcp(SERVER[version], source(data))
    with machine.connect(SERVER[version], server.port, timeout=20) as connection:
        connection.shutdown(socket.SHUT_WR)
        got = receive(connection, 1 << 20)
        for _ in range(3):
            machine.cable.disconnect()
            time.sleep(0.1)
            machine.cable.connect(passt.socket)
            got += receive(connection, 1 << 20)
        got += receive(connection)
    assert got == data


@only_unprivileged
def test_L16_a_connection_from_outside_waits_for_the_client(passt: Passt, machine: Machine) -> None:
    pid = passt.background("-t", "8080:80")
    machine.cable.connect(passt.socket)
    machine.configure()
    machine.serve_tcp(ANY[4], echo, port=80)
    with passt.topology.server.connect(HOST[4], 8080, timeout=20) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        machine.cable.disconnect()
        connection.sendall(bytes(200_000))
        assert_quiet(pid, 2)
        machine.cable.connect(passt.socket)
        assert receive(connection, 200_000) == bytes(200_000)


# What a client may send


@only_unprivileged
@pytest.mark.parametrize("length", [0, 1, 13, 65550, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF])
def test_L15_a_length_that_cannot_be_ends_the_client_alone(passt: Passt, length: int) -> None:
    log = passt.workspace / "log"
    pid = passt.background("--log-file", str(log))
    for _ in range(3):
        with client(passt.socket) as sock:
            assert is_served(sock)
            sock.sendall(length.to_bytes(4, "big") + bytes(100))
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass
    with client(passt.socket) as sock:
        assert is_served(sock)
    assert alive(pid)
    assert len(re.findall(f"a frame of {length} bytes, which cannot be", log.read_text())) == 1


@only_unprivileged
def test_L15_a_frame_that_is_cut_short_ends_with_its_client(passt: Passt) -> None:
    log = passt.workspace / "log"
    passt.background("--log-file", str(log))
    whole = frames(ASK)
    for size in (1, 3, 4, 5, len(whole) - 1):
        with client(passt.socket) as sock:
            sock.sendall(whole[:size])
        with client(passt.socket) as sock:  # nothing of it is left
            assert is_served(sock)
    assert "bytes into a frame" in log.read_text()


@only_unprivileged
def test_L15_frames_may_come_in_any_pieces(passt: Passt) -> None:
    passt.background()
    with client(passt.socket) as sock:
        for byte in frames(ASK):
            sock.send(bytes([byte]))
        sock.sendall(frames(*[ASK] * 100))
        answers = 0
        while answers < 101:
            frame = Ether(receive_frame(sock))
            answers += ARP in frame and frame[ARP].op == 2
    # And the largest that there can be, with something behind it
    with client(passt.socket) as sock:
        sock.sendall(frames(bytes(65549)))
        assert is_served(sock)


@only_unprivileged
def test_L15_a_flood_of_malformed_frames_does_no_harm(passt: Passt) -> None:
    log = passt.workspace / "log"
    pid = passt.background("--log-file", str(log))
    rng = random.Random(15)
    good = [ASK, bytes(Ether(src=MAC, dst=MAC) / IP(src=HOST4, dst=SERVER4) / UDP(sport=5, dport=9) / b"x")]
    with client(passt.socket) as sock:
        sock.setblocking(True)
        for _ in range(200):
            batch = []
            for _ in range(100):
                frame = bytearray(rng.choice(good) if rng.random() < 0.7 else rng.randbytes(rng.randrange(14, 2000)))
                for _ in range(rng.randrange(4)):
                    frame[rng.randrange(len(frame))] = rng.randrange(256)
                batch.append(bytes(frame[: max(14, rng.randrange(len(frame) + 1))]))
            sock.sendall(frames(*batch))
            with contextlib.suppress(BlockingIOError):
                while sock.recv(1 << 20, socket.MSG_DONTWAIT):
                    pass
    with client(passt.socket) as sock:
        assert is_served(sock)
    assert alive(pid)
    assert log.stat().st_size < 20_000


@only_unprivileged
def test_frames_are_taken_and_given_many_at_a_time(passt: Passt) -> None:
    strace = need("strace", "strace")
    pid = passt.background()
    calls = passt.workspace / "calls"
    with client(passt.socket) as sock:
        assert is_served(sock)
        command = [strace, "-qq", "-e", "trace=recvfrom,recvmsg,sendto,sendmsg", "-o", str(calls), "-p", str(pid)]
        with subprocess.Popen(command) as tracing:
            wait_until(lambda: f"TracerPid:\t{tracing.pid}\n" in Path(f"/proc/{pid}/status").read_text(), "strace")
            sock.sendall(frames(*[ASK] * 1000))
            answers = 0
            while answers < 1000:
                frame = Ether(receive_frame(sock))
                answers += ARP in frame and frame[ARP].op == 2
            tracing.terminate()
        wait_until(lambda: "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text(), "the end of strace")
    made = calls.read_text()
    for call in ("recv", "send"):
        sizes = [int(size) for size in re.findall(rf"^{call}.* = ([1-9]\d*)$", made, re.MULTILINE)]
        assert sum(sizes) >= 1000 * len(frames(ASK)), "the trace is not of all"  # an answer is as long
        assert len(sizes) < 100


# A client that does not read


@only_unprivileged
def test_a_client_that_does_not_read_costs_neither_cpu_nor_memory_nor_data(
    passt: Passt, machine: Machine, payload: bytes
) -> None:
    pid = passt.background()
    machine.cable.connect(passt.socket)
    machine.configure()
    server = passt.topology.server.serve_tcp(SERVER4, source(payload))
    datagrams = passt.topology.server.serve_udp(SERVER4, lambda data, _: data)
    with machine.connect(SERVER4, server.port, timeout=20) as connection:
        connection.shutdown(socket.SHUT_WR)
        got = receive(connection, 1 << 20)
        before = memory(pid)
        machine.cable.pause(True)
        time.sleep(0.5)
        assert_quiet(pid, 3)
        assert memory(pid) - before < 8192
        machine.cable.pause(False)
        with machine.connect(SERVER4, datagrams.port, kind=socket.SOCK_DGRAM) as other:
            other.send(b"x")
            assert other.recv(10) == b"x"
        got += receive(connection)
    assert got == payload


def memory(pid: int) -> int:
    """KiB in use."""
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1])


# Watching


@only_unprivileged
def test_a_capture_holds_the_frames_of_both_sides_with_right_checksums(passt: Passt, machine: Machine) -> None:
    capture = passt.workspace / "pcap"
    pid = passt.background("--pcap", str(capture))
    machine.cable.connect(passt.socket)
    machine.configure(1500)
    server = passt.topology.server.serve_tcp(SERVER4, source(bytes(100_000)))
    with machine.connect(SERVER4, server.port) as connection:
        connection.shutdown(socket.SHUT_WR)
        assert len(receive(connection)) == 100_000
    passt.terminate(pid)
    command = ["tshark", "-r", str(capture), "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE"]
    shown = subprocess.run(
        [*command, "-Y", "tcp.checksum.status == Bad || ip.checksum.status == Bad || _ws.malformed"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    # Superframes are captured before they are cut: their checksum is that of the whole
    assert shown.stdout == ""


@only_unprivileged
def test_out_of_descriptors_clients_are_refused_at_no_cost_and_later_ones_served(passt: Passt) -> None:
    pid = passt.background("-q", "-t", "8080:80")

    def used() -> set[int]:
        return set(map(int, os.listdir(f"/proc/{pid}/fd")))

    with client(passt.socket) as sock:
        assert is_served(sock)  # what a start still has open is closed before anybody is served
        most = len(used())
    wait_until(lambda: len(used()) < most, "the end of the client")
    limit = max(used()) + 1
    # Connections that wait for a guest take what is free below the limit, and one more is there to be ended
    waiting = [passt.topology.server.connect(HOST4, 8080) for _ in range(limit - len(used()) + 1)]
    limit += 1
    wait_until(lambda: used() == set(range(limit)), "no free descriptor")
    passt.topology.host.run("prlimit", f"--pid={pid}", f"--nofile={limit}:{limit}", user=passt.user)
    for _ in range(3):
        with client(passt.socket) as sock:
            assert not is_served(sock)
    assert_quiet(pid, 1)
    waiting[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    waiting[-1].close()
    wait_until(lambda: len(used()) < limit, "a free descriptor")
    with client(passt.socket) as sock:
        assert is_served(sock)
    for connection in waiting:
        connection.close()
