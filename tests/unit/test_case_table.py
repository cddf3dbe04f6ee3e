"""The table of cases: ids in names of tests, docs/cases.txt, what is said of which outcomes, and when none is made."""

from pathlib import Path

import pytest

from case_table import (
    CASES,
    PARTS,
    TESTS,
    CaseTable,
    Function,
    Outcome,
    Row,
    counts_of,
    find_tests,
    ids_of,
    outcome_of,
    parse,
    render,
    rows_of,
)

UNIT = TESTS / "unit" / "datapath" / "test_tcp.py"
SYSTEM = TESTS / "system" / "test_tcp.py"
SKIPPED = Outcome("skipped", "no ping sockets")


def table(*paths: Path, file: Path = Path("cases.md")) -> CaseTable:
    return CaseTable(file, {"T1": "One.", "T2": "Two.", "U3": "Three."}, paths or [TESTS])


def report(outcome: str, longrepr: object = None, **attributes: object) -> pytest.TestReport:
    return pytest.TestReport("node", ("file", 1, "name"), {}, outcome, longrepr, "call", **attributes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("test_T9_a_fin_waits", ("T9",)),
        ("test_T09_a_fin_waits", ("T9",)),
        ("test_T23_T33_every_segment", ("T23", "T33")),
        ("test_U12", ("U12",)),
        ("test_a_fin_waits", ()),
        ("test_a_T9_fin_waits", ()),
        ("test_T9a_fin_waits", ()),
        ("test_T12x", ()),
        ("test_T1_of_U2_only_the_first_counts", ("T1",)),
        ("test_TCP_is_no_case", ()),
    ],
)
def test_ids_follow_the_word_test(name: str, ids: tuple[str, ...]) -> None:
    assert ids_of(name) == ids


def test_a_line_of_the_list_is_id_tab_and_sentence() -> None:
    assert parse("T2\tTwo.\nT1\tOne of us.\n") == {"T2": "Two.", "T1": "One of us."}


@pytest.mark.parametrize("text", ["T1 One.", "T1\t", "\n", "T01\tOne.", "t1\tOne.", "T1\tOne.\nT1\tAgain."])
def test_a_line_that_is_none_is_named(text: str) -> None:
    with pytest.raises(ValueError, match=r"line [12]"):
        parse(text)


def test_every_case_has_a_sentence() -> None:
    cases = parse(CASES.read_text(encoding="utf-8"))
    numbers = {"T": 33, "U": 16, "D": 18, "L": 18}
    assert list(cases) == [f"{letter}{number + 1}" for letter, last in numbers.items() for number in range(last)]
    assert not [case for case, sentence in cases.items() if len(sentence) > 110 or not sentence.endswith(".")]


def test_instances_of_a_function_count_once() -> None:
    made = table()
    for user in ("root", "unprivileged"):
        made.add(f"tests/system/test_tcp.py::test_T1_x[{user}]", "test_T1_x", SYSTEM)
        made.note(f"tests/system/test_tcp.py::test_T1_x[{user}]", Outcome("passed"))
    for name in ("test_T1_T2_y", "test_T2_x", "test_without"):
        made.add(f"tests/unit/test_tcp.py::{name}", name, UNIT)
        made.note(f"tests/unit/test_tcp.py::{name}", Outcome("passed"))
    made.add("tools/test_x.py::test_U3_x", "test_U3_x", TESTS.parent / "tools" / "test_x.py")
    assert rows_of(made.cases, made.functions.values()) == [
        Row("T1", "One.", 1, 1, "passed", "passed"),
        Row("T2", "Two.", 2, 0, "passed", "passed"),
        Row("U3", "Three.", 0, 0, "no test yet", "no test yet"),
    ]


@pytest.mark.parametrize(
    ("outcomes", "state", "result"),
    [
        (["passed", "passed"], "passed", "passed"),
        (["passed", "failed", "skipped"], "failed", "**failed**: `test_T1_1`"),
        (["failed", "passed", "failed"], "failed", "**failed**: `test_T1_0`, `test_T1_2`"),
        (["skipped", "skipped"], "skipped", "skipped: no ping sockets"),
        (["passed", "skipped"], "skipped", "passed, in part skipped: no ping sockets"),
    ],
)
def test_the_worst_outcome_is_the_result(outcomes: list[str], state: str, result: str) -> None:
    functions = [
        Function(f"test_T1_{i}", "trace", ("T1",), {str(i): SKIPPED if outcome == "skipped" else Outcome(outcome)})
        for i, outcome in enumerate(outcomes)
    ]
    assert rows_of({"T1": "One."}, functions) == [Row("T1", "One.", len(outcomes), 0, state, result)]


def test_a_phase_does_not_make_good_what_another_did() -> None:
    made = table()
    for name, phases in {
        "test_T1_x": ("passed", "passed", "failed"),
        "test_T1_y": ("skipped", "passed"),
        "test_T1_z": ("passed", "failed", "passed"),
    }.items():
        made.add(name, name, UNIT)
        for phase in phases:
            made.note(name, Outcome(phase))
    made.note("test_without", Outcome("failed"))
    assert [function.outcomes[name].state for name, function in made.functions.items()] == [
        "failed",
        "skipped",
        "failed",
    ]


def test_what_a_report_says() -> None:
    assert outcome_of(report("passed")) == Outcome("passed")
    assert outcome_of(report("failed", "assert 0")) == Outcome("failed")
    assert outcome_of(report("skipped", ("file", 1, "Skipped: no ping sockets"))) == SKIPPED
    assert outcome_of(report("skipped", "assert 0", wasxfail="a bug")) == Outcome("failed")


def test_the_page_names_what_has_not_passed() -> None:
    page = render(
        [
            Row("T1", "A | b.", 2, 0, "passed", "passed"),
            Row("T2", "Two.", 0, 1, "failed", "**failed**: `test_T2_x`"),
            Row("U3", "Three.", 1, 3, "skipped", "skipped: one\nline"),
            Row("D4", "Four.", 0, 0, "no test yet", "no test yet"),
        ]
    )
    lines = page.splitlines()
    assert "`make cases`" in lines[2]
    assert lines[4:9] == [
        "- Cases with tests: 3 of 4.",
        "- Passed: 1.",
        "- Failed: 1 (T2).",
        "- Skipped at least in part: 1 (U3).",
        "- Without a test: 1 (D4).",
    ]
    assert lines[-6:] == [
        "| case | what must hold | trace | system | result |",
        "|---|---|---|---|---|",
        r"| T1 | A \| b. | 2 | – | passed |",
        "| T2 | Two. | – | 1 | **failed**: `test_T2_x` |",
        "| U3 | Three. | 1 | 3 | skipped: one line |",
        "| D4 | Four. | – | – | no test yet |",
    ]


def test_a_case_that_there_is_not_ends_the_session() -> None:
    made = table()
    made.add("test_T1_T99_x", "test_T1_T99_x", UNIT)
    made.add("test_T2_x", "test_T2_x", SYSTEM)
    assert made.unknown() == "test_T1_T99_x: T99"
    with pytest.raises(pytest.exit.Exception, match="test_T1_T99_x: T99") as ended:
        made.pytest_collection_modifyitems([])
    assert ended.value.returncode == 1


def both(made: CaseTable) -> CaseTable:
    """With a test of either directory that has passed."""
    for path in (UNIT, SYSTEM):
        made.add(f"{path}::test_T1_x", "test_T1_x", path)
        made.note(f"{path}::test_T1_x", Outcome("passed"))
    return made


def test_a_session_that_has_run_all_tests_writes_the_table(tmp_path: Path) -> None:
    made = both(table(file=tmp_path / "cases.md"))
    made.pytest_sessionfinish(pytest.ExitCode.TESTS_FAILED)
    assert "| T1 | One. | 1 | 1 | passed |\n" in made.file.read_text(encoding="utf-8")
    assert made.message.endswith("cases.md written")


@pytest.mark.parametrize("paths", [[TESTS], [TESTS.parent], [TESTS / "system", TESTS / "unit"]])
def test_a_session_of_all_tests_leaves_none_out(paths: list[Path]) -> None:
    assert both(table(*paths)).left_out([(UNIT, "test_T1_x"), (SYSTEM, "test_T1_x")]) == ""


@pytest.mark.parametrize("paths", [[TESTS / "unit"], [TESTS / "unit", SYSTEM]])
def test_a_session_of_some_paths_is_refused(paths: list[Path]) -> None:
    assert both(table(*paths)).left_out([]) == "it needs a session of all of tests/unit and tests/system"


def test_a_session_that_deselects_is_refused() -> None:
    made = both(table())
    made.deselected = [f"test_tcp.py::test_T1_x[{number}]" for number in range(4)]
    shown = ", ".join(made.deselected[:3])
    assert made.left_out([]) == f"tests were deselected: 4, {shown} ..."


def test_a_session_that_does_not_collect_a_test_is_refused() -> None:
    written = [(UNIT, "test_T1_x"), (UNIT, "test_without_a_case")]
    assert both(table()).left_out(written) == "tests were not collected: 1, test_tcp.py::test_without_a_case"


def test_a_refusal_ends_the_session_before_its_first_test() -> None:
    with pytest.raises(pytest.exit.Exception, match=r"cases\.md cannot be written: tests were not collected") as ended:
        table().pytest_collection_finish()
    assert ended.value.returncode == pytest.ExitCode.USAGE_ERROR


def test_a_session_that_is_interrupted_writes_none(tmp_path: Path) -> None:
    made = both(table(file=tmp_path / "cases.md"))
    made.pytest_sessionfinish(pytest.ExitCode.INTERRUPTED)
    assert not made.file.exists()


def test_a_session_that_stops_at_a_failure_writes_none(tmp_path: Path) -> None:
    made = both(table(file=tmp_path / "cases.md"))
    made.add("test_tcp.py::test_T1_y", "test_T1_y", SYSTEM)
    made.pytest_sessionfinish(pytest.ExitCode.TESTS_FAILED)
    assert made.message.endswith("cases.md not written: tests have not run: 1, test_tcp.py::test_T1_y")
    assert not made.file.exists()


def test_tests_are_found_by_their_names(tmp_path: Path) -> None:
    file = tmp_path / "below" / "test_x.py"
    file.parent.mkdir()
    file.write_text("def test_T1_x(): ...\n\ndef helper():\n    def test_inside(): ...\n\nTEST = 1\n")
    (tmp_path / "other.py").write_text("def test_elsewhere(): ...\n")
    assert list(find_tests(tmp_path)) == [(file, "test_T1_x")]


def test_counts_are_read_from_the_page() -> None:
    rows = [Row("T1", "A | b.", 2, 0, "passed", "passed"), Row("U12", "Two.", 0, 11, "skipped", "skipped: a | b")]
    assert counts_of(render(rows)) == {"T1": ("2", "–"), "U12": ("–", "11")}


@pytest.mark.lint
def test_the_committed_table_counts_the_tests_that_there_are(request: pytest.FixtureRequest) -> None:
    if request.config.option.cases is not None:
        pytest.skip("this session writes the table anew")
    tests = [Function(name, part, ids_of(name)) for part, below in PARTS.items() for _, name in find_tests(below)]
    rows = rows_of(parse(CASES.read_text(encoding="utf-8")), tests)
    counted = counts_of((CASES.parent / "cases.md").read_text(encoding="utf-8"))
    assert counted == {row.case: (str(row.trace or "–"), str(row.system or "–")) for row in rows}, "see `make cases`"
