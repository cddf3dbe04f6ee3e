"""Calls of the kernel that Python has no function for."""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

from bucatini.host import kernel

PACKAGE = str(Path(kernel.__file__).parents[2])
WIPE = """
import sys
from bucatini.host import kernel
print('there', flush=True)
sys.stdin.readline()
kernel.wipe_environment()
print('wiped', flush=True)
sys.stdin.readline()
"""


def occurrences(pid: int, what: bytes) -> int:
    """How often the memory that a process can write to has this."""
    found = 0
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            extent, access, *_ = line.split()
            first, last = (int(number, 16) for number in extent.split("-"))
            if access.startswith("rw"):
                memory.seek(first)
                found += memory.read(last - first).count(what)
    return found


def test_of_the_environment_nothing_stays_in_memory() -> None:
    """Neither where the kernel put it nor where Python has it; pieces that malloc hands out next to nobody, too."""
    secrets = {f"SECRET{size}": os.urandom(size // 2).hex() for size in (20, 60, 500, 2000)}
    process = subprocess.Popen(
        [sys.executable, "-c", WIPE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={"PYTHONPATH": PACKAGE, **secrets},
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.closing(process.stdin), contextlib.closing(process.stdout):
        assert process.stdout.readline() == "there\n"
        before = [occurrences(process.pid, value.encode()) for value in secrets.values()]
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "wiped\n"
        after = [occurrences(process.pid, value.encode()) for value in secrets.values()]
    assert process.wait(5) == 0
    assert min(before) >= 2
    assert after == [0] * len(secrets)
