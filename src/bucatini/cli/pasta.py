"""`pasta`: connect a network namespace, new or existing, to the network with no privilege."""

from __future__ import annotations

from bucatini.cli.options import PASTA
from bucatini.cli.program import main as program
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from bucatini.cli.program import Run


def _runner() -> Run:
    from bucatini.runtime.pasta import run

    return run


def main() -> int:
    """Entry point of the command; the exit status."""
    return program(PASTA, _runner)
