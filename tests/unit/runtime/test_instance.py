"""What the loop calls: one thing that fails does not hold up the others."""

from typing import Any

import pytest

from bucatini.plan.settings import Settings
from bucatini.runtime import instance
from bucatini.runtime.instance import Instance

SECOND = 1_000_000_000
NOW = 1000 * SECOND


class Path:
    """A data path that counts."""

    def __init__(self, listeners: int) -> None:
        self.errors = 0

    def tell_notices(self, callback: object) -> None:
        pass

    def count_slow_error(self) -> None:
        self.errors += 1


class Services:
    """Something that answers each time."""

    def next_timeout(self) -> int:
        return 1

    def on_timeout(self, now: int) -> list[bytes]:
        return [b"advertisement"]


class Ports:
    """A look for ports that fails, or tells when it wants to go on."""

    def __init__(self, *results: int | Exception) -> None:
        self.results = list(results)

    def scan(self) -> int:
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


class Log:
    """Keeps what was told."""

    def __init__(self) -> None:
        self.told: dict[str, str] = {}

    def warn_once(self, key: str, text: str) -> None:
        self.told.setdefault(key, text)


def running(monkeypatch: pytest.MonkeyPatch, ports: Ports) -> Any:
    monkeypatch.setattr(instance, "DataPath", Path)
    monkeypatch.setattr(Instance, "_tell", lambda self, ephemeral: None)
    made: Any = Instance(Settings(), None, Log(), (32768, 60999), 1)  # type: ignore[arg-type]
    made.responder = Services()
    made.auto = ports
    made.next_scan = 1
    return made


@pytest.mark.parametrize("error", [OSError(16, "busy"), ValueError("a bug")])
def test_a_look_for_ports_that_fails_is_told_and_counted_and_stops_no_service(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    made = running(monkeypatch, Ports(error, error))
    for number in range(1, 3):
        assert made.on_timeout(NOW) == [b"advertisement"]
        assert made.path.errors == number
        assert made.next_scan == NOW + SECOND
        made.next_scan = 1
    ((_, text),) = made.log.told.items()
    assert str(error) in text


def test_a_look_for_ports_says_when_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    made = running(monkeypatch, Ports(SECOND // 10, SECOND))
    for pause in (SECOND // 10, SECOND):
        made.next_scan = 1
        assert made.on_timeout(NOW) == [b"advertisement"]
        assert made.next_scan == NOW + pause
    assert made.path.errors == 0
