"""Start, readiness, exit status and end, as Podman, nsjail and shells rely on them."""

import contextlib
import ctypes
import os
import pty
import pwd
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from system.namespaces import DEADLINE, NamedNamespace, alive, echo, end, wait_until
from system.topology import HOST4, HOST6, SERVER4, Daemon, Pasta
from system.users import UNPRIVILEGED, only_root, only_unprivileged

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h

# The command


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143)],
)
@pytest.mark.parametrize("options", [(), ("--foreground",), ("--no-pidns",)], ids=" ".join)
def test_L10_the_exit_status_is_that_of_the_command(
    pasta: Pasta, script: str, status: int, options: tuple[str, ...]
) -> None:
    assert pasta.run("--config-net", *options, command=["sh", "-c", script], check=False).returncode == status


def test_a_command_that_does_not_exist_is_named(pasta: Pasta) -> None:
    result = pasta.run(command=["/no/such/command"], check=False)
    assert result.returncode != 0
    assert "/no/such/command" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_command_has_our_streams_directory_and_environment(pasta: Pasta) -> None:
    script = 'read line; echo "out $line $PWD $MARK"; echo error >&2'
    environment = os.environ | {"MARK": "kept"}
    result = pasta.run("-q", command=["sh", "-c", script], input="in\n", cwd="/usr", env=environment)
    assert result.stdout == "out in /usr kept\n"
    assert result.stderr.endswith("error\n")


def test_the_command_is_root_in_a_namespace_of_its_own(pasta: Pasta) -> None:
    result = pasta.run("-q", command=["sh", "-c", "id -u; readlink /proc/self/ns/net; ip link set lo down"])
    uid, namespace = result.stdout.split()
    assert uid == "0"
    assert namespace != os.readlink("/proc/self/ns/net")


def test_the_command_has_a_process_namespace_of_its_own_with_its_own_proc(pasta: Pasta) -> None:
    result = pasta.run("-q", command=["sh", "-c", "ls -d /proc/[0-9]*; readlink /proc/self/ns/pid"])
    *processes, namespace = result.stdout.split()
    assert "/proc/1" in processes
    assert len(processes) < 10
    assert namespace != os.readlink("/proc/self/ns/pid")


def test_no_pidns_leaves_the_command_among_our_processes(pasta: Pasta) -> None:
    result = pasta.run("-q", "--no-pidns", command=["readlink", "/proc/self/ns/pid"])
    assert result.stdout.strip() == os.readlink("/proc/self/ns/pid")


def test_without_a_command_it_runs_the_shell_of_the_user(pasta: Pasta) -> None:
    environment = os.environ | {"SHELL": "/bin/sh"}
    result = pasta.run(
        "-q", "--config-net", input="ip -o -4 address show dev host0; exit 3\n", env=environment, check=False
    )
    assert f"inet {HOST4}/24" in result.stdout
    assert result.returncode == 3


def test_the_end_of_pasta_is_the_end_of_the_command(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    guest.close()
    os.kill(guest.pid, signal.SIGKILL)
    wait_until(lambda: not alive(guest.holder), "end of the command")


# Configuration


def test_config_net_copies_what_the_host_has(pasta: Pasta) -> None:
    script = "ip -o address show dev host0; ip route; ip -6 route; ip link show host0; ip link show lo"
    shown = pasta.run("--config-net", command=["sh", "-c", script]).stdout
    assert f"inet {HOST4}/24" in shown
    assert f"inet6 {HOST6}/64" in shown
    assert not re.search(rf"inet6 {HOST6}/64.*tentative", shown)
    assert re.search(r"default via 192\.0\.2\.1 dev host0", shown)
    assert re.search(r"default via 2001:db8::1 dev host0", shown)
    assert "mtu 65520" in shown
    assert "<LOOPBACK,UP,LOWER_UP>" in shown


def test_options_change_what_is_configured(pasta: Pasta) -> None:
    options = [
        "-I",
        "eth9",
        "-a",
        "10.1.2.3",
        "-n",
        "24",
        "-g",
        "10.1.2.1",
        "-m",
        "1400",
        "--ns-mac-addr",
        "02:00:00:00:00:09",
    ]
    script = "ip -o -4 address show dev eth9; ip route; ip link show eth9"
    shown = pasta.run("--config-net", *options, command=["sh", "-c", script]).stdout
    assert "inet 10.1.2.3/24" in shown
    assert "default via 10.1.2.1 dev eth9" in shown
    assert "mtu 1400" in shown
    assert "02:00:00:00:00:09" in shown


def test_without_config_net_only_the_loopback_is_up(pasta: Pasta) -> None:
    shown = pasta.run(command=["sh", "-c", "ip -o -4 address show; ip link show host0"]).stdout
    assert "127.0.0.1/8" in shown
    assert HOST4 not in shown


def test_D12_a_host_with_nothing_but_lo_starts(pasta: Pasta) -> None:
    pasta.topology.host.ip("link delete host0", "link delete extra0")
    script = "ip -o -4 address show; ip route"
    result = pasta.run("--config-net", "-I", "tap0", command=["sh", "-c", script])
    assert "inet 169.254.2.1/" in result.stdout
    assert "default via 169.254.2.2" in result.stdout


def test_D9_a_host_without_ipv6_starts(pasta: Pasta) -> None:
    pasta.topology.host.sysctl(net__ipv6__conf__all__disable_ipv6=1)
    guest = pasta.guest("--config-net", "-t", "8080")
    listener = guest.listen(HOST4, 8080)
    with pasta.topology.server.connect(HOST4, 8080) as client:
        client.sendall(b"x")
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1) == b"x"


# The background


def streams(pid: int) -> list[str]:
    """What the standard streams of a process are, without the directory: it may have another root by now."""
    return [Path(os.readlink(f"/proc/{pid}/fd/{number}")).name for number in (0, 1, 2)]


def test_L8_readiness_is_exit_0_with_nothing_held_open(pasta: Pasta) -> None:
    target = pasta.holder()
    pid_file = pasta.workspace / "pid"
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)
    # run() collects the output, so it only returns when nobody has the pipes any longer.
    result = pasta.run("--config-net", "--pid", str(pid_file), str(target.pid), pass_fds=[write_end], timeout=20)
    os.close(write_end)
    with open(read_end, "rb") as inherited:
        assert inherited.read() == b""
    pid = int(pid_file.read_text())
    assert alive(pid)
    assert result.returncode == 0
    assert streams(pid) == ["null"] * 3
    Daemon(pid, "").terminate()


def test_it_is_connected_when_it_says_so(pasta: Pasta) -> None:
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    with pasta.join("--config-net").connect(SERVER4, server.port) as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"


def test_a_pid_file_made_before_by_another_is_overwritten(pasta: Pasta) -> None:
    pid_file = pasta.workspace / "pid"
    pid_file.write_text("a much longer text than any number\n" * 3)
    os.chown(pid_file, pasta.user.uid, pasta.user.gid)
    pid_file.chmod(0o600)
    pasta.run("--pid", str(pid_file), str(pasta.holder().pid))
    assert re.fullmatch(r"\d+\n?", pid_file.read_text())
    Daemon(int(pid_file.read_text()), "").terminate()


def test_L9_it_starts_without_standard_streams(pasta: Pasta) -> None:
    pid_file = pasta.workspace / "pid"
    target = pasta.holder()
    script = 'exec "$@" <&- >&- 2>&-'
    command = pasta.argv("--config-net", "--pid", str(pid_file), str(target.pid))
    assert subprocess.run(["sh", "-c", script, "sh", *command], check=False, timeout=20).returncode == 0
    pid = int(pid_file.read_text())
    assert streams(pid) == ["null"] * 3
    Daemon(pid, "").terminate()


def test_it_starts_in_a_directory_that_goes_away(pasta: Pasta) -> None:
    directory = pasta.workspace / "gone"
    directory.mkdir()
    directory.chmod(0o777)
    command = pasta.argv("--config-net", command=["true"])
    script = f'cd {directory} && rmdir {directory} && exec "$@"'
    # ip netns exec and setpriv do not mind.
    result = subprocess.run(
        ["sh", "-c", script, "sh", *command], check=False, capture_output=True, text=True, timeout=20
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_signal_ends_it_with_status_0(pasta: Pasta, number: int) -> None:
    pid_file = pasta.workspace / "pid"
    command = pasta.argv("--foreground", "--config-net", "--pid", str(pid_file), str(pasta.holder().pid))
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        wait_until(lambda: pid_file.exists() and pid_file.read_text().strip(), "the pid file")
        assert int(pid_file.read_text()) == process.pid
        process.send_signal(number)
        assert process.wait(2) == 0
    finally:
        end(process)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
@pytest.mark.parametrize("blocked", [False, True])
def test_without_a_terminal_a_signal_ends_the_command_too(pasta: Pasta, number: int, blocked: bool) -> None:
    command = pasta.argv("--config-net", command=["sh", "-c", "trap '' INT QUIT TERM; echo up; exec sleep 1000"])
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number] if blocked else [])
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        assert process.wait(5) == 0
    finally:
        end(process)


def test_an_interrupt_is_the_commands_without_a_terminal_too(pasta: Pasta) -> None:
    command = pasta.argv("--config-net", command=["sh", "-c", "echo up; read line; exit 5"])
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGINT)
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.wait(5) == 5
    finally:
        end(process)


@pytest.mark.parametrize(("key", "status"), [(b"\x03", 9), (b"\x1c", 8)])
def test_what_is_typed_at_a_terminal_is_for_the_command(pasta: Pasta, key: bytes, status: int) -> None:
    """Interrupt and quit reach the whole foreground group: the command does as it likes, and its status is ours."""
    script = "trap 'exit 9' INT; trap 'exit 8' QUIT; echo up; while :; do sleep 0.1; done"
    command = pasta.argv("--config-net", "-q", command=["sh", "-c", script])
    child, leader = pty.fork()
    if child == 0:
        try:
            os.execvp(command[0], command)
        finally:
            os._exit(127)
    try:
        said = b""
        while b"up" not in said:
            said += os.read(leader, 1000)
        os.write(leader, key)
        _, ended = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(ended) == status
    finally:
        os.close(leader)


def test_the_end_of_a_command_is_seen_though_whoever_started_us_had_blocked_its_signal(pasta: Pasta) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    try:
        assert pasta.run("--config-net", command=["sh", "-c", "exit 7"], check=False).returncode == 7
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_signals_end_the_background_process(pasta: Pasta) -> None:
    daemon = pasta.background("--config-net", operands=[str(pasta.holder().pid)])
    assert daemon.pid != 0
    daemon.terminate(timeout=2)


# The namespace goes


@contextlib.contextmanager
def orphans_fall_to_us() -> Iterator[None]:
    """What its parent leaves behind becomes our child meanwhile, so that its exit status is told to us."""

    def children() -> set[int]:
        return {
            int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()
        }

    libc = ctypes.CDLL(None)
    before = children()
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
        for pid in children() - before:  # helpers
            os.waitpid(pid, os.WNOHANG)


def assert_ends_with_0(daemon: Daemon) -> None:
    """Within two seconds."""
    pid, status = wait_until(lambda: ended(daemon.pid), "end of pasta after that of its namespace", 2)
    assert (pid, os.waitstatus_to_exitcode(status)) == (daemon.pid, 0)


def ended(pid: int) -> tuple[int, int] | None:
    """What waitpid(2) says of a child of ours that has ended."""
    found = os.waitpid(pid, os.WNOHANG)
    return found if found[0] else None


@pytest.mark.parametrize("by", ["process", "path"])
def test_L11_it_ends_with_0_when_the_process_that_it_joined_ends(pasta: Pasta, by: str) -> None:
    target = pasta.holder()
    paths = [f"--userns=/proc/{target.pid}/ns/user", f"--netns=/proc/{target.pid}/ns/net"]
    with orphans_fall_to_us():
        if by == "process":
            daemon = pasta.background("--config-net", operands=[str(target.pid)])
        else:
            daemon = pasta.background("--config-net", *paths)
        assert target.stdin is not None
        target.stdin.close()
        assert target.wait(DEADLINE) == 0
        assert_ends_with_0(daemon)


@only_root
@pytest.mark.parametrize("by", ["name", "path"])
def test_L11_it_ends_with_0_when_the_namespace_is_deleted(pasta: Pasta, by: str) -> None:
    name = f"bucatini-{os.getpid()}-guest"
    with orphans_fall_to_us():
        with NamedNamespace(name):
            daemon = pasta.background(
                "--config-net", "--runas", "0", "--netns", name if by == "name" else f"/run/netns/{name}"
            )
            assert alive(daemon.pid)
        assert_ends_with_0(daemon)


@only_root
def test_no_netns_quit_stays(pasta: Pasta) -> None:
    name = f"bucatini-{os.getpid()}-guest"
    with NamedNamespace(name):
        daemon = pasta.background("--config-net", "--runas", "0", "--no-netns-quit", "--netns", name)
    # What shall not happen has to be given the time that it would take.
    time.sleep(3)
    assert alive(daemon.pid)
    daemon.terminate()


# Other ways to start


def test_L12_it_runs_inside_a_user_namespace(pasta: Pasta) -> None:
    command = ["unshare", "--map-root-user", pasta.installation.pasta, "-q", "--netns-only", "--", "true"]
    result = pasta.topology.host.run(*command, user=pasta.user, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@only_root
@pytest.mark.parametrize(("options", "name"), [((), "nobody"), (("--runas", UNPRIVILEGED), UNPRIVILEGED)])
def test_root_becomes_somebody_else(pasta: Pasta, options: tuple[str, ...], name: str) -> None:
    guest = pasta.guest("--config-net", *options)
    uids = re.search(r"^Uid:\s+(.*)$", Path(f"/proc/{guest.pid}/status").read_text(), re.MULTILINE)
    assert uids is not None
    assert set(uids[1].split()) == {str(pwd.getpwnam(name).pw_uid)}


def test_it_holds_no_capabilities_beyond_low_ports(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    effective = re.search(r"^CapEff:\s+(\w+)$", Path(f"/proc/{guest.pid}/status").read_text(), re.MULTILINE)
    assert effective is not None
    assert int(effective[1], 16) & ~(1 << 10) == 0  # CAP_NET_BIND_SERVICE


@only_unprivileged
def test_the_limit_of_open_files_is_raised(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    limits = re.search(r"^Max open files\s+(\d+)\s+(\d+)", Path(f"/proc/{guest.pid}/limits").read_text(), re.MULTILINE)
    assert limits is not None
    assert limits[1] == limits[2]


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--no-such-option"], "unrecognized option '--no-such-option'"),
        (["-t", "99999"], "99999"),
        (["-a", "300.1.1.1"], "300.1.1.1"),
        (["--mtu", "banana"], "banana"),
        (["--interface", "nosuch0"], "nosuch0"),
        (["--netns", "/no/such/namespace"], "/no/such/namespace"),
        (["--pid", "/no/such/directory/pid"], "/no/such/directory/pid"),
        (["--pcap", "/no/such/directory/pcap"], "/no/such/directory/pcap"),
        (["--log-file", "/no/such/directory/log"], "/no/such/directory/log"),
        (["999999999"], "999999999"),
        (["-c", "/tmp/x"], "--conf-path"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_in_one_line_and_leaves_nothing(pasta: Pasta, arguments: list[str], named: str) -> None:
    operands = [] if arguments[0] in {"--netns", "999999999"} else ["--", "true"]
    result = pasta.run(*arguments, *operands, check=False, cwd=pasta.workspace)
    assert result.returncode == 1
    line, *others = result.stderr.splitlines()
    assert line.startswith("pasta: ")
    assert named in line
    # Who does not know the options gets their list
    assert (others[:1], others[-1:]) == (
        (
            ["Usage: pasta [OPTION]... [COMMAND] [ARGUMENT]..."],
            ["SPEC: none, all, or [ADDRESS][%INTERFACE]/PORTS; see pasta(1)."],
        )
        if "--no-such-option" in arguments
        else ([], [])
    )
    assert result.stdout == ""
    assert list(pasta.workspace.iterdir()) == []  # processes and namespaces: see `clean`


def test_version_and_help_come_on_standard_output(pasta: Pasta) -> None:
    version = pasta.run("--version")
    assert re.match(r"pasta \S+\n", version.stdout)
    usage = pasta.run("--help")
    assert {"--foreground", "--quiet", "--config-net", "--tcp-ports", "--pid"} <= set(re.split(r"[\s=]+", usage.stdout))
    assert (version.stderr, usage.stderr) == ("", "")
