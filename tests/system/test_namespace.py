"""The command's surroundings: terminal, signals, limits, descriptors, users; and the ways into a namespace."""

import contextlib
import fcntl
import os
import pty
import resource
import select
import shutil
import signal
import stat
import subprocess
import termios
import time
from pathlib import Path

import pytest

from bucatini.host import kernel
from system.namespaces import alive, descendants, wait_until
from system.topology import HOST4, Pasta
from system.users import only_root, only_unprivileged, unprivileged

MS_BIND = 0x1000  # linux/mount.h


def own_terminal() -> None:
    """In the child: make standard input the terminal of a new session."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def converse(pasta: Pasta, *options: str, lines: list[str], until: str) -> str:
    """Type lines into pasta on a terminal of its own; what it showed, up to `until` twice over its end."""
    leader, follower = pty.openpty()
    environment = os.environ | {
        "SHELL": shutil.which("bash") or "/bin/bash",
        "PS1": "$ ",
        "TERM": "dumb",
        "HISTFILE": "",
    }
    process = subprocess.Popen(
        pasta.argv("-q", *options), stdin=follower, stdout=follower, stderr=follower, cwd="/", env=environment,
        preexec_fn=own_terminal,  # noqa: PLW1509 - no thread of ours holds a lock
    )  # fmt: skip
    os.close(follower)
    os.write(leader, ("\n".join(lines) + "\n").encode())
    shown = b""
    deadline = time.monotonic() + 20
    try:
        while process.poll() is None or select.select([leader], [], [], 0)[0]:
            assert time.monotonic() < deadline, shown
            if not select.select([leader], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(leader, 4096)
            except OSError:
                break
            if not data:
                break
            shown += data
        assert process.wait(10) == 5, shown
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        os.close(leader)
    assert until in shown.decode(errors="replace")
    return shown.decode(errors="replace")


@pytest.mark.parametrize("options", [(), ("--no-pidns",)], ids=" ".join)
def test_an_interactive_shell_has_job_control(pasta: Pasta, options: tuple[str, ...]) -> None:
    shown = converse(
        pasta, *options, lines=["set -o | grep monitor", "sleep 60 & jobs; kill %1; exit 5"], until="Running"
    )
    assert "no job control" not in shown
    assert "monitor        \ton" in shown


@pytest.mark.parametrize(("script", "status"), [("/etc/passwd", 126), ("/no/such", 127), ("no-such-program", 127)])
@pytest.mark.parametrize("options", [(), ("--no-pidns",)], ids=" ".join)
def test_L10_what_cannot_be_run_has_the_status_that_shells_give_it(
    pasta: Pasta, script: str, status: int, options: tuple[str, ...]
) -> None:
    result = pasta.run("-q", *options, command=[script], check=False)
    assert result.returncode == status
    assert len(result.stderr.splitlines()) == 1
    assert script in result.stderr


def test_a_script_without_an_interpreter_line_is_one_for_sh(pasta: Pasta) -> None:
    script = pasta.workspace / "script"
    script.write_text('echo "$1"\nexit 3\n')
    script.chmod(0o755)
    pasta.workspace.chmod(0o755)  # root's pasta becomes nobody
    result = pasta.run("-q", command=[str(script), "word"], check=False)
    assert (result.returncode, result.stdout) == (3, "word\n")


def test_the_command_has_the_callers_limit_of_open_files(pasta: Pasta) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    result = pasta.run(
        "-q", command=["sh", "-c", "ulimit -n"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (77, hard)),
    )  # fmt: skip
    assert result.stdout == "77\n"


@pytest.mark.parametrize("options", [(), ("--no-pidns",)], ids=" ".join)
def test_nothing_that_pasta_has_open_is_in_the_namespace(pasta: Pasta, options: tuple[str, ...]) -> None:
    """Not in the command, nor in its init and who waits for that."""
    guest = pasta.guest("-q", "--pcap", str(pasta.workspace / "pcap"), *options)

    def inside() -> list[int]:
        found = []
        for pid in descendants(guest.pid):
            with contextlib.suppress(FileNotFoundError):  # the command has ended one of its own
                if os.path.samefile(f"/proc/{pid}/ns/net", guest.path):
                    found.append(pid)
        return found

    wait_until(lambda: len(inside()) == (1 if options else 3), "the command, its init and who waits for that")
    links = []
    for fd in (fd for pid in inside() for fd in Path(f"/proc/{pid}/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(os.readlink(fd))
    assert links
    assert not [link for link in links if "pcap" in link or "socket:" in link or "tun" in link or "anon_inode" in link]


def test_signals_that_were_ignored_stay_ignored(pasta: Pasta) -> None:
    result = pasta.run(
        "-q", command=["sh", "-c", "kill -HUP $$; echo alive"],
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert result.stdout == "alive\n"


def test_it_runs_where_the_end_of_children_is_ignored(pasta: Pasta) -> None:
    result = pasta.run(
        "-q", command=["sh", "-c", "exit 7"], check=False,
        preexec_fn=lambda: signal.signal(signal.SIGCHLD, signal.SIG_IGN),
    )  # fmt: skip
    assert result.returncode == 7


ORPHANS = """
import os, time
reader, writer = os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.write(writer, b"%d" % os.getpid())
    os._exit(0)
os.wait()
os.close(writer)
pid = b""
while data := os.read(reader, 20):
    pid += data
deadline = time.monotonic() + 10
while os.path.exists(f"/proc/{int(pid)}"):
    assert time.monotonic() < deadline
    time.sleep(0.01)
if os.fork() == 0:
    os.setsid()
    os.execvp("sleep", ["sleep", "300"])
"""


def test_orphans_in_the_namespace_are_collected_and_end_with_it(pasta: Pasta) -> None:
    # The fixture fails the test that leaves a process behind, such as the last one of these.
    pasta.python("-q", code=ORPHANS)


def test_ping_works_for_the_namespaces_root(pasta: Pasta) -> None:
    code = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)"
    pasta.python("-q", "--config-net", code=code)


@only_unprivileged
def test_the_root_of_a_user_namespace_keeps_its_users(pasta: Pasta) -> None:
    # Its root runs pasta, as Podman's does; who made it is of no importance, so it is root here.
    holder = subprocess.Popen(
        ["unshare", "--user", "sh", "-c", "echo; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        for name in ("gid_map", "uid_map"):
            Path(f"/proc/{holder.pid}/{name}").write_text("0 100000 1000\n")
        script = 'cat /proc/self/uid_map; id -u; chown 7:8 "$1" && stat -c %u:%g "$1"'
        mine = pasta.workspace / "mine"
        mine.touch()
        os.chown(mine, 100000, 100000)
        pasta.workspace.chmod(0o755)
        result = pasta.topology.host.run(
            "nsenter", f"--target={holder.pid}", "--user",
            pasta.installation.pasta, "-q", "--", "sh", "-c", script, "sh", str(mine), check=False,
        )  # fmt: skip
        assert (result.stdout.split(), result.stderr) == (["0", "0", "1000", "0", "7:8"], "")
        assert mine.stat().st_uid == 100007
    finally:
        holder.communicate()


def test_without_privilege_netns_only_says_what_is_missing(pasta: Pasta) -> None:
    result = pasta.run("--netns-only", command=["true"], check=False)
    assert result.returncode == 1
    assert "--runas 0" in result.stderr
    assert len(result.stderr.splitlines()) == 1


@only_root
def test_netns_only_works_for_root_that_stays_root(pasta: Pasta) -> None:
    result = pasta.run("-q", "--netns-only", "--runas", "0", command=["cat", "/proc/self/uid_map"])
    assert result.stdout.split() == ["0", "0", "4294967295"]


# Joining


@pytest.mark.parametrize("by", ["pid", "symbolic link"])
def test_a_process_that_is_there_is_served_on(pasta: Pasta, by: str) -> None:
    target = pasta.holder()
    options, operands = [], [str(target.pid)]
    if by == "symbolic link":
        link = pasta.workspace / "link"
        link.symlink_to(f"/proc/{target.pid}/ns/net")
        operands = []
        options = [f"--userns=/proc/{target.pid}/ns/user", f"--netns={link}"]
    daemon = pasta.background("--config-net", *options, operands=operands)
    # What shall not happen has to be given the time that it would take: two looks, one second apart.
    time.sleep(2.5)
    assert alive(daemon.pid)
    assert target.stdin is not None
    target.stdin.close()
    wait_until(lambda: not alive(daemon.pid), "end of pasta after that of its namespace", 2)


@pytest.mark.parametrize("target", ["/etc/passwd", "no-such-name", "/proc/1/ns/uts"])
def test_what_is_no_network_namespace_is_named_and_no_file_is_left(pasta: Pasta, target: str) -> None:
    pid_file = pasta.workspace / "pid"
    result = pasta.run("--pid", str(pid_file), "--netns", target, check=False)
    assert result.returncode == 1
    assert target in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not pid_file.exists()


def test_a_tap_that_is_there_already_is_named(pasta: Pasta) -> None:
    target = pasta.holder()
    first = pasta.background("-I", "same0", operands=[str(target.pid)])
    result = pasta.run("-I", "same0", str(target.pid), check=False)
    assert result.returncode == 1
    assert "same0" in result.stderr
    assert "--ns-ifname" in result.stderr
    assert alive(first.pid)


def test_the_tap_goes_with_pasta(pasta: Pasta) -> None:
    target = pasta.holder()
    daemon = pasta.background("-I", "tap7", operands=[str(target.pid)])
    names = Path(f"/proc/{target.pid}/net/dev")
    assert "tap7" in names.read_text()
    daemon.terminate()
    wait_until(lambda: "tap7" not in names.read_text(), "end of the tap")


@only_root
def test_root_joins_where_the_device_of_taps_is_for_root_alone(pasta: Pasta) -> None:
    """As `mknod /dev/net/tun c 10 200` makes it in many a container: nobody, who makes the tap, may not open it."""
    device = pasta.workspace / "tun"
    os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(10, 200))

    def for_root_alone() -> None:
        kernel.unshare(kernel.CLONE_NEWNS, "hide a device")
        kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
        kernel.mount(str(device), "/dev/net/tun", None, MS_BIND)

    root, pasta.user = pasta.user, unprivileged()
    holder = pasta.holder()  # where root is none that could
    pasta.user = root
    pasta.background("-q", "--config-net", operands=[str(holder.pid)], preexec_fn=for_root_alone)
    shown = subprocess.run(
        ["nsenter", f"--net=/proc/{holder.pid}/ns/net", "ip", "address"], check=True, capture_output=True, text=True
    )
    assert HOST4 in shown.stdout
