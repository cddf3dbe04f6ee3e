"""`bucatini`: the friendly front. Finds the subcommand and runs it; the subcommands are modules of their own.

Nothing that a subcommand needs is imported before it is asked for.
"""

from __future__ import annotations

import sys

from bucatini import __version__
from bucatini.errors import BucatiniError

USAGE = """Usage: bucatini COMMAND

Rootless networking for namespaces and virtual machines.

  demo      start a network namespace, show what it can do, and leave you in it
  doctor    check what this host allows, and say what to do about the rest
  bench     measure it beside its peers, on this machine

  --version, --help

'bucatini COMMAND --help' tells more. The program that makes namespaces is 'pasta'.
"""


def main(argv: list[str] | None = None) -> int:
    """Entry point of the command; the exit status."""
    arguments = sys.argv[1:] if argv is None else argv
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    try:
        match command:
            case "demo":
                from bucatini.cli import demo

                return demo.main(rest)
            case "doctor":
                from bucatini.cli import doctor

                return doctor.main(rest)
            case "bench":
                from bucatini.cli import bench

                return bench.main(rest)
            case "--version" | "-V":
                print(f"bucatini {__version__}")
                return 0
            case "--help" | "-h" | "help":
                print(USAGE, end="")
                return 0
            case "":
                print(USAGE, end="", file=sys.stderr)
                return 1
            case _:
                print(f"bucatini: unknown command {command!r}\n\n{USAGE}", end="", file=sys.stderr)
                return 1
    except BucatiniError as error:
        print(f"bucatini: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        return 0
