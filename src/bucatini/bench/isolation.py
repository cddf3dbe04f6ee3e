"""What isolation costs: our pasta as it is, and with `--no-isolation`. `make isolation` writes docs/isolation.md.

Two runs of the same differ by more than the hundredth that is looked for here. So the two are measured in pairs, one
right behind the other and each first in every second pair; a pair's ratio is one value, and the mean of many has a
standard error that says what it is worth. Both are connected anew several times: where memory lies changes with it.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import sys
import textwrap
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from bucatini.bench import report, runner, systems
from bucatini.bench.cells import CELLS, PLACEMENT, Cell
from bucatini.bench.systems import OURS, System
from bucatini.bench.topology import Topology, put_back_when_ended

ENVIRONMENT = "mtu65520"
KEYS = (
    "tcp-out", "tcp-in", "tcp-pingpong", "udp-pingpong", "crr", "crr-forward", "dns", "udp-out-64", "udp-in-64",
)  # fmt: skip
WITHOUT = ("--no-isolation",)
STARTS = 3  # times that both are connected
PAIRS = 8  # of each cell, each time
HEAD = """# What isolation costs

Made by `make isolation`, not by hand (`bench/isolation.py`): our pasta, and our pasta with `--no-isolation` (no
namespaces and root of its own, no Landlock, no filter of system calls), measured in pairs.
"""
TABLE = """
|  | isolated | not | cost, % |
|---|---|---|---|"""


class Cost(NamedTuple):
    """What one cell showed: the medians, and the part that is missing with isolation, with its standard error."""

    cell: Cell
    isolated: float
    bare: float
    missing: float
    error: float


def cost(cell: Cell, pairs: list[tuple[float, float]]) -> Cost:
    """Return what two values or more of each, (isolated, bare), come to; for cells where more is better."""
    isolated, bare = zip(*pairs, strict=True)
    ratios = [with_it / without for with_it, without in pairs]
    return Cost(
        cell,
        statistics.median(isolated),
        statistics.median(bare),
        1 - statistics.mean(ratios),
        statistics.stdev(ratios) / math.sqrt(len(ratios)),
    )


def measure(cells: list[Cell], starts: int, pairs: int) -> list[Cost]:
    """Measure; as root."""
    program = systems.find(OURS, None)
    found: dict[str, list[tuple[float, float]]] = {cell.key: [] for cell in cells}
    with contextlib.ExitStack() as undo:
        places = []
        for _ in range(2):
            places.append(Topology())
            undo.callback(places[-1].close)
            places[-1].make()
        for start in range(starts):
            with contextlib.ExitStack() as stop:
                both = []
                for place, options in zip(places, ((), WITHOUT), strict=True):
                    both.append(System(OURS, program, place, options=options))
                    stop.callback(both[-1].stop)
                for cell in cells:
                    for number in range(pairs):
                        sys.stderr.write(f"start {start + 1} of {starts}, {cell.id}, pair {number + 1}\n")
                        order = both if number % 2 == 0 else both[::-1]
                        values = {system: cell.run(system)[""] for system in order}
                        found[cell.key].append((values[both[0]], values[both[1]]))
    return [cost(cell, found[cell.key]) for cell in cells]


def page(costs: list[Cost], pairs: int) -> str:
    """Return docs/isolation.md."""
    rows = [
        f"| {each.cell.title}, {each.cell.metrics[0].unit} | {report.number(each.isolated)} "
        f"| {report.number(each.bare)} | {each.missing * 100:.1f} ± {each.error * 200:.1f} |"
        for each in costs
    ]
    where = (
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, Linux {os.uname().release}, {os.uname().machine}, "
        f"{os.cpu_count()} × {runner.cpu_model()}, Python {sys.version.split()[0]}. "
        f"{PLACEMENT.partition(' A delay line')[0]} Medians of {pairs} pairs; the cost is the mean of what is missing "
        "in each pair, with twice its standard error: what is smaller than that may be nothing."
    )
    return "\n".join([HEAD, textwrap.fill(where, 120), TABLE, *rows, ""])


def main(argv: list[str]) -> int:
    """Measure, and write the page to a file; the arguments: FILE [STARTS PAIRS [CELL...]]."""
    starts, pairs = map(int, argv[1:3] or (STARTS, PAIRS))
    keys = argv[3:] or KEYS
    cells = [cell for cell in CELLS if cell.environment == ENVIRONMENT and cell.key in keys]
    put_back_when_ended()
    text = page(measure(cells, starts, pairs), starts * pairs)
    Path(argv[0]).write_text(text)
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
