"""The micro-benchmarks: each piece does what it is timed for."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bucatini.bench import loops, micro

PIECES: dict[str, Callable[[int], float]] = {
    "checksum": lambda count: loops.checksum(count, 1460),
    "flow lookup": loops.flow_lookup,
    "parse": lambda count: loops.parse(count, micro.frame(1460), False),
    "build": loops.build,
    "machine": loops.machine,
}


@pytest.mark.parametrize("piece", PIECES.values(), ids=PIECES)
def test_a_piece_takes_time(piece: Callable[[int], float]) -> None:
    """And is correct, or it raises."""
    assert piece(1000) > 0


def test_a_frame_that_is_not_taken_is_not_timed() -> None:
    with pytest.raises(RuntimeError, match="not a TCP segment"):
        loops.parse(1, micro.frame(1460)[:30], True)


@pytest.mark.release
def test_pyperf_runs_them(tmp_path: Path) -> None:
    file = tmp_path / "micro.json"
    command = [sys.executable, "-m", "bucatini.bench.micro", "--debug-single-value", "-o", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    for piece in ("checksum", "flow lookup", "parse", "build", "TCP machine"):
        assert piece in file.read_text()
