"""What cells make of what the two ends of a measurement have printed."""

from typing import Self

import pytest

from bucatini.bench import cells
from bucatini.bench.cells import CELLS, PACED, paced, udp_paced_in, udp_paced_out
from bucatini.bench.systems import System

SENT = PACED * 125_000_000  # bytes, at 1 Gbit/s


class Measured(System):
    """Not connected to anything; its ends print what they are told to."""

    def __init__(self, cpu: float | None, printed: str = "") -> None:
        self.used = cpu
        self.printed = printed
        self.commands: list[list[str]] = []

    def cpu(self) -> float | None:
        return self.used

    def output(self, command: list[str], cpu: int) -> str:
        self.commands.append(command)
        return self.printed


class Server:
    """Instead of the other end: it prints one line."""

    printed = ""

    def __init__(self, system: Measured, arguments: list[str], cpu: int) -> None:
        system.commands.append(arguments)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def line(self) -> str:
        return self.printed


def test_cpu_is_for_each_gigabyte_that_arrived() -> None:
    assert paced(Measured(0.7), 0.2, SENT, SENT / 2) == {"": 50.0, "stream": 1.0, "cpu": pytest.approx(4.0)}


def test_without_a_translator_there_is_no_cpu() -> None:
    assert paced(Measured(None), None, SENT, SENT) == {"": 100.0, "stream": 1.0}


def test_nothing_received_is_a_failure_and_no_number() -> None:
    with pytest.raises(RuntimeError, match="no data came through"):
        paced(Measured(0.7), 0.2, SENT, 0)


@pytest.mark.parametrize(
    ("run", "sent_by_guest", "roles"),
    [(udp_paced_out, True, ["sink", "udp-paced"]), (udp_paced_in, False, ["paced", "udp-receive"])],
)
def test_who_sends_at_a_pace_and_who_receives(
    monkeypatch: pytest.MonkeyPatch, run: object, sent_by_guest: bool, roles: list[str]
) -> None:
    assert callable(run)
    sent, came = '{"bytes": 280000}', f'{{"bytes": {280000 - 1400 * sent_by_guest}}}'
    monkeypatch.setattr(Server, "printed", came if sent_by_guest else sent)
    monkeypatch.setattr(cells, "Server", Server)
    system = Measured(None, sent if sent_by_guest else came)
    assert run(1400)(system)[""] == 100
    assert [command[len(cells.TRAFFIC)] for command in system.commands] == roles


def test_the_paced_cells_have_values_for_all_of_their_metrics() -> None:
    for cell in CELLS:
        if cell.key.startswith("udp-paced-"):
            assert [metric.key for metric in cell.metrics] == ["", "cpu", "stream"]
            assert set(cell.systems) == {"veth", *cells.TRANSLATORS}
