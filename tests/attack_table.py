"""The table of attacks, docs/attacks.md: what each did to an instance and to the others it serves. See `make attacks`.

A test of tests/system/test_attacks.py records `Figures`, and the counters that speak for it. With `--attacks FILE` a
session writes the table to FILE at its end, if all of them passed.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

HEAD = "Made by `make attacks`, not by hand: tests/attack_table.py writes what tests/system/test_attacks.py measured."


class Figures(NamedTuple):
    """What an attack was, and did."""

    name: str
    per_second: float  # frames, or connections, of the attacker
    before: float  # round trips a second of an established connection
    during: float
    slowest: float  # seconds, of those
    opened: float  # seconds that a new connection took at most, with its first answer
    share: float  # of a processor
    grown: int  # KiB
    note: str = ""


COLUMNS = (
    "attack", "a second", "round trips before /s", "during /s", "slowest ms", "new connection ms", "processor",
    "memory KiB", "counters",
)  # fmt: skip


def row(figures: Figures, counters: dict[str, int]) -> str:
    shown = ", ".join(f"{name} {value:,}" for name, value in counters.items())
    cells = (
        figures.name, f"{figures.per_second:,.0f}", f"{figures.before:,.0f}", f"{figures.during:,.0f}",
        f"{figures.slowest * 1000:.1f}", f"{figures.opened * 1000:.0f}", f"{figures.share:.0%}", f"+{figures.grown:,}",
        shown,
    )  # fmt: skip
    return f"| {' | '.join(cells)} |"


def render(rows: list[str]) -> str:
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"
    return "\n".join(["# Attacks", "", HEAD, "", (Path(__file__).parent / "attacks.txt").read_text(), head, *rows, ""])


class AttackTable:
    """Collects what the tests record."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.rows: list[str] = []
        self.message = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.rows += [row(*value) for name, value in report.user_properties if name == "attack"]

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        if exitstatus != pytest.ExitCode.OK or not self.rows:
            self.message = f"{self.file} not written: not all tests passed"
            return
        self.file.write_text(render(self.rows), encoding="utf-8")
        self.message = f"{self.file} written ({os.cpu_count()} processors)"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.message)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--attacks", metavar="FILE", help="write the table of attacks to FILE")


def pytest_configure(config: pytest.Config) -> None:
    if config.option.attacks is not None:
        config.pluginmanager.register(
            AttackTable(config.invocation_params.dir / config.option.attacks), "attack_table_of_session"
        )
