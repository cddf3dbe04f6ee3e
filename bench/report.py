"""The page and the chart of a run of compare.py: `report.py FILE.json` writes FILE.md and FILE.svg."""

import json
import statistics
import sys
import textwrap
from pathlib import Path
from typing import Any

TITLES = {
    "tcp-out": "TCP, one stream, namespace → host, Gbit/s",
    "tcp-in": "TCP, one stream, host → namespace, Gbit/s",
    "tcp-out-1400": "TCP, MSS 1400, namespace → host, Gbit/s",
    "tcp-in-1400": "TCP, MSS 1400, host → namespace, Gbit/s",
    "tcp-out-p4": "TCP, four streams, namespace → host, Gbit/s",
    "tcp-in-p4": "TCP, four streams, host → namespace, Gbit/s",
    "pingpong": "TCP, 1-byte round trips per second",
    "crr": "TCP, connect-request-response per second",
    "udp-pingpong": "UDP, 1-byte round trips per second",
    "udp-out-64": "UDP, 64 bytes, namespace → host, 1000/s",
    "udp-in-64": "UDP, 64 bytes, host → namespace, 1000/s",
    "udp-out-1400": "UDP, 1400 bytes, namespace → host, 1000/s",
    "udp-in-1400": "UDP, 1400 bytes, host → namespace, 1000/s",
    "start": "exec to readiness, ms",
}
SYSTEMS = ("veth", "bucatini", "pasta", "slirp4netns")
COLOURS = {"veth": "#bbbbbb", "bucatini": "#c8452d", "pasta": "#3b6ea5", "slirp4netns": "#6a9a3f"}
BAR, GAP, LABEL, WIDTH = 13, 14, 330, 900


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def medians(data: dict[str, Any], cell: str) -> dict[str, float]:
    """System -> median of a cell."""
    return {name: statistics.median(values) for name, values in data["cells"][cell].items() if values}


def row(data: dict[str, Any], cell: str) -> str:
    """One line of the table."""
    key, _, mtu = cell.partition("@")
    found = medians(data, cell)
    fields = [TITLES[key] + (f" (MTU {mtu})" if mtu else "")]
    for name in SYSTEMS:
        values = data["cells"][cell].get(name)
        spread = f" ({number(min(values))}–{number(max(values))})" if values else ""
        fields.append(number(found[name]) + spread if name in found else "–")
    peers = [found[name] for name in ("pasta", "slirp4netns") if found.get(name)]
    ours = found["bucatini"]
    best = (min(peers) if key == "start" else max(peers)) if peers else 0
    fields.append(f"{number(ours / best)}" if best else "–")
    fields.append(f"{number(ours / found['veth'])}" if found.get("veth") else "–")
    return "| " + " | ".join(fields) + " |"


def chart(data: dict[str, Any]) -> str:
    """Bars, each cell scaled to its largest."""
    parts = []
    y = 30
    for cell in data["cells"]:
        key, _, mtu = cell.partition("@")
        found = medians(data, cell)
        top = max(found.values()) or 1
        parts.append(f'<text x="{LABEL - 8}" y="{y + BAR}" text-anchor="end">{TITLES[key]}</text>')
        if mtu:
            parts.append(f'<text x="{LABEL - 8}" y="{y + 2 * BAR + 2}" text-anchor="end" fill="#777">MTU {mtu}</text>')
        for name in SYSTEMS:
            if name not in found:
                continue
            width = found[name] / top * (WIDTH - LABEL - 120)
            parts.append(f'<rect x="{LABEL}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{COLOURS[name]}"/>')
            parts.append(f'<text x="{LABEL + width + 5:.1f}" y="{y + BAR - 3}">{name} {number(found[name])}</text>')
            y += BAR
        y += GAP
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{y}" font-family="sans-serif" font-size="11">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="white"/>', *parts, "</svg>", ""])


def page(data: dict[str, Any]) -> str:
    """The page."""
    versions = ", ".join(f"{name} ({text})" for name, text in data["versions"].items() if name != "veth")
    retransmissions = ", ".join(f"{name}: {count}" for name, count in data["retransmissions"].items())
    memory = ", ".join(f"{name}: {size / 1024:.1f} MiB" for name, size in data["memory_kib"].items() if size)
    method = (
        f"Kernel {data['kernel']}, {data['cpus']} CPUs; {versions}. A host namespace and a server "
        "namespace joined by veth "
        "(MTU 1500), congestion control cubic everywhere, each system run by an unprivileged user. "
        f"{data['placement']} TCP throughput is iperf3's, one second a run; the rest is measured by the generators of "
        f"bench/load.pyx. The systems take turns; medians of {data['runs']} runs, least and most in "
        "brackets. veth is no "
        "translation at all: the limit. Ratios: Bucatini to the better of the two peers (for the start, "
        "below 1 would be "
        "faster), and to veth."
    )
    slower = (
        "Where we are slower: the start. An interpreter has to load what a C program has linked; "
        "ARCHITECTURE.md says what "
        "is done about it. slirp4netns's figure is the byte on its ready descriptor, without "
        "configuration of addresses by "
        "the end of it; the others' is the end of the parent process."
    )
    lines = [
        "# Performance",
        "",
        "Made by `make bench`, not by hand: bench/compare.py measures, bench/report.py writes page and chart.",
        "",
        *textwrap.wrap(method, 118),
        "",
        "| | veth | Bucatini | pasta | slirp4netns | to best peer | to veth |",
        "|---|---|---|---|---|---|---|",
        *(row(data, cell) for cell in data["cells"]),
        "",
        "![chart](performance.svg)",
        "",
        *textwrap.wrap(f"TCP retransmissions in the namespace over all cells: {retransmissions}.", 118),
        "",
        *textwrap.wrap(f"Resident memory after all cells: {memory}.", 118),
        "",
        *textwrap.wrap(slower, 118),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Write both beside the JSON file."""
    source = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/performance.json")
    data = json.loads(source.read_text())
    source.with_suffix(".md").write_text(page(data))
    source.with_suffix(".svg").write_text(chart(data))


if __name__ == "__main__":
    main()
