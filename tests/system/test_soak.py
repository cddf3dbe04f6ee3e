"""Many flows at once over a link that loses, repeats, overtakes, corrupts and cuts frames: every byte is checked.

`make soak` runs 100,000 flows. BUCATINI_SOAK_FLOWS and BUCATINI_SOAK_SEED set their number and what they do; the seed
is in the message of a failure and brings the same flows and the same faults back.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from system.topology import ANY, HOST4, HOST6, SERVER4, SERVER6, Pasta
from system.users import only_unprivileged

pytestmark = only_unprivileged

FLOWS = int(os.environ.get("BUCATINI_SOAK_FLOWS", "6000"))
SEED = int(os.environ.get("BUCATINI_SOAK_SEED", "1"))
ALONG = 150  # flows at a time, each way
ENDS = (Path(__file__).parent / "soak_ends.py").read_text()
FAULTS = "loss=0.01,duplicate=0.01,reorder=0.01,corrupt=0.003,truncate=0.003"
PORT = 7200


def counters(output: list[str]) -> dict[str, int]:
    """The last statistics of each counter."""
    found = {}
    for line in output:
        if "statistics:" in line:
            found.update({name: int(value) for name, value in re.findall(r"(\w+) (\d+)", line.partition("flows")[2])})
    return found


@pytest.mark.release
@pytest.mark.timeout(120 + FLOWS // 15)
@pytest.mark.parametrize(("outside", "inside"), [(SERVER4, HOST4), (SERVER6, HOST6)], ids=["IPv4", "IPv6"])
def test_every_byte_of_every_flow_arrives_or_its_end_is_told(pasta: Pasta, outside: str, inside: str) -> None:
    guest = pasta.guest("--config-net", "-t", str(PORT), "-d", "--stats", "1", "--fault", f"{FAULTS},seed={SEED}")
    any_ = ANY[6 if ":" in outside else 4]
    python = [pasta.installation.python, "-I", "-S", "-c", ENDS]
    server_side, guest_side = pasta.topology.server, guest
    servers = [
        subprocess.Popen(where.command([*python, "server", any_, str(PORT)]), stdout=subprocess.PIPE, text=True)
        for where in (server_side, guest_side)
    ]
    clients = []
    try:
        for server in servers:
            assert server.stdout is not None
            assert server.stdout.readline() == "ready\n"
        for where, address, seed in ((guest_side, outside, SEED), (server_side, inside, SEED + 1)):
            command = [*python, "client", address, PORT, FLOWS // 4, seed, ALONG]
            clients.append(
                subprocess.Popen(where.command([str(word) for word in command]), stdout=subprocess.PIPE, text=True)
            )
        results = [json.loads(client.communicate()[0]) for client in clients]
    finally:
        for process in [*clients, *servers]:
            process.kill()
    said = [server.communicate()[0].splitlines() for server in servers]
    assert ([result["wrong"] for result in results], said) == ([[], []], [[], []]), f"seed {SEED}"
    found = counters(guest.output)
    print(json.dumps({"seed": SEED, "clients": results, "counters": found}))  # noqa: T201 - `make soak` shows it
    for name in ("tcp_retransmit", "tcp_out_of_order", "tcp_duplicate", "drop_l4_checksum", "drop_ip_header"):
        assert found.get(name, 0) > 0, (name, found)
