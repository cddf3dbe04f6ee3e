"""The inputs that fuzzing kept, given to their targets again (`make fuzz` looks for more; docs/fuzzing.md)."""

import pytest

from fuzz.targets import CORPORA, TARGETS, read


def test_every_target_has_a_corpus() -> None:
    assert {path.stem for path in CORPORA.iterdir()} == set(TARGETS)


@pytest.mark.parametrize("name", TARGETS)
def test_no_kept_input_finds_a_fault(name: str) -> None:
    inputs = [*TARGETS[name].seeds(), *read(name)]
    assert inputs
    for data in inputs:
        try:
            TARGETS[name].run(data)
        except Exception as error:
            error.add_note(f"the input is {data.hex()}")
            raise
