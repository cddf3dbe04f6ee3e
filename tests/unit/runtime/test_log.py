"""The log: levels, where messages go, and what happens where they cannot."""

import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bucatini.errors import HostError
from bucatini.runtime.log import DEBUG, ERROR, INFO, TRACE, WARNING, Log, printable

ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d \d+\.\d{4} (error|warning|info|debug|trace): (.*)")


Make = Callable[..., Log]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes logs that are closed in the end."""
    logs = []

    def log(**arguments: Any) -> Log:
        logs.append(Log(**arguments))
        return logs[-1]

    yield log
    for made in logs:
        made.close()


def say_everything(log: Log) -> None:
    log.error("an error")
    log.warning("a warning")
    log.info("an information")
    log.debug("a detail")
    log.trace("a frame")


def entries(path: Path) -> list[str]:
    """The texts of a log file's entries; every line must be one."""
    data = path.read_text()
    assert not data or data.endswith("\n")
    found = [ENTRY.fullmatch(line) for line in data.splitlines()]
    return [match[2] for match in found if match is not None or pytest.fail(f"not an entry in {data!r}")]


# Levels


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, INFO),
        ({"quiet": True}, WARNING),
        ({"debug": True}, DEBUG),
        ({"debug": True, "trace": True}, TRACE),
    ],
)
def test_an_option_chooses_how_much_is_said(make: Make, options: dict[str, bool], level: int, tmp_path: Path) -> None:
    path = tmp_path / "log"
    say_everything(make(path=str(path), **options))
    count = [ERROR, WARNING, INFO, DEBUG, TRACE].index(level) + 1
    assert entries(path) == ["an error", "a warning", "an information", "a detail", "a frame"][:count]


def test_a_warning_is_said_once(make: Make, tmp_path: Path) -> None:
    log = make(path=str(tmp_path / "log"))
    for _ in range(3):
        log.warning("a warning")
        log.warn_once("key", "one of many")
    log.warn_once("key", "another of the same")
    assert entries(tmp_path / "log") == ["a warning", "one of many"]


def test_warnings_without_end_are_not_remembered_without_end(make: Make, tmp_path: Path) -> None:
    log = make(path=str(tmp_path / "log"), size=1 << 20)
    for number in range(3000):
        log.warning(f"warning {number}")
    found = entries(tmp_path / "log")
    assert len(found) == 1001
    assert found[-2:] == ["warning 999", "more warnings are not logged"]
    assert len(log.seen) == 1001


# An entry is a line


def test_an_entry_is_one_line_whatever_a_guest_puts_into_it(make: Make, tmp_path: Path) -> None:
    log = make(path=str(tmp_path / "log"))
    log.info("name 'a\nb\x1b[2J\udcff\x85'")
    assert entries(tmp_path / "log") == [r"name 'a\nb\x1b[2J\udcff\x85'"]


@given(st.text())
def test_any_text_becomes_printable(text: str) -> None:
    assert printable(text).isprintable()


# Standard error


def test_without_a_file_everything_goes_to_standard_error(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    say_everything(make(trace=True))
    assert capfd.readouterr().err.splitlines() == [
        "pasta: an error",
        "pasta: a warning",
        "an information",
        "a detail",
        "a frame",
    ]


def test_with_a_file_warnings_and_errors_are_on_standard_error_too(
    make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    say_everything(make(path=str(tmp_path / "log")))
    assert capfd.readouterr().err.splitlines() == ["pasta: an error", "pasta: a warning"]


CLOSED = """
import os, sys
for fd in range(3):
    os.dup2(os.open("/dev/null", os.O_RDWR), fd) if sys.argv[2] == "null" else os.close(fd)
sys.stdin = sys.stdout = sys.stderr = None
from bucatini.runtime.log import Log
for log in (Log(), Log(path=sys.argv[1])):
    log.error("an error")
    log.info("an information")
os._exit(7)
"""


@pytest.mark.parametrize("how", ["closed", "null"])
def test_L9_it_works_without_standard_descriptors(how: str, tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert subprocess.run([sys.executable, "-c", CLOSED, str(path), how]).returncode == 7
    assert entries(path)[-2:] == ["an error", "an information"]


WRITER = """
from bucatini.runtime.log import Log
log = Log()
for number in range(100):
    log.info("x" * 3000)
log.error("an error")
"""


def test_a_reader_of_standard_error_that_stops_does_not_stop_us() -> None:
    reader, writer = os.pipe()
    try:
        assert subprocess.run([sys.executable, "-c", WRITER], stderr=writer, timeout=30).returncode == 0
        data = os.read(reader, 1 << 20)
    finally:
        os.close(writer)
        os.close(reader)
    assert data.startswith(b"x" * 3000 + b"\n")
    assert {len(line) for line in data.splitlines()} <= {3000, len("pasta: an error")}


def test_a_reader_of_standard_error_that_is_gone_does_not_end_us() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert subprocess.run([sys.executable, "-c", WRITER], stderr=writer).returncode == 0
    finally:
        os.close(writer)


# The system log


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[socket.socket]:
    """A system log, at `tmp_path`/syslog."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as sock:
        sock.bind(str(tmp_path / "syslog"))
        yield sock


def received(sock: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(sock.recv(65536))
        except BlockingIOError:
            return messages


def test_in_the_background_messages_go_to_the_system_log_but_for_details(
    make: Make, syslog: socket.socket, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = make(trace=True, syslog=str(tmp_path / "syslog"))
    log.info("before")
    log.connect_syslog()
    log.to_background()
    say_everything(log)
    found = received(syslog)
    # RFC 3164 §4.1: <PRI>Mmm dd hh:mm:ss TAG[PID]: text
    form = re.compile(rb"<(\d+)>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d pasta\[%d\]: (.*)" % os.getpid())
    matches = [form.fullmatch(message) for message in found]
    assert [(int(m[1]), m[2]) for m in matches if m] == [
        (27, b"an error"),
        (28, b"a warning"),
        (30, b"an information"),
    ]
    assert capfd.readouterr().err == "before\n"


def test_quiet_stays_quiet_in_the_background(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    log = make(quiet=True, syslog=str(tmp_path / "syslog"))
    log.connect_syslog()
    log.to_background()
    say_everything(log)
    assert len(received(syslog)) == 2


def test_a_file_gets_details_and_frames_in_the_background_too(make: Make, tmp_path: Path) -> None:
    log = make(trace=True, path=str(tmp_path / "log"))
    log.to_background()
    say_everything(log)
    assert entries(tmp_path / "log")[-2:] == ["a detail", "a frame"]


def test_a_file_takes_the_place_of_the_system_log(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    log = make(path=str(tmp_path / "log"), syslog=str(tmp_path / "syslog"))
    log.connect_syslog()
    log.to_background()
    log.error("an error")
    assert entries(tmp_path / "log") == ["an error"]
    assert received(syslog) == []


def test_the_system_log_is_connected_before_the_file_system_is_gone(
    make: Make, syslog: socket.socket, tmp_path: Path
) -> None:
    log = make(syslog=str(tmp_path / "syslog"))
    log.connect_syslog()
    (tmp_path / "syslog").rename(tmp_path / "elsewhere")
    log.to_background()
    log.error("an error")
    assert len(received(syslog)) == 1


def test_a_system_log_that_was_restarted_does_no_harm(make: Make, tmp_path: Path) -> None:
    path = str(tmp_path / "syslog")
    log = make(syslog=path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as first:
        first.bind(path)
        log.connect_syslog()
        log.to_background()
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as second:
        second.bind(path)
        log.error("lost: inside the wall there is no path to the new one")
        assert received(second) == []


def test_a_system_log_that_does_not_read_does_not_stop_us(make: Make, syslog: socket.socket, tmp_path: Path) -> None:
    log = make(syslog=str(tmp_path / "syslog"))
    log.connect_syslog()
    log.to_background()
    for number in range(2000):
        log.info(f"message {number}")
    assert 0 < len(received(syslog)) < 2000
    log.info("again")
    assert len(received(syslog)) == 1


def test_no_system_log_is_no_error(make: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = make(syslog=str(tmp_path / "none"))
    log.connect_syslog()
    log.to_background()
    log.error("an error")
    assert capfd.readouterr().err == ""


# The file


def test_a_file_that_cannot_be_opened_is_named(make: Make, tmp_path: Path) -> None:
    with pytest.raises(HostError, match=f"open the log file {tmp_path}/no/log: No such file or directory"):
        make(path=str(tmp_path / "no" / "log"))


def test_only_its_owner_reads_the_file(make: Make, tmp_path: Path) -> None:
    make(path=str(tmp_path / "log"))
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_the_oldest_entries_are_cut_and_the_bound_is_never_exceeded(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = make(path=str(path), size=4096)
    cuts = last = 0
    for number in range(500):
        log.info(f"entry {number} {'x' * (number % 97)}")
        used = path.stat().st_size
        assert used <= 4096
        cuts += used < last
        last = used
    assert cuts > 5
    numbers = [int(text.split()[1]) for text in entries(path)]
    assert numbers == list(range(numbers[0], 500))
    assert len(numbers) > 10


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text(max_size=3000), min_size=1, max_size=30), st.integers(min_value=4096, max_value=9000))
def test_any_messages_leave_whole_entries_within_the_bound(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    log = Log(path=str(path), size=size, quiet=False)
    log.stderr = False
    for text in texts:
        log.info(text)
        assert path.stat().st_size <= size
    log.close()
    assert entries(path)[-1] == printable(texts[-1])[: len(entries(path)[-1])]


def test_a_full_disk_leaves_no_half_entry_and_is_no_error(make: Make, tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = make(path=str(path), size=1 << 20)
    log.info("fits")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, limits[1]))  # Python ignores SIGXFSZ
    try:
        log.info("does not fit")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.info("fits again")
    assert entries(path) == ["fits", "fits again"]


def test_a_device_is_a_file_without_bound(make: Make, tmp_path: Path) -> None:
    log = make(path="/dev/full")
    log.info("nothing can be written there")
    os.mkfifo(tmp_path / "fifo")
    log = make(path=str(tmp_path / "fifo"), size=4096)
    for _ in range(1000):
        log.info("x" * 1000)  # nobody reads, nothing blocks
    assert os.read(log.fd, 4096).count(b"\n") == 3
