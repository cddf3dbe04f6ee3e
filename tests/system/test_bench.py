"""`bucatini bench` measures, writes what it measured, and leaves the machine as it was."""

import copy
import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from bucatini.bench import baseline
from bucatini.cli import bench
from system.installation import Installation
from system.namespaces import wait_until

pytestmark = pytest.mark.release

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def machine(pid: int = 0) -> tuple[object, ...]:
    """What a run must not change, and what that process has made: others may be under way."""
    mark = f"bb{pid}-"
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    mine = sorted(line for line in namespaces.splitlines() if line.startswith(mark))
    folders = sorted(path.name for path in Path("/etc/netns").glob(f"{mark}*"))
    temporary = sorted(path.name for path in Path("/tmp").glob(f"bucatini-bench-{mark}*"))
    return mine, folders, temporary, sorted(ALLOWED.read_text().split()), stat.S_IMODE(os.stat("/dev/net/tun").st_mode)


def test_a_run_writes_result_page_and_chart(installation: Installation, tmp_path: Path) -> None:
    before = machine()
    file = tmp_path / "result.json"
    cells = "crr,dns,tcp-forward-in,udp-in-64,udp-paced-in,udp-paced-out,tcp-pingpong,held-1k,start"
    command = [installation.bucatini, "bench", "--runs", "1", "--systems", "veth,bucatini", "--json", str(file)]
    process = subprocess.Popen(
        [*command, "--cells", cells], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 0, said
    document = json.loads(file.read_text())
    assert document["schema"] == 1
    assert {result["cell"] for result in document["results"]} == set(cells.split(","))
    for result in document["results"]:
        assert result["failures"] == {}
        if result["metric"] != "idle":
            assert all(value > 0 or result["metric"] == "loss" for value in result["values"]["bucatini"]), result
    assert {use["system"] for use in document["use"]} == {"bucatini"}
    assert "# Performance" in file.with_suffix(".md").read_text()
    assert file.with_suffix(".svg").read_text().startswith("<svg")
    assert machine(process.pid) == before
    assert set(document) == documented("One JSON object.")
    assert set(document["results"][0]) == documented("A result:")
    # Beside itself, and beside a run in which a start took a hundred times as long, or a hundredth of the time
    assert list(baseline.regressions(document, document)) == []
    for factor, expected in ((100, "no regression"), (0.01, "regression: start@start: ")):
        base = copy.deepcopy(document)
        for result in base["results"]:
            result["values"] = {name: [v * factor for v in values] for name, values in result["values"].items()}
        compared = tmp_path / "base.json"
        compared.write_text(json.dumps(base))
        done = subprocess.run(
            [*command[:-2], "--cells", "start", "--base", str(compared)],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert f"\n{expected}" in done.stdout
        assert done.returncode == (factor < 1)


def documented(before: str) -> set[str]:
    """Keys in the table of docs/benchmark.md that follows a line."""
    text = (Path(__file__).parents[2] / "docs/benchmark.md").read_text()
    table = text.partition(f"\n{before}\n\n")[2].partition("\n\n")[0]
    return {key for line in table.splitlines()[2:] for key in re.findall("`(\\w+)`", line.split("|")[1])}


def test_peers_that_are_not_found_are_named(installation: Installation, tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    empty = tmp_path / "peers"
    empty.mkdir()
    environment = {**os.environ, "PEERS": str(empty), "PATH": only(tmp_path / "bin", bench.PROGRAMS)}
    command = [
        installation.bucatini,
        "bench",
        "--runs",
        "1",
        "--cells",
        "crr",
        "--systems",
        "veth,pasta,slirp4netns,passt",
    ]
    done = subprocess.run(
        [*command, "--json", str(file), "--peers", str(empty)],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(file.read_text())["method"]["missing"] == ["pasta", "slirp4netns", "passt"]
    for name in ("pasta", "slirp4netns", "passt"):
        assert f"{name}: not found in --peers, $PEERS or PATH: left out\n" in done.stdout
    assert "Not found: pasta, slirp4netns, passt." in file.with_suffix(".md").read_text().replace("\n", " ")


def only(folder: Path, programs: Iterable[str]) -> str:
    """Make a folder with nothing but these programs."""
    folder.mkdir()
    for name in (*programs, "sh"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    return str(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("when", ["as soon as something has changed", "while it measures"])
def test_an_interrupted_run_cleans_up(
    clean: None, installation: Installation, number: signal.Signals, when: str
) -> None:
    before = machine()
    process = subprocess.Popen(
        [installation.bucatini, "bench", "--cells", "crr,mtu1500", "--systems", "veth,bucatini"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    if when == "while it measures":
        assert process.stdout.readline().startswith("crr@mtu65520: ")  # the next cell has begun
    else:
        wait_until(lambda: machine(process.pid) != before, "a change")
    for _ in range(2):  # impatient
        process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + number, said
    assert machine(process.pid) == before


@pytest.mark.parametrize(
    ("options", "complaint"),
    [(["--cells", "nonsense"], "no such cell: nonsense"), (["--systems", "tcp"], "no such system: tcp")],
)
def test_what_cannot_be_measured_is_one_clear_line(
    installation: Installation, options: list[str], complaint: str
) -> None:
    done = subprocess.run([installation.bucatini, "bench", *options], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"bucatini: {complaint}\n"
