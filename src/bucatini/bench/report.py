"""A result as a page and as a chart."""

from __future__ import annotations

import statistics
import textwrap
from html import escape
from typing import TYPE_CHECKING, Any

from bucatini.bench.reasons import REASONS
from bucatini.bench.systems import NAMES, OURS, PEERS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

COLOURS = {
    "veth": "#bbbbbb", "loopback": "#dddddd", OURS: "#c8452d", "pasta": "#3b6ea5", "slirp4netns": "#6a9a3f",
    "passt": "#7a5fa5",
}  # fmt: skip
BAR, GAP, LABEL, WIDTH = 13, 14, 400, 980
NOISE = 0.03  # of a median: less is no difference
TAIL = "p99"  # the one metric beside the first that is compared with the peers': what a median hides
COLUMN = 118  # characters of a line of text


def number(value: float) -> str:
    """Three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def medians(result: dict[str, Any]) -> dict[str, float]:
    """System -> median."""
    return {name: statistics.median(values) for name, values in result["values"].items() if values}


def best_peer(result: dict[str, Any]) -> float | None:
    """The better of the peers' medians."""
    found = [value for name, value in medians(result).items() if name in PEERS]
    if not found:
        return None
    return max(found) if result["higher_is_better"] else min(found)


def cell_id(result: dict[str, Any]) -> str:
    return f"{result['cell']}@{result['environment']}"


def compared(result: dict[str, Any]) -> str:
    """What `REASONS` has a reason for: the cell's id, and "p99" behind it if that is what the result is."""
    return f"{cell_id(result)} {result['metric']}".rstrip()


def behind(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Where we are behind the best peer by more than noise: in what counts, and in 99th percentiles."""
    for result in document["results"]:
        ours, best = medians(result).get(OURS), best_peer(result)
        if result["metric"] not in ("", TAIL) or best is None:
            continue
        if ours is None:
            if not result["metric"]:  # said once
                yield result
        elif ours < best * (1 - NOISE) if result["higher_is_better"] else ours > best * (1 + NOISE):
            yield result


def ratio(ours: float | None, other: float | None) -> str:
    return number(ours / other) if ours is not None and other else "–"


def row(result: dict[str, Any], names: Iterable[str]) -> str:
    """One line of the table."""
    found = medians(result)
    fields = [f"{result['title']}: {result['measures']}, {result['unit']}"]
    for name in names:
        values = result["values"].get(name)
        if values:
            spread = f" ({number(min(values))}–{number(max(values))})" if len(values) > 1 else ""
            fields.append(number(found[name]) + spread)
        else:
            fields.append("failed" if name in result["failures"] else "–")
    fields += [ratio(found.get(OURS), best_peer(result)), ratio(found.get(OURS), found.get("veth"))]
    return "| " + " | ".join(fields) + " |"


def tables(document: dict[str, Any]) -> Iterator[str]:
    """A table for each environment."""
    for key, title in document["environments"].items():
        results = [result for result in document["results"] if result["environment"] == key]
        if not results:
            continue
        used = {name for result in results for name in (*result["values"], *result["failures"])}
        names = [name for name in NAMES if name in used]
        yield from (f"## {title[0].upper()}{title[1:]}", "")
        yield "| " + " | ".join(["", *names, "to best peer", "to veth"]) + " |"
        yield "|" + "---|" * (len(names) + 3)
        yield from (row(result, names) for result in results)
        yield ""


def failures(document: dict[str, Any]) -> Iterator[str]:
    """What a system could not do."""
    for result in document["results"]:
        if not result["metric"]:
            for name, reason in result["failures"].items():
                yield f"* {name}, {cell_id(result)}: {' '.join(reason.split())}"


def losses(document: dict[str, Any]) -> Iterator[str]:
    """Where we lose, and why."""
    for result in behind(document):
        ours, best = medians(result).get(OURS), best_peer(result)
        reason = REASONS.get(compared(result), "no reason is known yet")
        title = f"{result['title']}, 99th percentile" if result["metric"] else result["title"]
        yield f"* {title} ({cell_id(result)}): {ratio(ours, best)} of the best peer: {reason}."


def use(document: dict[str, Any]) -> Iterator[str]:
    """Memory and retransmissions."""
    yield "| environment | system | resident, MiB | highest, MiB | TCP segments sent again by the guest |"
    yield "|---|---|---|---|---|"
    for entry in document["use"]:
        memory, peak = entry["memory_kib"] / 1024, entry["peak_memory_kib"] / 1024
        fields = (entry["environment"], entry["system"], number(memory), number(peak), str(entry["retransmissions"]))
        yield "| " + " | ".join(fields) + " |"


def wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, COLUMN, break_long_words=False, break_on_hyphens=False)


def page(document: dict[str, Any], chart_file: str) -> str:
    """The page, Markdown."""
    method = document["method"]
    versions = "; ".join(f"{name}: {text}" for name, text in method["versions"].items())
    missing = f" Not found: {', '.join(method['missing'])}." if method["missing"] else ""
    lines = [
        "# Performance",
        "",
        "Made by `make bench`, not by hand; docs/benchmark.md describes method and file.",
        "",
        *wrapped(
            f"{method['date']}, Linux {method['kernel']}, {method['machine']}, {method['cpus']} × {method['cpu']}, "
            f"Python {method['python']}. {versions}.{missing} Congestion control {method['congestion_control']}. "
            f"{method['placement']} The systems take turns; medians of {method['rounds']} rounds (3 for variants and "
            "long paths, 1 where connections are held, at least 9 for starts), least and most in brackets. A cell "
            "whose values, ours or those without translation, spread over more than "
            f"{method['disturbed_beyond'] * 100:.0f} % of their median was measured "
            f"for as many rounds again, all of which count. The whole took {method['seconds'] / 60:.0f} minutes. veth "
            "is no translation at all: the limit. Ratios are ours to the best peer's, and to veth; where less is "
            "better (s/GB, µs, bytes, ms), below 1 is better."
        ),
        "",
        f"![chart]({chart_file})",
        "",
        *tables(document),
        "## Where we are behind the best peer",
        "",
        *(list(losses(document)) or ["Nowhere in this run."]),
        "",
        "## Memory, retransmissions",
        "",
        *use(document),
        "",
    ]
    failed = list(failures(document))
    if failed:
        lines += ["## What failed", "", *failed, ""]
    return "\n".join(lines)


def chart(document: dict[str, Any]) -> str:
    """Bars of every cell's first metric, each scaled to its largest; SVG."""
    parts: list[str] = []
    y = 10
    for result in document["results"]:
        found = medians(result)
        if result["metric"] or not found:
            continue
        top = max(found.values()) or 1
        title = escape(f"{result['title']}, {result['unit']}")
        parts.append(f'<text x="{LABEL - 8}" y="{y + BAR - 3}" text-anchor="end">{title}</text>')
        where = escape(document["environments"][result["environment"]])
        parts.append(f'<text x="{LABEL - 8}" y="{y + 2 * BAR - 1}" text-anchor="end" fill="#777">{where}</text>')
        for name in NAMES:
            if name in found:
                width = found[name] / top * (WIDTH - LABEL - 140)
                parts.append(
                    f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>'
                )
                parts.append(f'<text x="{LABEL + width + 5:.1f}" y="{y + BAR - 3}">{name} {number(found[name])}</text>')
                y += BAR
        y += GAP
    size = f'width="{WIDTH}" height="{y}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="11">'
    return "\n".join([head, f'<rect {size} fill="white"/>', *parts, "</svg>", ""])
