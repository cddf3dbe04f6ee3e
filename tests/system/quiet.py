"""Measured silence: what waits must not spin."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from system.namespaces import alive

QUIET = 0.05  # of one processor's time, when there is next to nothing to do


def processor_time(pid: int) -> float:
    """Seconds that all threads of a process have used, in user and kernel mode: proc_pid_stat(5), fields 14 and 15."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def nearly_idle(pid: int) -> Iterator[None]:
    """The process lives, and takes less than `QUIET` of a processor meanwhile."""
    before, start = processor_time(pid), time.monotonic()
    yield
    share = (processor_time(pid) - before) / (time.monotonic() - start)
    assert share < QUIET, f"process {pid} used {share:.0%} of the processor"
    assert alive(pid)


def assert_quiet(pid: int, seconds: float) -> None:
    """Measure for so long."""
    with nearly_idle(pid):
        time.sleep(seconds)
