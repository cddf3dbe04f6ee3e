"""A result beside an earlier one: what became slower.

Machines drift. A cell has regressed when our median is worse by more than `THRESHOLD`, both as it is and, where veth
was measured in both runs, relative to veth.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bucatini.bench.report import cell_id, medians, number
from bucatini.bench.systems import OURS

if TYPE_CHECKING:
    from collections.abc import Iterator

THRESHOLD = 0.1


def worse(before: float, after: float, *, higher_is_better: bool) -> float:
    """By what part `after` is worse; negative: better."""
    if not before or not after:
        return 0.0
    return before / after - 1 if higher_is_better else after / before - 1


def regressions(base: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """A line for each cell that has regressed; only the metric that counts is looked at."""
    earlier = {cell_id(result): medians(result) for result in base["results"] if not result["metric"]}
    for result in now["results"]:
        name = cell_id(result)
        old, new = earlier.get(name, {}), medians(result)
        if result["metric"] or OURS not in old:
            continue
        if OURS not in new:
            yield f"{name}: failed ({result['failures'].get(OURS, 'not measured')})"
            continue
        better = bool(result["higher_is_better"])
        by = worse(old[OURS], new[OURS], higher_is_better=better)
        if "veth" in old and "veth" in new:
            by = min(by, worse(old[OURS] / old["veth"], new[OURS] / new["veth"], higher_is_better=better))
        if by > THRESHOLD:
            yield f"{name}: {number(old[OURS])} -> {number(new[OURS])} {result['unit']}, worse by {by * 100:.0f} %"
