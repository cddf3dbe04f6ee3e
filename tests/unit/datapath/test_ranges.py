"""Ranges of sequence numbers against a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from bucatini.datapath.ranges import RangeSet

SIZE = 60
steps = st.lists(
    st.tuples(st.sampled_from(["add", "add", "add", "cut"]), st.integers(0, SIZE), st.integers(1, 12)), max_size=40
)


def runs(numbers: set[int]) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found


@given(steps, st.sampled_from([0, 0xFFFFFFE0]))
def test_ranges_are_a_set(steps: list[tuple[str, int, int]], origin: int) -> None:
    ranges, model = RangeSet(), set[int]()
    edge = 0
    for what, start, length in steps:
        if what == "cut":
            edge = start
            model = {number for number in model if number >= edge}
            ranges.cut(origin + start & 0xFFFFFFFF)
        else:
            added = model | set(range(start, start + length))
            fits = len(runs(added)) <= 8
            assert ranges.add(origin + start & 0xFFFFFFFF, origin + start + length & 0xFFFFFFFF) == fits
            if fits:
                model = added
                first, end = ((value - origin) & 0xFFFFFFFF for value in ranges.latest())
                assert first <= start < start + length <= end
        assert [tuple((value - origin) & 0xFFFFFFFF for value in range_) for range_ in ranges.ranges()] == runs(model)
        assert ranges.bytes() == len(model)
        for number in range(SIZE + 13):
            behind = next(n for n in range(number, SIZE + 30) if n not in model)
            assert (ranges.behind(origin + number & 0xFFFFFFFF) - origin) & 0xFFFFFFFF == behind
            starts = [first for first, _ in runs(model) if first > number]
            expected = min([*starts, SIZE + 20])
            assert (
                ranges.before(origin + number & 0xFFFFFFFF, origin + SIZE + 20 & 0xFFFFFFFF) - origin
            ) & 0xFFFFFFFF == expected
