"""`bucatini bench`: measures, and shows and writes the result. `make bench` calls it."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

from bucatini.bench import baseline, report, runner, topology
from bucatini.bench.cells import CELLS
from bucatini.bench.systems import NAMES, OURS
from bucatini.errors import UsageError

PROGRAMS = ("ip", "iperf3", "nstat", "nsenter", "setpriv", "prlimit", "taskset", "unshare", "sysctl")
QUICK_ROUNDS, ROUNDS = 2, 5


class Terminal(runner.Watcher):
    """Tells the user: a line that is written over while it goes on, on a terminal, and a line for what is done."""

    def progress(self, text: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        self.progress("")
        print(text, flush=True)


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        prog="bucatini bench",
        description="Measures Bucatini beside upstream pasta, slirp4netns and no translation at all, in one run. Needs "
        "root, to make its own namespaces; the systems themselves run as an unprivileged user.",
    )
    extent = options.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="some cells, in under two minutes (the default)")
    extent.add_argument("--full", action="store_true", help="every cell, in some 25 minutes")
    options.add_argument("--cells", help="only these: keys, ids or environments, separated by commas")
    options.add_argument("--systems", help=f"only these, of {','.join(NAMES)}")
    options.add_argument("--peers", help="folder with the programs of the peers (default: $PEERS, then PATH)")
    options.add_argument("--runs", type=int, help=f"rounds (default: {ROUNDS}, quick: {QUICK_ROUNDS})")
    options.add_argument("--json", type=Path, help="write the result here, and page (.md) and chart (.svg) beside it")
    options.add_argument(
        "--base", type=Path, help="an earlier result: name what became slower, and fail if anything did"
    )
    options.add_argument("--report", type=Path, help="measure nothing: make page and chart of this result again")
    options.add_argument("--list", action="store_true", help="name the cells")
    return options


def write(document: dict[str, Any], file: Path) -> None:
    """Write page and chart beside the result."""
    chart = file.with_suffix(".svg")
    file.with_suffix(".md").write_text(report.page(document, chart.name))
    chart.write_text(report.chart(document))


def main(argv: list[str]) -> int:
    """Measure; exit status 1 when a cell of ours failed or regressed."""
    arguments = parser().parse_args(argv)
    quick = not arguments.full and not arguments.cells
    if arguments.list:
        for cell in CELLS:
            print(f"{cell.id:28}{cell.title}, {cell.metrics[0].unit}")
        return 0
    if arguments.report:
        write(json.loads(arguments.report.read_text()), arguments.report)
        return 0
    try:
        cells = runner.select(arguments.cells.split(",") if arguments.cells else None, quick=quick)
    except ValueError as error:
        raise UsageError(str(error)) from None
    wanted = arguments.systems.split(",") if arguments.systems else list(NAMES)
    unknown = [name for name in wanted if name not in NAMES]
    if unknown:
        raise UsageError(f"no such system: {', '.join(unknown)}")
    base = json.loads(arguments.base.read_text()) if arguments.base else None
    if os.geteuid():
        raise UsageError("bench needs root, to make namespaces of its own")
    for program in PROGRAMS:
        if shutil.which(program) is None:
            raise UsageError(f"bench needs the program '{program}'")
    topology.put_back_when_ended()
    rounds = arguments.runs or (QUICK_ROUNDS if quick else ROUNDS)
    document = runner.measure(cells, wanted, arguments.peers, rounds, Terminal())
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")
        write(document, arguments.json)
        print(f"written: {arguments.json}, and .md and .svg beside it")
    for line in report.losses(document):
        print(f"behind: {line.removeprefix('* ')}")
    slower = list(baseline.regressions(base, document)) if base else []
    for line in slower:
        print(f"regression: {line}")
    if base and not slower:
        print("no regression")
    failed = any(OURS in result["failures"] for result in document["results"])
    return 1 if slower or failed else 0
