"""What is made of a result: table, page, chart, comparison. The results here are literal."""

import copy
import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from bucatini.bench import baseline, report
from bucatini.bench.cells import CELLS, ENVIRONMENTS
from bucatini.bench.reasons import REASONS
from bucatini.bench.runner import disturbed, select


def result(cell: str, values: dict[str, list[float]], *, higher: bool = True, metric: str = "") -> dict[str, Any]:
    return {
        "cell": cell, "environment": "mtu65520", "metric": metric, "title": f"the cell {cell}", "measures": "rate",
        "unit": "1/s", "higher_is_better": higher, "values": values, "failures": {},
    }  # fmt: skip


@pytest.fixture
def document() -> dict[str, Any]:
    return {
        "schema": 1,
        "method": {
            "date": "2026-11-23 12:00 UTC", "seconds": 600, "kernel": "6.18.0", "machine": "x86_64", "cpu": "a <CPU>",
            "cpus": 2, "python": "3.11.2", "versions": {"bucatini": "pasta 0.1.0"}, "missing": ["slirp4netns"],
            "rounds": 3, "disturbed_beyond": 0.5, "placement": "All on one.", "congestion_control": "cubic",
        },
        "environments": {"mtu65520": "MTU 65520", "empty": "nothing was measured here"},
        "results": [
            result("fast", {"veth": [100.0, 90.0, 110.0], "bucatini": [50.0, 40.0, 60.0], "pasta": [20.0, 25.0, 21.0]}),
            result("slow", {"bucatini": [10.0], "pasta": [20.0], "slirp4netns": [5.0]}),
            result("small", {"bucatini": [4.0], "pasta": [2.0]}, higher=False),
            result("fast", {"bucatini": [9.0], "pasta": [1.0]}, higher=False, metric="cpu"),
        ],
        "use": [
            {
                "environment": "mtu65520", "system": "bucatini", "retransmissions": 0, "memory_kib": 2048,
                "peak_memory_kib": 4096,
            }
        ],
    }  # fmt: skip


def test_a_row_has_medians_spread_and_ratios(document: dict[str, Any]) -> None:
    row = report.row(document["results"][0], ("veth", "bucatini", "pasta"))
    assert "| 100 (90.0–110) | 50.0 (40.0–60.0) | 21.0 (20.0–25.0) | 2.38 | 0.50 |" in row


def test_where_we_lose_is_named_with_its_reason_or_without(document: dict[str, Any]) -> None:
    lost = list(report.losses(document))
    assert len(lost) == 2  # not the cell that we win, not the metric beside one
    assert "slow@mtu65520): 0.50 of the best peer: no reason is known yet" in lost[0]
    assert "small@mtu65520): 2.00 of the best peer" in lost[1]


def test_a_99th_percentile_that_is_behind_is_named_with_a_reason_of_its_own(document: dict[str, Any]) -> None:
    document["results"] = [
        result("loaded-in", {"bucatini": [1.0], "pasta": [1.0]}, higher=False),
        result("loaded-in", {"bucatini": [3.0], "pasta": [1.0]}, higher=False, metric="p99"),
        result("paced-in", {"bucatini": [1.02], "pasta": [1.0]}, higher=False, metric="p99"),  # noise
        result("paced-out", {"pasta": [1.0]}, higher=False, metric="p99"),  # what failed is the first metric's to say
        result("tcp-out", {"bucatini": [3.0], "pasta": [1.0]}, higher=False, metric="cpu"),
    ]
    (line,) = report.losses(document)
    reason = REASONS["loaded-in@mtu65520 p99"]
    assert line == f"* the cell loaded-in, 99th percentile (loaded-in@mtu65520): 3.00 of the best peer: {reason}."


def test_a_failure_of_ours_is_a_loss_and_is_named(document: dict[str, Any]) -> None:
    document["results"][0]["values"].pop("bucatini")
    document["results"][0]["failures"] = {"bucatini": "no\nconnection"}
    assert "fast@mtu65520" in next(iter(report.losses(document)))
    page = report.page(document, "chart.svg")
    assert "* bucatini, fast@mtu65520: no connection" in page
    assert "| failed |" in page


def test_the_page_states_the_method_and_leaves_out_what_is_empty(document: dict[str, Any]) -> None:
    page = report.page(document, "chart.svg")
    for words in ("Linux 6.18.0", "Not found: slirp4netns.", "medians of 3 rounds", "![chart](chart.svg)", "cubic"):
        assert words in page.replace("\n", " ")
    assert "nothing was measured here" not in page
    assert "| mtu65520 | bucatini | 2.00 | 4.00 | 0 |" in page


def test_the_chart_is_a_picture_with_a_bar_for_each_value(document: dict[str, Any]) -> None:
    root = ET.fromstring(report.chart(document))
    bars = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(bars) == 1 + 3 + 3 + 2
    widths = [float(bar.attrib["width"]) for bar in bars[1:4]]
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)


def test_a_regression_is_one_in_itself_and_beside_veth(document: dict[str, Any]) -> None:
    now = copy.deepcopy(document)
    assert list(baseline.regressions(document, now)) == []
    # The whole machine is slower: no regression of ours
    now["results"][0]["values"] = {"veth": [50.0], "bucatini": [25.0], "pasta": [10.0]}
    assert list(baseline.regressions(document, now)) == []
    now["results"][0]["values"] = {"veth": [100.0], "bucatini": [40.0]}
    now["results"][2]["values"] = {"bucatini": [5.0]}
    found = list(baseline.regressions(document, now))
    assert found[0].startswith("fast@mtu65520: 50.0 -> 40.0")
    assert found[1].startswith("small@mtu65520: 4.00 -> 5.00")


def test_a_cell_that_fails_has_regressed(document: dict[str, Any]) -> None:
    now = copy.deepcopy(document)
    now["results"][1]["values"] = {}
    now["results"][1]["failures"] = {"bucatini": "did not connect"}
    assert list(baseline.regressions(document, now)) == ["slow@mtu65520: failed (did not connect)"]


def test_cells_are_selected_by_key_id_or_environment() -> None:
    assert [cell.id for cell in select(["crr"], quick=False)] == ["crr@mtu65520"]
    assert [cell.id for cell in select(["tcp-out@rtt20"], quick=False)] == ["tcp-out@rtt20"]
    assert {cell.environment for cell in select(["rtt20", "start"], quick=False)} == {"rtt20", "start"}
    assert len(select(None, quick=False)) == len(CELLS)
    assert 0 < len(select(None, quick=True)) < 10
    with pytest.raises(ValueError, match="no such cell: nonsense"):
        select(["crr", "nonsense"], quick=False)


def test_cells_are_told_apart_and_have_an_environment() -> None:
    assert len({cell.id for cell in CELLS}) == len(CELLS)
    assert {cell.environment for cell in CELLS} == {environment.key for environment in ENVIRONMENTS}
    assert all(cell.metrics[0].key == "" for cell in CELLS)


def test_a_wide_spread_is_a_disturbance() -> None:
    assert not disturbed({"bucatini": [10.0, 11.0, 12.0], "veth": [5.0]})
    assert disturbed({"bucatini": [10.0, 11.0, 12.0], "veth": [5.0, 5.0, 9.0]})


def test_reasons_are_of_cells_that_there_are() -> None:
    there = {cell.id for cell in CELLS} | {f"{cell.id} p99" for cell in CELLS if "p99" in {m.key for m in cell.metrics}}
    assert set(REASONS) <= there


def test_the_page_says_the_reason_where_there_is_one(document: dict[str, Any]) -> None:
    document["results"][1].update({"cell": "start", "environment": "start"})
    (line, _) = report.losses(document)
    assert line.endswith(f"0.50 of the best peer: {REASONS['start@start']}.")


DOCS = Path(__file__).parents[3] / "docs"


def test_the_committed_page_and_chart_are_those_of_the_committed_result() -> None:
    committed = json.loads((DOCS / "performance.json").read_text())
    assert (DOCS / "performance.md").read_text() == report.page(committed, "performance.svg")
    assert (DOCS / "performance.svg").read_text() == report.chart(committed)


def test_the_description_of_the_file_names_every_metric() -> None:
    told = (DOCS / "benchmark.md").read_text()
    for key in {metric.key for cell in CELLS for metric in cell.metrics} - {""}:
        assert f"`{key}`" in told


def test_every_cell_in_which_we_are_behind_has_a_reason() -> None:
    committed = json.loads((DOCS / "performance.json").read_text())
    assert {report.compared(result) for result in report.behind(committed)} <= set(REASONS)
