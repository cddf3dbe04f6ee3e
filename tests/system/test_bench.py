"""`bucatini bench` measures, writes what it measured, and leaves the machine as it was."""

import json
import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from system.installation import Installation

pytestmark = pytest.mark.release

ALLOWED = Path("/proc/sys/net/ipv4/tcp_allowed_congestion_control")


def machine() -> tuple[object, ...]:
    """What a run must not change."""
    namespaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    mine = sorted(line for line in namespaces.splitlines() if line.startswith("bb"))
    folders = sorted(path.name for path in Path("/etc/netns").glob("bb*"))
    temporary = sorted(path.name for path in Path("/tmp").glob("bucatini-bench-*"))
    return mine, folders, temporary, sorted(ALLOWED.read_text().split()), stat.S_IMODE(os.stat("/dev/net/tun").st_mode)


def test_a_run_writes_result_page_and_chart(installation: Installation, tmp_path: Path) -> None:
    before = machine()
    file = tmp_path / "result.json"
    cells = "crr,dns,tcp-forward-in,udp-in-64,tcp-pingpong,held-1k,start"
    command = [installation.bucatini, "bench", "--runs", "1", "--systems", "veth,bucatini", "--json", str(file)]
    done = subprocess.run([*command, "--cells", cells], capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
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
    assert machine() == before
    # The same again, beside it
    done = subprocess.run(
        [*command[:-2], "--cells", "start", "--base", str(file)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "regression" in done.stdout


def test_an_interrupted_run_cleans_up(installation: Installation) -> None:
    before = machine()
    process = subprocess.Popen(
        [installation.bucatini, "bench", "--cells", "mtu65520", "--systems", "veth,bucatini"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while machine()[0] == before[0]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(1)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert machine() == before


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
