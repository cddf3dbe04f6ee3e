"""The table of cases, docs/cases.md: which tests there are for each case, and how they ended. See `make cases`.

Tests say in their names which cases they are for: the ids follow `test`, as in test_T16_T17_a_keep_alive. What each
case demands is in docs/cases.txt. With `--cases FILE`, a session of all tests writes the table to FILE at its end. A
session that leaves tests out (by a path, -k, -m, --deselect, --ignore, or by stopping at a failure) writes none: it is
refused before its first test where that is known by then.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pytest

TESTS = Path(__file__).parent
CASES = TESTS.parent / "docs" / "cases.txt"
PARTS = {"trace": TESTS / "unit", "system": TESTS / "system"}  # columns of the table: where their tests are

IDS = re.compile(r"test((?:_[A-Z]\d+)+)(?=_|$)")
LINE = re.compile(r"(?P<id>[A-Z][1-9]\d*)\t(?P<sentence>\S.*\S)")

HEAD = "Made by `make cases`, not by hand: tests/case_table.py writes what a session of all tests found."
COLUMNS = ("case", "what must hold", "trace", "system", "result")
STATES = {
    "passed": "passed",
    "failed": "failed",
    "skipped": "skipped at least in part",
    "no test yet": "without a test",
}


class Outcome(NamedTuple):
    state: str  # passed, failed, skipped; not run, before it has
    reason: str = ""


class Row(NamedTuple):
    """A line of the table; `state` is a key of STATES, `result` says it in the table."""

    case: str
    sentence: str
    trace: int
    system: int
    state: str
    result: str


@dataclass
class Function:
    """A test function, parameters aside, and the outcomes of its instances by node id."""

    name: str
    part: str
    ids: tuple[str, ...]
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def ids_of(name: str) -> tuple[str, ...]:
    """The cases that the name of a test function says it is for; T03 is T3."""
    match = IDS.match(name)
    return tuple(f"{part[0]}{int(part[1:])}" for part in match[1].split("_")[1:]) if match else ()


def parse(text: str) -> dict[str, str]:
    """What must hold, by id, in the order of docs/cases.txt."""
    cases: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        match = LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"line {number} is no id, tab and sentence: {line!r}")
        if match["id"] in cases:
            raise ValueError(f"line {number}: {match['id']} is there already")
        cases[match["id"]] = match["sentence"]
    return cases


def some(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    return f"{len(names)}, {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}"


def part_of(path: Path) -> str | None:
    """The column in which tests of this file are counted."""
    return next((part for part, directory in PARTS.items() if path.is_relative_to(directory)), None)


def find_tests(directory: Path) -> Iterator[tuple[Path, str]]:
    """File and name of each test function below a directory, as they are written there."""
    for path in sorted(directory.rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test"):
                yield path, node.name


def outcome_of(report: pytest.TestReport) -> Outcome:
    """What one phase of a test (setup, call, teardown) says about it; what fails as expected fails nevertheless."""
    if report.failed or hasattr(report, "wasxfail"):
        return Outcome("failed")
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        return Outcome("skipped", reason.removeprefix("Skipped: "))
    return Outcome("passed")


def result_of(functions: Iterable[Function]) -> tuple[str, str]:
    """State and result of a case with these tests: the worst of them is what counts."""
    outcomes = [(function.name, outcome) for function in functions for outcome in function.outcomes.values()]
    states = {outcome.state for _, outcome in outcomes}
    if not outcomes:
        return "no test yet", "no test yet"
    if "failed" in states:
        names = dict.fromkeys(f"`{name}`" for name, outcome in outcomes if outcome.state == "failed")
        return "failed", f"**failed**: {', '.join(names)}"
    if states == {"passed"}:
        return "passed", "passed"
    partly = "passed, in part " if "passed" in states else ""
    reasons = dict.fromkeys(outcome.reason for _, outcome in outcomes if outcome.state == "skipped")
    return "skipped", f"{partly}skipped: {'; '.join(reasons)}"


def rows_of(cases: Mapping[str, str], functions: Iterable[Function]) -> list[Row]:
    """A row for each case, in their order."""
    rows = []
    functions = list(functions)
    for case, sentence in cases.items():
        tests = [function for function in functions if case in function.ids]
        trace, system = (sum(test.part == part for test in tests) for part in PARTS)
        rows.append(Row(case, sentence, trace, system, *result_of(tests)))
    return rows


def escape(cell: str) -> str:
    """Text in a cell of the table: one line, without bars."""
    return " ".join(cell.split()).replace("|", r"\|")


def render(rows: list[Row]) -> str:
    """The page: how it is made, a summary that names what has not passed, the table."""
    tested = sum(row.state != "no test yet" for row in rows)
    summary = [f"Cases with tests: {tested} of {len(rows)}."]
    for state, text in STATES.items():
        cases = [row.case for row in rows if row.state == state]
        named = f" ({', '.join(cases)})" if cases and state != "passed" else ""
        if cases or state in {"passed", "failed"}:
            summary.append(f"{text.capitalize()}: {len(cases)}{named}.")
    page = ["# Cases", "", HEAD, "", *(f"- {line}" for line in summary), ""]
    page.append("Trace: test functions below tests/unit; system: below tests/system.")
    page += ["", f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    for row in rows:
        cells = (row.case, row.sentence, str(row.trace or "–"), str(row.system or "–"), row.result)
        page.append(f"| {' | '.join(map(escape, cells))} |")
    return "\n".join(page) + "\n"


def counts_of(page: str) -> dict[str, tuple[str, str]]:
    """The columns trace and system of a page that `render` made, by case."""
    rows = [line.removeprefix("| ").split(" | ") for line in page.splitlines() if re.match(r"\| [A-Z]\d", line)]
    return {cells[0]: (cells[-3], cells[-2]) for cells in rows}


class CaseTable:
    """Collects the outcomes of a session, and writes the table when all of the tests were in it."""

    def __init__(self, file: Path, cases: Mapping[str, str], paths: Iterable[Path]) -> None:
        self.file = file
        self.cases = cases
        self.functions: dict[str, Function] = {}
        self.message = ""
        self.found: set[tuple[Path, str]] = set()  # test functions, with ids in their names or without
        self.deselected: list[str] = []  # node ids
        paths = list(paths)  # that the session was asked to run
        self.asked = all(any(directory.is_relative_to(path) for path in paths) for directory in PARTS.values())

    def add(self, nodeid: str, name: str, path: Path) -> None:
        """A test has been found; without ids in its name, or elsewhere, its outcome is of no interest."""
        part, ids = part_of(path), ids_of(name)
        self.found.add((path, name))
        if part is not None and ids:
            function = self.functions.setdefault(nodeid.partition("[")[0], Function(name, part, ids))
            function.outcomes[nodeid] = Outcome("not run")

    def unknown(self) -> str:
        """The tests that name cases that there are not, a line each."""
        wrong = {function.name: set(function.ids) - self.cases.keys() for function in self.functions.values()}
        return "\n".join(f"{name}: {', '.join(sorted(ids))}" for name, ids in wrong.items() if ids)

    def note(self, nodeid: str, outcome: Outcome) -> None:
        """A phase of a test has ended: what did not pass stays."""
        function = self.functions.get(nodeid.partition("[")[0])
        if function is None:
            return
        former = function.outcomes[nodeid].state
        if outcome.state == "failed" or former in {"not run", "passed"}:
            function.outcomes[nodeid] = outcome

    def left_out(self, written: Iterable[tuple[Path, str]]) -> str:
        """Why this session is none of all tests: empty if it is. `written`: the tests that there are."""
        if not self.asked:
            return "it needs a session of all of tests/unit and tests/system"
        if self.deselected:
            return f"tests were deselected: {some(self.deselected)}"
        if missed := [f"{path.name}::{name}" for path, name in written if (path, name) not in self.found]:
            return f"tests were not collected: {some(missed)}"
        return ""

    def not_run(self) -> str:
        """The tests of cases that have not run, as a session that stops at a failure has: empty if all have."""
        outcomes = [pair for function in self.functions.values() for pair in function.outcomes.items()]
        missed = [nodeid for nodeid, outcome in outcomes if outcome.state == "not run"]
        return f"tests have not run: {some(missed)}" if missed else ""

    @pytest.hookimpl(tryfirst=True)  # before -k and -m deselect, which say so
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for item in items:
            if isinstance(item, pytest.Function):
                self.add(item.nodeid, item.originalname, item.path)
        if wrong := self.unknown():
            pytest.exit(f"test names with cases that docs/cases.txt does not have:\n{wrong}", returncode=1)

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        self.deselected += [item.nodeid for item in items]

    def pytest_collection_finish(self) -> None:
        """Refuse now, and not after all the tests that there are."""
        if reason := self.left_out(test for directory in PARTS.values() for test in find_tests(directory)):
            pytest.exit(f"--cases: {self.file} cannot be written: {reason}", returncode=pytest.ExitCode.USAGE_ERROR)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.note(report.nodeid, outcome_of(report))

    def pytest_sessionfinish(self, exitstatus: int) -> None:
        whole = exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        if reason := self.not_run() if whole else "the session did not come to its end":
            self.message = f"{self.file} not written: {reason}"
            return
        self.file.write_text(render(rows_of(self.cases, self.functions.values())), encoding="utf-8")
        self.message = f"{self.file} written"

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(self.message)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--cases", metavar="FILE", help="write the table of cases to FILE, after a session of all tests")


def pytest_configure(config: pytest.Config) -> None:
    """Without `--cases` nothing is collected; what is wrong with it must not show after minutes of tests."""
    if config.option.cases is None:
        return
    directory = config.invocation_params.dir
    file = directory / config.option.cases
    if not file.parent.is_dir():
        raise pytest.UsageError(f"--cases: no directory {file.parent}")
    try:
        cases = parse(CASES.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise pytest.UsageError(f"{CASES}: {error}") from error
    paths = [(directory / argument).resolve() for argument in config.args]
    config.pluginmanager.register(CaseTable(file, cases, paths), "case_table_of_session")
