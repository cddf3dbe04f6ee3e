"""`NamedTuple` of `bucatini.lean.record` beside the one of `typing`."""

import pickle
import typing
from typing import Any

import pytest

from bucatini.lean import record


def make(base: Any) -> Any:
    class Route(base):
        """A class with all that is used."""

        target: bytes
        metric: int = 7
        flags: tuple[int, ...] = ()

        @classmethod
        def parse(cls, data: bytes) -> Any:
            return cls(data)

        @property
        def double(self) -> int:
            return self.metric * 2

    return Route


OURS, THEIRS = make(record.NamedTuple), make(typing.NamedTuple)


class Kept(record.NamedTuple):
    value: int


@pytest.mark.parametrize(
    "use",
    [
        lambda made: made(b"a"),
        lambda made: made(b"a", 1, (2, 3)),
        lambda made: made(target=b"a", flags=(1,)),
        lambda made: made(b"a", flags=(1,)),
        lambda made: made(b"a")._replace(metric=3),
        lambda made: made(b"a")._replace(),
        lambda made: repr(made(b"a")),
        lambda made: made(b"a").double,
        lambda made: made.parse(b"x").target,
        lambda made: (made._fields, made._field_defaults, made.__match_args__, made.__doc__),
        lambda made: made(b"a") == (b"a", 7, ()),
        lambda made: hash(made(b"a")),
        lambda made: list(made(b"a")),
        lambda made: made(b"a") < made(b"b"),
        # What is refused
        lambda made: made(),
        lambda made: made(b"a", 1, (), 4),
        lambda made: made(b"a", target=b"b"),
        lambda made: made(b"a", other=1),
        lambda made: made(b"a")._replace(other=1),
        lambda made: setattr(made(b"a"), "metric", 1),
        lambda made: setattr(made(b"a"), "other", 1),
    ],
)
def test_it_is_as_the_one_of_typing(use: Any) -> None:
    def outcome(made: Any) -> Any:
        try:
            return use(made)
        except Exception as error:
            return type(error)

    assert outcome(OURS) == outcome(THEIRS)


def test_it_can_be_matched_and_pickled() -> None:
    match OURS(b"a", 1):
        case OURS(target, metric):
            assert (target, metric) == (b"a", 1)
        case _:
            pytest.fail("not matched")
    assert pickle.loads(pickle.dumps(Kept(1))) == Kept(1)


def test_annotations_may_be_made_by_a_function() -> None:
    namespace = {"__annotate_func__": lambda kind: {"a": int, "b": int}, "b": 2}
    made: Any = type(record.NamedTuple)("Made", (record.NamedTuple,), namespace)
    assert made(1) == (1, 2)
    assert made(1).b == 2
