"""Landlock: what each of its versions is asked to forbid, and that a process that asked for it is held to it."""

import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from bucatini.host import isolation, landlock, seccomp

READING = 1 << 2 | 1 << 3  # LANDLOCK_ACCESS_FS_READ_FILE, _READ_DIR; all values: linux/landlock.h
BIND_TCP = 1  # LANDLOCK_ACCESS_NET_BIND_TCP
ABSTRACT_UNIX, SIGNAL = 1, 2  # LANDLOCK_SCOPE_*
ABI = landlock.abi()


@pytest.mark.parametrize(
    ("abi", "forbidden"),
    [
        (1, (0x1FFF,)),  # up to MAKE_SYM
        (2, (0x3FFF,)),  # REFER
        (3, (0x7FFF,)),  # TRUNCATE
        (4, (0x7FFF, BIND_TCP)),
        (5, (0xFFFF, BIND_TCP)),  # IOCTL_DEV
        (6, (0xFFFF, BIND_TCP, ABSTRACT_UNIX | SIGNAL)),
        (7, (0xFFFF, BIND_TCP, ABSTRACT_UNIX | SIGNAL)),
        (99, (0xFFFF, BIND_TCP, ABSTRACT_UNIX | SIGNAL)),  # one that nobody knows yet
    ],
)
def test_a_rule_set_forbids_all_that_its_version_can(abi: int, forbidden: tuple[int, ...]) -> None:
    assert landlock.rule_set(abi) == struct.pack(f"={len(forbidden)}Q", *forbidden)


@pytest.mark.parametrize("abi", [1, 3, 4, 5, 6, 7])
def test_what_is_still_needed_is_let_through_and_nothing_else(abi: int) -> None:
    def words(**needed: bool) -> tuple[int, ...]:
        rules = landlock.rule_set(abi, **needed)
        return struct.unpack(f"={len(rules) // 8}Q", rules)

    files, *others = words()
    assert words(read=True) == (files & ~READING, *others)
    assert words(bind=True) == (files, *[0, *others[1:]][: len(others)])
    assert words(signal=True) == (files, *[*others[:1], ABSTRACT_UNIX][: len(others)])


def test_a_helper_may_only_do_what_it_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, bool]] = []
    monkeypatch.setattr(isolation, "give_up", lambda *_: None)
    monkeypatch.setattr(seccomp, "install", lambda *_: None)
    monkeypatch.setattr(landlock, "restrict", lambda **allowed: asked.append(allowed) or 0)
    isolation.confine("lookout", read=True)
    isolation.confine("binder", bind=True)
    assert asked == [
        {"bind": False, "read": True, "signal": False},
        {"bind": True, "read": False, "signal": False},
    ]


HEAD = """
import errno, os, socket, sys
from bucatini.host import kernel, landlock
kernel.take_no_privileges()
folder, name = sys.argv[1:]

def tried(function, *arguments):
    try:
        function(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno]
    return "done"

def bind(kind):
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))

def abstract():
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect("\\0" + name)

def look():
    print(
        tried(os.open, folder + "/file", os.O_RDONLY), tried(os.open, folder + "/file", os.O_WRONLY),
        tried(os.listdir, folder), tried(os.mkdir, folder + "/made"), tried(bind, socket.SOCK_STREAM),
        tried(bind, socket.SOCK_DGRAM), tried(abstract), tried(os.kill, os.getppid(), 0),
    )

look()
os.rmdir(folder + "/made")
"""


@pytest.mark.skipif(ABI == 0, reason="this kernel has no Landlock (Linux 5.13 with landlock among its lsm=)")
@pytest.mark.parametrize("let", ["", "read=True", "bind=True", "signal=True"])
def test_a_process_that_has_put_the_wall_up_is_refused_what_it_forbids(tmp_path: Path, let: str) -> None:
    (tmp_path / "file").touch()
    name = f"bucatini-test-{tmp_path}"[:100]
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"\0{name}")
        listening.listen()
        code = f"{HEAD}print(landlock.restrict({let}))\nlook()\n"
        command = [sys.executable, "-c", code, str(tmp_path), name]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    before, version, after = result.stdout.splitlines()
    assert before.split() == ["done"] * 8
    assert int(version) == ABI
    files = ["done", "EACCES", "done", "EACCES"] if let == "read=True" else ["EACCES"] * 4
    tcp = "EACCES" if ABI >= 4 and let != "bind=True" else "done"
    scoped = "EPERM" if ABI >= 6 else "done"
    assert after.split() == [*files, tcp, "done", scoped, "done" if let == "signal=True" else scoped]
