"""What `pasta --version` imports: what parsing a command line costs. The whole start: tests/system/test_start.py."""

import subprocess
import sys

import pytest

from start_modules import DEAR, PARSING, imported, ours, standard

pytestmark = pytest.mark.release

START = "import sys; from bucatini.cli.pasta import main; sys.exit(main())"
OURS = {
    "bucatini.cli.getopt",
    "bucatini.cli.options",
    "bucatini.cli.pasta",
    "bucatini.cli.program",
    "bucatini.cli.usage",
    "bucatini.errors",
    "bucatini.host.process",
    "bucatini.lean.record",
    "bucatini.lean.sockets",
    "bucatini.plan.ports",
    "bucatini.plan.settings",
}


def modules(code: str, *arguments: str) -> set[str]:
    command = [sys.executable, "-X", "importtime", "-c", code, *arguments]
    result = subprocess.run(command, check=True, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return imported(result.stderr)


@pytest.fixture(scope="module")
def found() -> set[str]:
    return modules(START, "--version") - modules("pass")


def test_a_command_line_costs_no_dear_module(found: set[str]) -> None:
    assert not (found | standard(found)) & DEAR


def test_a_command_line_costs_only_what_is_listed(found: set[str]) -> None:
    assert standard(found) <= PARSING


def test_a_command_line_needs_only_these_modules_of_ours(found: set[str]) -> None:
    assert ours(found) == OURS
