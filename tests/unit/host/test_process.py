"""What makes a process a daemon, each part in a child process."""

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from bucatini.errors import HostError, UsageError
from bucatini.host import process


def in_child(code: str, **options: object) -> "subprocess.CompletedProcess[str]":
    """Run code that may use `process` in a Python of its own."""
    script = f"import os, sys\nfrom bucatini.host import process\n{code}"
    environment = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[2])}
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, **options
    )


def test_the_parent_leaves_with_0_when_the_child_is_ready_and_not_before(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    code = f"""
file = process.PidFile({str(file)!r}, process.Made())
background = process.Background()
background.fork(file, process.Made())
ready = open({str(tmp_path / "ready")!r}, "w")
print(os.getpid(), file=ready, flush=True)
background.ready()
os._exit(9)
"""
    result = in_child(code)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert file.read_text() == (tmp_path / "ready").read_text()


def test_a_pid_file_that_cannot_be_written_ends_both() -> None:
    code = """
background = process.Background()
reader, writer = os.pipe()
try:
    background.fork(process.PidFile("/dev/full", process.Made()), process.Made())
except process.HostError:
    os.close(writer)
    os._exit(7 if os.read(reader, 1) == b"" else 8)  # the child, which holds the other end, is gone
background.ready()
import signal
signal.pause()
"""
    assert in_child(code).returncode == 7


def test_the_parent_fails_when_the_child_does() -> None:
    assert in_child("process.Background().fork(None, process.Made()); os._exit(0)").returncode == 1


def test_a_child_whose_parent_has_gone_does_not_stay() -> None:
    code = """
reader, writer = os.pipe()
background = process.Background()
background.fd, background.null = writer, os.open("/dev/null", os.O_RDWR)
os.close(reader)
try:
    background.ready()
except process.HostError:
    os._exit(5)
"""
    assert in_child(code).returncode == 5


def test_closed_streams_are_there_and_are_devnull(tmp_path: Path) -> None:
    result = tmp_path / "result"
    code = f"""
process.occupy_standard_descriptors()
names = [os.readlink(f"/proc/self/fd/{{n}}") for n in range(3)]
with open({str(result)!r}, "w") as file:
    file.write(" ".join(names))
"""
    script = f"import os, sys\nfrom bucatini.host import process\n{code}"
    environment = os.environ | {"PYTHONPATH": str(Path(process.__file__).parents[2])}
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", script]
    assert subprocess.run(command, env=environment, timeout=60).returncode == 0
    assert result.read_text() == "/dev/null /dev/null /dev/null"


def test_inherited_descriptors_are_closed_but_for_one() -> None:
    reader, writer = os.pipe()
    try:
        code = f"process.close_inherited({writer}); print(*sorted(map(int, os.listdir('/proc/self/fd'))))"
        result = in_child(code, pass_fds=[reader, writer])
    finally:
        os.close(reader)
        os.close(writer)
    found = [int(number) for number in result.stdout.split()]
    assert writer in found
    assert reader not in found


NO_CALL = """
from bucatini.host import kernel
from bucatini.errors import HostError
def refuse(*_):
    raise HostError("close descriptors", 38)
kernel.close_range = refuse
"""
NO_PROC = """
listed = os.listdir
os.listdir = lambda path: listed("/nonexistent")
"""


@pytest.mark.parametrize(
    ("without", "high"),
    [("", True), (NO_CALL, True), (NO_CALL + NO_PROC, False)],
    ids=["close_range", "proc", "limit"],
)
def test_descriptors_above_the_limit_of_open_files_are_closed_too(without: str, high: bool) -> None:
    code = f"""
import resource
kept, low, above = 700, 90, {2000 if high else 900}
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, hard))
for fd in (kept, low, above):
    os.dup2(0, fd)
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
{without}
process.close_inherited(kept)
for fd in (0, 1, 2, kept, low, above):
    try:
        os.fstat(fd)
    except OSError:
        continue
    print(fd)
"""
    assert in_child(code).stdout.split() == ["0", "1", "2", "700"]


def test_a_pid_file_is_overwritten_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    path.write_text("something longer than a number\n" * 9)
    path.chmod(0o600)
    process.PidFile(str(path), process.Made()).write(4711)
    assert path.read_text() == "4711\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_pid_file_that_cannot_be_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="no/pid"):
        process.PidFile(str(tmp_path / "no" / "pid"), process.Made())


def test_a_full_disk_is_an_error() -> None:
    with pytest.raises(HostError, match="/dev/full"):
        process.PidFile("/dev/full", process.Made()).write(1)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0", (0, 0)), ("12:34", (12, 34)), ("root", (0, 0)), ("root:12", (0, 12)), ("4294967294", (0xFFFFFFFE,) * 2)],
)
def test_whom_to_be_is_read(text: str, expected: tuple[int, int]) -> None:
    assert process.identity_of(text) == expected


@pytest.mark.parametrize(
    "text", ["", ":1", "no-such-user", "1:no-such-group", "1:", "4294967295", "1:4294967295", "9" * 30, "²"]
)
def test_whom_nobody_can_be_is_named(text: str) -> None:
    with pytest.raises(UsageError, match="--runas"):
        process.identity_of(text)


def test_by_default_it_is_nobody() -> None:
    assert process.identity_of(None)[0] == 65534


def test_the_limit_of_open_files_is_raised_to_the_hard_one() -> None:
    code = "print(process.raise_descriptor_limit(), *__import__('resource').getrlimit(7))"
    result = in_child(code, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 256)))
    assert result.stdout.split() == ["256"] * 3


def test_a_folder_that_was_removed_is_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    result = in_child(
        f"os.chdir({str(folder)!r}); os.rmdir({str(folder)!r}); process.have_directory(); print(os.getcwd())"
    )
    assert result.stdout == "/\n"


def test_the_ports_of_the_kernel_are_those_of_the_sysctl() -> None:
    text = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text()
    assert process.ephemeral_range() == tuple(map(int, text.split()))


def test_what_a_start_made_is_removed_and_what_was_there_stays(tmp_path: Path) -> None:
    for name in ("before", "target"):
        (tmp_path / name).write_text("precious")
    (tmp_path / "link").symlink_to("target")
    made = process.Made()
    for name in ("before", "link", "new", "replaced"):
        os.close(made.open(str(tmp_path / name), 0o600))
    (tmp_path / "replaced").rename(tmp_path / "moved")
    (tmp_path / "replaced").write_text("somebody else's")
    made.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["before", "link", "moved", "replaced", "target"]
    assert stat.S_ISREG((tmp_path / "target").stat().st_mode)


def test_what_a_start_made_stays_after_it(tmp_path: Path) -> None:
    made = process.Made()
    os.close(made.open(str(tmp_path / "new"), 0o600))
    made.keep()
    made.remove()
    assert (tmp_path / "new").exists()


def test_the_parent_removes_what_the_child_no_longer_sees(tmp_path: Path) -> None:
    code = f"""
os.chdir({str(tmp_path)!r})
made = process.Made()
file = process.PidFile("pid", made)
process.Background().fork(file, made)
os._exit(1)
"""
    assert in_child(code).returncode == 1
    assert not (tmp_path / "pid").exists()
