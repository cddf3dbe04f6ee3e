"""Isolation: what the process that serves, and its helpers, have left: what an attacker would find."""

import contextlib
import os
import pty
import re
import signal
import subprocess
from pathlib import Path

import pytest

from bucatini.host import landlock
from system.machine import Passt, client, is_served
from system.namespaces import Namespace, alive, descendants, echo, end, wait_until
from system.topology import SERVER4, Pasta
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


@only_root
def test_root_that_was_asked_for_takes_the_group_that_was(pasta: Pasta) -> None:
    guest = pasta.join("--config-net", "--runas", "0:61002", *NO_FORWARDS)
    lines = status(guest.pid)
    assert lines["Uid"].split() == ["0"] * 4
    assert lines["Gid"].split() == ["61002"] * 4
    assert lines["Groups"] == ""
    assert lines["CapEff"].strip("0") == ""


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
