"""The order of a run: environments, in them cells, in them rounds in which the systems take turns.

A round is one measurement of every system. When our values, or those of no translation, spread wider than
`DISTURBED`, as many rounds again are added and all values kept: nothing is dropped. What a system cannot do is a reason
in the result.

The result is the document that docs/benchmark.md describes.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bucatini.bench import machines, systems
from bucatini.bench.cells import CELLS, ENVIRONMENTS, PLACEMENT, Cell, Environment
from bucatini.bench.systems import NATIVE, System
from bucatini.bench.topology import Topology

if TYPE_CHECKING:
    from collections.abc import Sequence

SCHEMA = 1
DISTURBED = 0.5  # (most - least) / median
REPEATS = 1  # times that rounds are added at most
START_ROUNDS = 9  # at least, of a cell of milliseconds


class Watcher(Protocol):
    """Who is told how it goes."""

    def progress(self, text: str) -> None:
        """What is being measured now."""

    def say(self, text: str) -> None:
        """What was found."""


class Progress:
    """Where the run is, and how long it will still take."""

    def __init__(self, total: int, watcher: Watcher) -> None:
        self.total, self.done, self.watcher = total, 0, watcher
        self.begin = time.monotonic()

    def step(self, cell: Cell, number: int, rounds: int, system: str) -> None:
        """One measurement begins."""
        spent = time.monotonic() - self.begin
        left = f", {spent / self.done * (self.total - self.done) / 60:.0f} min left" if self.done > 20 else ""
        self.watcher.progress(
            f"[{self.done * 100 // self.total} %{left}] {cell.id}, round {number + 1} of {rounds}, {system}"
        )
        self.done = min(self.done + 1, self.total - 1)


class Run:
    """Everything that is measured in one go."""

    def __init__(self, cells: Sequence[Cell], programs: dict[str, str | None], rounds: int, watcher: Watcher) -> None:
        self.cells, self.programs, self.rounds, self.watcher = cells, programs, rounds, watcher
        self.results: list[dict[str, Any]] = []
        self.use: list[dict[str, Any]] = []
        self.progress = Progress(sum(self._rounds(c) * len(self._names(c)) for c in cells), watcher)

    def _names(self, cell: Cell) -> list[str]:
        return [name for name in self.programs if name in cell.systems]

    def _rounds(self, cell: Cell) -> int:
        if cell.environment == "start":
            return max(self.rounds, START_ROUNDS)
        return min(self.rounds, cell.rounds) if cell.rounds else self.rounds

    def run(self) -> None:
        """Measure."""
        for environment in ENVIRONMENTS:
            cells = [cell for cell in self.cells if cell.environment == environment.key]
            if cells:
                self._environment(environment, cells)

    def _environment(self, environment: Environment, cells: Sequence[Cell]) -> None:
        names = list(dict.fromkeys(name for cell in cells for name in self._names(cell)))
        topologies: dict[str, Topology] = {}
        connected: dict[str, System] = {}
        broken: dict[str, str] = {}
        # The last one made is the first to go: each topology puts back what it found
        with contextlib.ExitStack() as undo:
            for name in names:
                topologies[name] = Topology(environment.delay)
                undo.callback(topologies[name].close)
                topologies[name].make()
                if environment.key == "start":
                    continue
                try:
                    if environment.machine:
                        connected[name] = machines.connect(name, self.programs[name], topologies[name], environment.mtu)
                    else:
                        connected[name] = System(
                            name, self.programs[name], topologies[name], environment.mtu, bypass=environment.bypass
                        )
                    undo.callback(connected[name].stop)
                except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                    broken[name] = f"did not connect: {error}"
            for cell in cells:
                self._cell(cell, connected, dict(broken), topologies)
            for name, system in connected.items():
                if name not in NATIVE:
                    self._record_use(environment, system)

    def _record_use(self, environment: Environment, system: System) -> None:
        self.use.append(
            {
                "environment": environment.key,
                "system": system.name,
                "retransmissions": system.retransmissions(),
                "memory_kib": system.memory(),
                "peak_memory_kib": system.peak_memory(),
            }
        )

    def _cell(
        self, cell: Cell, connected: dict[str, System], failures: dict[str, str], topologies: dict[str, Topology]
    ) -> None:
        values: dict[str, dict[str, list[float]]] = {metric.key: {} for metric in cell.metrics}
        names = [name for name in self._names(cell) if name not in failures]
        rounds = planned = self._rounds(cell)
        number = repeated = 0
        while number < rounds:
            for name in list(names):
                self.progress.step(cell, number, rounds, name)
                try:
                    if cell.environment == "start":
                        found = {"": systems.startup(name, str(self.programs[name]), topologies[name])}
                    else:
                        found = cell.run(connected[name])
                except (RuntimeError, OSError, subprocess.SubprocessError, KeyError, ValueError) as error:
                    failures[name] = str(error) or type(error).__name__
                    names.remove(name)
                    continue
                for key, value in found.items():
                    values[key].setdefault(name, []).append(value)
            number += 1
            if number == rounds and repeated < REPEATS and planned > 1 and disturbed(values[""]):
                repeated += 1
                rounds += planned
        for metric in cell.metrics:
            self.results.append(
                {
                    "cell": cell.key,
                    "environment": cell.environment,
                    "metric": metric.key,
                    "title": cell.title,
                    "measures": metric.title,
                    "unit": metric.unit,
                    "higher_is_better": metric.higher_is_better,
                    "values": values[metric.key],
                    "failures": {name: reason for name, reason in failures.items() if name in cell.systems},
                }
            )
        self._say(cell, values[""], failures)

    def _say(self, cell: Cell, values: dict[str, list[float]], failures: dict[str, str]) -> None:
        shown = [f"{name} {statistics.median(found):.4g}" for name, found in values.items()]
        shown += [f"{name} failed ({reason})" for name, reason in failures.items() if name in cell.systems]
        self.watcher.say(f"{cell.id}: {cell.title}, {cell.metrics[0].unit}: " + "  ".join(shown))


def disturbed(values: dict[str, list[float]]) -> bool:
    """Whether our values, or those of no translation, spread too widely to say much. A peer may stall by itself."""
    for name, found in values.items():
        if name not in (systems.OURS, *NATIVE):
            continue
        median = statistics.median(found)
        if median and (max(found) - min(found)) / median > DISTURBED:
            return True
    return False


def cpu_model() -> str:
    """The processor's name."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith(("model name", "CPU part")):
            return line.partition(":")[2].strip()
    return "unknown"


def select(names: Sequence[str] | None, *, quick: bool) -> list[Cell]:
    """The cells named: by key, id or environment; unknown names are an error (ValueError)."""
    if not names:
        return [cell for cell in CELLS if cell.quick or not quick]
    known = {name for cell in CELLS for name in (cell.key, cell.id, cell.environment)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such cell: {', '.join(unknown)}")
    return [cell for cell in CELLS if {cell.key, cell.id, cell.environment} & set(names)]


def measure(
    cells: Sequence[Cell], wanted: Sequence[str], peers: str | None, rounds: int, watcher: Watcher
) -> dict[str, Any]:
    """Run cells for systems and return the document."""
    programs: dict[str, str | None] = {}
    missing = []
    for name in wanted:
        program = None if name in NATIVE else systems.find(name, peers)
        if program is None and name not in NATIVE:
            missing.append(name)
            watcher.say(f"{name}: not found in --peers, $PEERS or PATH: left out")
        else:
            programs[name] = program
    run = Run(cells, programs, rounds, watcher)
    begin = time.monotonic()
    run.run()
    return {
        "schema": SCHEMA,
        "method": {
            "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "seconds": round(time.monotonic() - begin),
            "kernel": os.uname().release,
            "machine": os.uname().machine,
            "cpu": cpu_model(),
            "cpus": os.cpu_count(),
            "python": sys.version.split()[0],
            "versions": {name: systems.version(program) for name, program in programs.items() if program},
            "missing": missing,
            "rounds": rounds,
            "disturbed_beyond": DISTURBED,
            "placement": PLACEMENT,
            "congestion_control": "cubic",
        },
        "environments": {environment.key: environment.title for environment in ENVIRONMENTS},
        "results": run.results,
        "use": run.use,
    }
