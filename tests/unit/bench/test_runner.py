"""The order of a run, with systems that are not there: who is measured when, and what is kept."""

from collections.abc import Iterator
from typing import Any

import pytest

from bucatini.bench import runner
from bucatini.bench.cells import Cell, Metric
from bucatini.bench.systems import System


class Watcher:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.shown: list[str] = []
        self.said: list[str] = []

    def progress(self, text: str) -> None:
        self.shown.append(text)

    def say(self, text: str) -> None:
        self.said.append(text)


class Fake(System):
    """Nothing that could be measured; its cells give what they were told to."""

    def __init__(self, name: str, values: list[float | Exception]) -> None:
        self.name = name
        self.values: Iterator[float | Exception] = iter(values)


def measured(
    rounds: int, limit: int = 0, **values: list[float | Exception]
) -> tuple[dict[str, Any], Watcher, list[str]]:
    """The result of one cell, what was shown and in which order the systems were measured."""
    order: list[str] = []

    def run(system: System) -> dict[str, float]:
        assert isinstance(system, Fake)
        order.append(system.name)
        value = next(system.values)
        if isinstance(value, Exception):
            raise value
        return {"": value}

    cell = Cell("cell", "a cell", "mtu65520", (Metric("", "rate", "1/s"),), run, limit, tuple(values))
    watcher = Watcher()
    made = runner.Run([cell], dict.fromkeys(values), rounds, watcher)
    made._cell(cell, {name: Fake(name, found) for name, found in values.items()}, {}, {})
    return made.results[0], watcher, order


def test_systems_take_turns() -> None:
    result, _, order = measured(3, veth=[1.0, 1.0, 1.0], bucatini=[2.0, 2.1, 2.2])
    assert order == ["veth", "bucatini"] * 3
    assert result["values"] == {"veth": [1.0, 1.0, 1.0], "bucatini": [2.0, 2.1, 2.2]}


def test_a_disturbed_cell_is_measured_again_once_and_all_values_count() -> None:
    result, _, _ = measured(2, veth=[1.0] * 4, bucatini=[2.0, 9.0, 2.1, 20.0])
    assert result["values"] == {"veth": [1.0] * 4, "bucatini": [2.0, 9.0, 2.1, 20.0]}


def test_a_peer_that_stalls_disturbs_nobody() -> None:
    result, _, _ = measured(2, bucatini=[2.0, 2.1], pasta=[0.1, 20.0])
    assert result["values"]["pasta"] == [0.1, 20.0]


def test_a_cell_may_have_fewer_rounds() -> None:
    assert measured(5, 3, bucatini=[2.0, 2.0, 2.0])[0]["values"] == {"bucatini": [2.0] * 3}


def test_what_cannot_be_measured_is_a_reason_and_the_others_go_on() -> None:
    result, watcher, order = measured(2, bucatini=[2.0, 2.1], pasta=[RuntimeError("no connection")])
    assert result["failures"] == {"pasta": "no connection"}
    assert result["values"] == {"bucatini": [2.0, 2.1]}
    assert order == ["bucatini", "pasta", "bucatini"]
    assert watcher.said == ["cell@mtu65520: a cell, 1/s: bucatini 2.05  pasta failed (no connection)"]


def test_progress_says_where_it_is() -> None:
    _, watcher, _ = measured(2, veth=[1.0, 1.0], bucatini=[2.0, 2.0])
    assert watcher.shown == [
        f"[{percent} %] cell@mtu65520, round {number} of 2, {name}"
        for percent, number, name in ((0, 1, "veth"), (25, 1, "bucatini"), (50, 2, "veth"), (75, 2, "bucatini"))
    ]


def test_progress_says_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 100000, 6))
    monkeypatch.setattr(runner.time, "monotonic", lambda: next(now))
    _, watcher, _ = measured(60, bucatini=[2.0] * 60)
    assert watcher.shown[30].startswith("[50 %, 3 min left] ")
