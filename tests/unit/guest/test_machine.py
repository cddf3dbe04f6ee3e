"""The socket at which QEMU finds us: who takes a path when several want it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bucatini.guest import machine
from bucatini.lean import sockets

PACKAGE = str(Path(machine.__file__).parents[2])
# A start that is slow between bind and listen: others see what looks like a socket that somebody has left
SLOW = """
import sys, time
from bucatini.errors import HostError
from bucatini.guest import machine
original = machine.sockets.socket.listen
def listen(self, backlog):
    time.sleep(0.05)
    original(self, backlog)
class Slow(machine.sockets.socket):
    listen = listen
machine.sockets.socket = Slow
machine.PATH = sys.argv[1]
try:
    _, path = machine.listen(sys.argv[2] if len(sys.argv) > 2 else None)
    print(path, flush=True)
except HostError as error:
    print('refused', flush=True)
sys.stdin.read()
"""


def starts(*arguments: str) -> list[str]:
    """What six starts at once say."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SLOW, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={"PYTHONPATH": PACKAGE},
        )
        for _ in range(6)
    ]  # fmt: skip
    said = [process.stdout.readline().strip() for process in processes if process.stdout is not None]
    for process in processes:
        process.communicate(timeout=10)
    return said


def test_of_starts_at_one_time_each_takes_a_default_path_of_its_own(tmp_path: Path) -> None:
    names = str(tmp_path / "{}.socket")
    assert sorted(starts(names)) == [names.format(number) for number in range(1, 7)]


def test_of_starts_at_one_time_one_takes_the_path_that_all_were_given(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as left_over:
        left_over.bind(path)
    assert sorted(starts("", path)) == [path] + ["refused"] * 5


def test_a_turn_that_somebody_keeps_does_not_stop_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "TURN", 0.01)
    folder = os.stat(tmp_path)
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_DGRAM) as somebody:
        somebody.bind(machine.LOCK.format(folder.st_dev, folder.st_ino))
        sock, path = machine.listen(str(tmp_path / "socket"))
    sock.close()
    assert os.path.exists(path)
