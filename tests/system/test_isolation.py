"""Isolation: what the process that serves, and its helpers, have left: what an attacker would find."""

import contextlib
import os
import pty
import re
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from bucatini.datapath.syscall_numbers import numbers
from bucatini.host import landlock, seccomp
from system.machine import Machine, Passt, client, is_served
from system.namespaces import Namespace, alive, descendants, echo, end, receive, wait_until
from system.programs import need
from system.servers import source
from system.topology import GATEWAY4, SERVER, SERVER4, Guest, Pasta
from system.users import only_root, only_unprivileged

pytestmark = pytest.mark.release

NO_FORWARDS = ("-t", "none", "-u", "none", "-T", "none", "-U", "none")
NAMESPACES = ("user", "mnt", "ipc", "uts")
FORWARD = "169.254.1.1"


DEVICES = {os.makedev(1, 3), os.makedev(10, 200)}  # /dev/null, /dev/net/tun


def status(pid: int) -> dict[str, str]:
    """The lines of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def namespace(pid: int | str, kind: str) -> str:
    return os.readlink(f"/proc/{pid}/ns/{kind}")


def helpers(name: str, *others: int) -> dict[int, dict[str, str]]:
    """The processes of the program besides `others` that have a filter of system calls."""
    found = {pid: status(pid) for pid in descendants(os.getppid()) if alive(pid) and pid not in others}
    return {pid: lines for pid, lines in found.items() if lines["Name"] == name and lines["Seccomp"] == "2"}


def confined(name: str, pid: int, number: int) -> dict[int, dict[str, str]]:
    """So many helpers of a process: what they give up is given up when it is ready."""
    there = helpers(name, pid)
    assert len(there) == number
    return there


def assert_given_up(pid: int) -> None:
    """What holds for all processes, those that help too."""
    lines = status(pid)
    assert (lines["Seccomp"], lines["NoNewPrivs"]) == ("2", "1")
    assert os.stat(f"/proc/{pid}/mem").st_uid == 0, "it may be traced by its user"
    assert Path(f"/proc/{pid}/environ").read_bytes().strip(b"\0") == b""
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max core file size +0 +0 ", limits)
    assert re.search(r"Max processes +0 +0 ", limits)


def assert_walled_in(pid: int, *, background: bool) -> None:
    """The process can do nothing but serve."""
    assert_given_up(pid)
    lines = status(pid)
    assert {lines[name].strip("0") for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {""}
    assert "0" not in lines["Uid"].split()
    assert "0" not in lines["Gid"].split()
    assert lines["Groups"] == ""
    for kind in NAMESPACES + (("pid",) if background else ()):
        assert namespace(pid, kind) != namespace("self", kind), kind
    if background:
        assert lines["NSpid"].split()[-1] == "1"
    root = Path(f"/proc/{pid}/root")
    assert list(root.iterdir()) == []
    with pytest.raises(OSError, match="Read-only"):
        (root / "file").touch()
    assert {os.stat(f"/proc/{pid}/fd/{fd}").st_rdev for fd in (0, 1)} == {os.makedev(1, 3)}, "streams of its caller"
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            held, name = fd.stat(), os.readlink(fd)
            # No file and no folder: by the latter there would be a way out
            assert name.startswith(("socket:", "pipe:", "anon_inode:")) or held.st_rdev in DEVICES, name


def assert_connected(pasta: Pasta, guest: Namespace) -> None:
    """The guest reaches the server."""
    server = pasta.topology.server.serve_tcp(SERVER4, echo)
    with guest.connect(SERVER4, server.port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def answers(host: Namespace, port: int) -> bool:
    """Whether a server that echoes is behind this port of loopback."""
    try:
        with host.connect("127.0.0.1", port) as sock:
            sock.sendall(b"x")
            return sock.recv(1) == b"x"
    except OSError:
        return False


@pytest.mark.parametrize("options", [NO_FORWARDS, ("-t", "8080", "-u", "none", "-T", "none", "-U", "none"), ()])
def test_pasta_in_the_background_is_walled_in(pasta: Pasta, options: tuple[str, ...]) -> None:
    guest = pasta.join("--config-net", *options)
    assert_walled_in(guest.pid, background=True)
    assert_connected(pasta, guest)


def test_pasta_with_a_command_is_walled_in(pasta: Pasta) -> None:
    guest = pasta.guest("--config-net")
    guest.settle()
    # Its own output, and what it inherited as such, are pipes of the test
    assert_walled_in(guest.pid, background=False)


@pytest.mark.parametrize("options", [(), ("-t", "8080")])
def test_passt_is_walled_in(passt: Passt, options: tuple[str, ...]) -> None:
    pid = passt.background(*options)
    assert_walled_in(pid, background=True)
    with client(passt.socket) as sock:
        assert is_served(sock)


def test_passt_in_the_foreground_is_walled_in(passt: Passt) -> None:
    process = passt.foreground("--socket", passt.socket)
    wait_until(lambda: os.path.exists(passt.socket), "the socket")
    with client(passt.socket) as sock:
        assert is_served(sock)
        assert_walled_in(process.pid, background=False)


def test_the_foreground_holds_no_stream_of_its_caller_but_standard_error(passt: Passt) -> None:
    given, output = passt.workspace / "given", passt.workspace / "output"
    given.touch()
    with given.open() as stdin, output.open("w") as stdout:
        command = passt.argv("--foreground", "-q", "--socket", passt.socket)
        process = subprocess.Popen(command, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
    try:
        wait_until(lambda: os.path.exists(passt.socket), "the socket")
        with client(passt.socket) as sock:
            assert is_served(sock)
            assert_walled_in(process.pid, background=False)
    finally:
        end(process)


@only_root
def test_an_identity_that_was_asked_for_is_taken(pasta: Pasta) -> None:
    guest = pasta.join("--config-net", "--runas", "61001:61002", *NO_FORWARDS)
    assert status(guest.pid)["Uid"].split() == ["61001"] * 4
    assert status(guest.pid)["Gid"].split() == ["61002"] * 4
    assert_walled_in(guest.pid, background=True)


def test_helpers_have_what_they_need_and_no_more(pasta: Pasta) -> None:
    guest = pasta.join("--config-net", "-t", "8080", "-u", "none", "-T", "none", "-U", "none")
    found = confined("pasta", guest.pid, 2)
    by_capabilities = {int(lines["CapEff"], 16): pid for pid, lines in found.items()}
    # The lookout has none; the maker may bind low ports in the guest's namespace
    assert set(by_capabilities) == {0, 1 << 10}
    for pid, lines in found.items():
        assert_given_up(pid)
        assert "0" not in lines["Uid"].split() + lines["Gid"].split()
        assert lines["Groups"] == ""
        # The bounding set is not theirs to empty, and says nothing where nothing may be gained
        assert all(int(lines[name], 16) & ~(1 << 10) == 0 for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"))
    lookout, maker = by_capabilities[0], by_capabilities[1 << 10]
    assert namespace(lookout, "net") == namespace(guest.pid, "net")
    assert namespace(maker, "net") == namespace(guest.holder, "net")
    assert namespace(maker, "user") == namespace(guest.holder, "user")


PRY = """
import glob, os
os.system('umount /proc')  # what was there before lies beneath: the processes of the host
me = os.readlink('/proc/self')
found = []
for path in glob.glob('/proc/[0-9]*'):
    for name in ('mem', 'maps') if path != '/proc/' + me else ():
        try:
            os.close(os.open(path + '/' + name, os.O_RDONLY))
        except OSError:
            continue
        with open(path + '/comm') as file:
            found.append((name, file.read().strip()))
print(len(glob.glob('/proc/[0-9]*')) > 10, [each for each in found if each[1] == 'pasta'])
"""


def test_a_command_finds_no_process_of_ours_that_it_may_trace(pasta: Pasta) -> None:
    """Its init and who waits for that are copies of our program, as root of its namespaces sees them."""
    assert pasta.python(*NO_FORWARDS, code=PRY).stdout == "True []\n"


def test_what_is_typed_at_the_terminal_is_not_for_the_process_that_serves(passt: Passt) -> None:
    leader, follower = pty.openpty()
    with contextlib.ExitStack() as undo:
        undo.callback(os.close, leader)
        os.fchown(follower, passt.user.uid, -1)
        process = subprocess.Popen(
            passt.argv("--foreground", "--socket", passt.socket), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=follower,
        )  # fmt: skip
        os.close(follower)
        undo.callback(end, process)
        wait_until(lambda: os.path.exists(passt.socket), "the socket")
        with client(passt.socket) as sock:
            assert is_served(sock)
        said = dict(line.split() for line in Path(f"/proc/{process.pid}/fdinfo/2").read_text().splitlines()[:3])
        assert int(said["flags:"], 8) & os.O_ACCMODE == os.O_WRONLY


def test_low_ports_forward_themselves_where_that_was_granted(pasta: Pasta) -> None:
    """Root has the right to, and anybody to whom it was given; the process that serves has it no more."""
    if pasta.user.uid:
        pasta.user = pasta.user._replace(granted="net_bind_service")
    guest = pasta.join("--config-net", "-t", "auto", "-T", "none", "-U", "none")
    assert_walled_in(guest.pid, background=True)
    inside = guest.serve_tcp("0.0.0.0", echo, 79)
    wait_until(lambda: answers(pasta.topology.host, inside.port), "the forward", 3)
    found = confined("pasta", guest.pid, 3)
    for pid in found:
        assert_given_up(pid)
    assert [lines["CapEff"] for lines in found.values()].count(f"{1 << 10:016x}") == 2


@only_unprivileged
def test_low_ports_are_left_alone_where_nothing_was_granted(pasta: Pasta) -> None:
    guest = pasta.join("--config-net", "-t", "auto", "-T", "none", "-U", "none")
    guest.serve_tcp("0.0.0.0", echo, 79)
    guest.serve_tcp("0.0.0.0", echo, 8123)
    wait_until(lambda: answers(pasta.topology.host, 8123), "the other forward", 3)
    assert not answers(pasta.topology.host, 79)


def test_helpers_end_with_the_one_that_serves(pasta: Pasta) -> None:
    guest = pasta.join("--config-net", "-t", "8080", "-u", "none", "-T", "none", "-U", "none")
    others = list(confined("pasta", guest.pid, 2))
    os.kill(guest.pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in others), "the end of the helpers", 2)


@only_unprivileged
def test_the_log_tells_whether_landlock_is_there(pasta: Pasta) -> None:
    """What it does where it is: tests/unit/host/test_landlock.py."""
    log = pasta.workspace / "log"
    pasta.join("--config-net", "--debug", "--log-file", str(log))
    found = landlock.abi()
    assert f"isolated; Landlock: {f'ABI {found}' if found else 'this kernel has none'}\n" in log.read_text()


@only_unprivileged
def test_the_end_of_the_lookout_is_told_and_harms_nothing(pasta: Pasta) -> None:
    log = pasta.workspace / "log"
    guest = pasta.join("--config-net", "--log-file", str(log), *NO_FORWARDS)
    (lookout,) = confined("pasta", guest.pid, 1)
    os.kill(lookout, signal.SIGKILL)
    wait_until(lambda: "the process that watches files is gone" in log.read_text(), "the warning")
    assert_connected(pasta, guest)
    assert log.read_text().count("watches files") == 1


# Where it cannot be

FEW = 'echo 1 >/proc/sys/user/max_user_namespaces && exec "$@"'


@only_unprivileged
@pytest.mark.parametrize("program", ["pasta", "passt"])
@pytest.mark.parametrize("background", [False, True])
def test_without_namespaces_to_serve_in_there_is_no_start(pasta: Pasta, program: str, background: bool) -> None:
    """The namespace of the test's own is one of the two that there may be; pasta's guest is the other."""
    there = pasta.workspace / "there"  # as QEMU makes its pid file
    there.touch()
    os.chown(there, pasta.user.uid, pasta.user.gid)
    options = ["--pid", str(there), "--pcap", "new"] if background else ["--pid", "new", "--foreground"]
    options += ["--netns", "/proc/self/ns/net", "--netns-only"] if program == "pasta" else ["--socket", "socket"]
    inside = ["sh", "-c", FEW.replace("1 >", "0 >"), "sh", getattr(pasta.installation, program), *options]
    command = pasta.topology.host.command(["unshare", "--user", "--map-root-user", "--net", *inside], pasta.user)
    result = pasta.topology.host.run(
        *command[command.index("unshare") :], user=pasta.user, check=False, cwd=pasta.workspace
    )
    assert result.returncode == 1
    (line,) = [
        line for line in result.stderr.splitlines() if line.startswith(f"{program}: make namespaces to serve in")
    ]
    assert "bucatini doctor" in line
    assert [path.name for path in pasta.workspace.iterdir()] == ["there"]


# Python inside the wall

HOOK = """
import os, sys
sealed = False
def hook(event, arguments):
    global sealed
    if event == "bucatini.sealed":
        sealed = True
    elif sealed and event == "socket.__new__":  # of a port that forwards itself
        os.write(2, b"inside the wall\\n")
    elif sealed and event.partition(".")[0] in FORBIDDEN:
        os.write(2, f"after the seal: {event} {arguments}\\n".encode())
FORBIDDEN = {"open", "import", "exec", "compile", "subprocess", "ctypes", "marshal", "shutil", "glob", "tempfile"}
sys.addaudithook(hook)
"""


@pytest.fixture
def audited(pasta: Pasta) -> dict[str, str]:
    """An environment in which the programs tell what they do after they are sealed."""
    folder = pasta.workspace / "hook"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(HOOK)
    folder.chmod(0o755)
    return {**os.environ, "PYTHONPATH": str(folder)}


@only_unprivileged
def test_nothing_is_imported_opened_or_executed_inside_the_wall(
    pasta: Pasta, audited: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in audited.items():
        monkeypatch.setenv(name, value)
    pasta.topology.server.serve_udp(SERVER4, lambda data, _: data, 53)
    guest = pasta.guest("--config-net", "--debug", "--stats", "1", "--dns-forward", FORWARD, "-t", "auto", "-u", "auto")
    work(pasta, guest)
    pasta.topology.host.resolv_conf(f"search example.test\nnameserver {GATEWAY4}\n")
    wait_until(lambda: any("has changed" in line for line in guest.output), "the new resolvers")
    wait_until(lambda: any("statistics" in line for line in guest.output), "statistics")
    assert guest.finish() == 0
    assert "inside the wall\n" in guest.output
    assert [line for line in guest.output if "after the seal" in line] == []


def work(pasta: Pasta, guest: Guest) -> None:
    """Use what there is: TCP, UDP, ping, the slow path, ports that come and go."""
    for version in (4, 6):
        server = pasta.topology.server.serve_tcp(SERVER[version], source(bytes(1 << 20)))
        with guest.connect(SERVER[version], server.port) as sock:
            sock.shutdown(socket.SHUT_WR)
            assert len(receive(sock)) == 1 << 20
        guest.run("ping", f"-{version}", "-c1", "-W5", SERVER[version])
        with guest.connect(SERVER[version], 9, kind=socket.SOCK_DGRAM) as refused:
            refused.settimeout(5)
            refused.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                refused.recv(1)
    with guest.connect(FORWARD, 53, kind=socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.send(b"query")
        assert sock.recv(10) == b"query"
    guest.run("arping", "-c1", "-I", "host0", GATEWAY4, check=False)
    inside = guest.serve_tcp("0.0.0.0", echo, 8123)
    wait_until(lambda: answers(pasta.topology.host, inside.port), "the port that forwards itself")


# System calls

# Declared, and not seen in a run of seconds: why they are declared all the same
RARE = {
    "brk": "malloc(3): more memory at the end of the heap",
    "madvise": "free(3): an arena of another thread, or a large one",
    "mmap": "malloc(3): something large",
    "mprotect": "malloc(3): an arena grows",
    "mremap": "realloc(3): something large",
    "munmap": "free(3): something large",
    "futex": "the interpreter's lock, when somebody waits for it",
    "clock_gettime": "where the machine's clock cannot be read without the kernel",
    "restart_syscall": "the kernel's own, when a stopped process goes on",
    "fstat": "newfstatat of older C libraries",
    "stat": "newfstatat of older C libraries",
    "ppoll": "poll of other architectures",
    "dup3": "dup2 of other architectures",
    "epoll_pwait": "epoll_wait of other architectures",
    "epoll_pwait2": "a transfer past the tap that rests",
    "writev": "superframes of UDP",
    "dup": "descriptors have run out",
    "eventfd2": "descriptors have run out",
    "getpid": "the system log's entries",
    "wait4": "a command's end",
}
SECCOMP = re.compile(r"^(\d+) +prctl\(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, \{len=(\d+)", re.MULTILINE)
CALL = re.compile(r"^(\d+) +(?:<\.\.\. )?(\w+)(?:\(| resumed>)", re.MULTILINE)
PROFILES = [
    ("common", "serve", "pasta"),
    ("common", "serve", "pasta", "auto"),
    ("common", "serve", "passt"),
    ("common", "maker"),
    ("common", "binder"),
    ("common", "lookout"),
]


def used(trace: str) -> dict[tuple[str, ...], set[str]]:
    """Profiles -> system calls of the processes that have this filter, from the moment they have it."""
    by_length = {len(seccomp.program(profiles)) // 8: profiles for profiles in PROFILES}
    assert len(by_length) == len(PROFILES), "two filters of one length cannot be told apart"
    found: dict[tuple[str, ...], set[str]] = {}
    for match in SECCOMP.finditer(trace):
        calls = {name for who, name in CALL.findall(trace[match.end() :]) if who == match[1]}
        found.setdefault(by_length[int(match[2])], set()).update(calls - {"prctl"})
    return found


def traced(folder: Path, program: str, trace: Path) -> str:
    """A program that runs `program` with every system call written to `trace`."""
    wrapper = folder / f"traced-{Path(program).name}"
    wrapper.write_text(f'#!/bin/sh\nexec strace -D -f -q -o {trace} {program} "$@"\n')
    wrapper.chmod(0o755)
    return str(wrapper)


def in_background(argv: list[str], pid_file: Path) -> int:
    """Run a program until it has gone there; its process number. (Of its output the tracer is the last to let go.)"""
    null = subprocess.DEVNULL
    subprocess.run(argv, check=True, stdin=null, stdout=null, stderr=null, cwd="/", timeout=60)
    return int(pid_file.read_text())


@only_root
def test_what_is_called_is_declared_and_what_is_declared_is_called(
    pasta: Pasta, passt: Passt, machine: Machine, tmp_path: Path
) -> None:
    """A run in which a tracer sees every call: none that is not declared, and those declared that nobody makes."""
    need("strace", "strace")
    traces = [tmp_path / name for name in ("pasta.trace", "passt.trace")]
    programs = pasta.installation
    pasta.installation = programs._replace(pasta=traced(tmp_path, programs.pasta, traces[0]))
    passt.installation = programs._replace(passt=traced(tmp_path, programs.passt, traces[1]))
    pasta.topology.server.serve_udp(SERVER4, lambda data, _: data, 53)
    own = pasta.topology.host.serve_tcp("127.0.0.1", echo)
    target = pasta.holder()
    pid = in_background(
        pasta.argv(
            "--config-net", "--dns-forward", FORWARD, "-t", "auto", "-u", "auto", "-T", str(own.port), "--log-file",
            str(tmp_path / "log"), "--log-size", "4096", "--trace", "--pid", str(tmp_path / "pid"), str(target.pid),
        ),
        tmp_path / "pid",
    )  # fmt: skip
    guest = Guest(pasta, pid, target, target.pid)
    work(pasta, guest)
    with guest.connect("127.0.0.1", own.port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    pasta.topology.host.resolv_conf(f"nameserver {GATEWAY4}\n")
    guest.close()
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not alive(pid), "the end of pasta")
    pid = in_background(
        passt.argv(
            "-t", "8080", "--log-file", str(tmp_path / "log"), "--pid", str(tmp_path / "pid"), "-s", passt.socket
        ),
        tmp_path / "pid",
    )
    machine.cable.connect(passt.socket)
    machine.configure()
    assert_connected(pasta, machine)
    with client(passt.socket) as second:
        assert not is_served(second)
    machine.cable.disconnect()
    passt.terminate(pid)
    seen: dict[tuple[str, ...], set[str]] = {}
    for trace in traces:
        wait_until(lambda trace=trace: "exited" in trace.read_text().splitlines()[-1], "the end of the trace")  # type: ignore[misc]
        text = trace.read_text()
        assert "SIGSYS {" not in text
        for profiles, calls in used(text).items():
            seen.setdefault(profiles, set()).update(calls)
    assert len(seen) == len(PROFILES) - 1
    for profiles, calls in seen.items():
        assert calls <= set(seccomp.allowed(profiles)), profiles
    declared = {name for profiles in seen for name in seccomp.allowed(profiles)} & numbers().keys()
    never = declared - {name for calls in seen.values() for name in calls}
    assert never <= RARE.keys(), f"declared and not called in this run: {' '.join(sorted(never))}"
