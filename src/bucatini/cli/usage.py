"""--help and --version, rendered from the option table. Integrators look for bare option names in them."""

from bucatini import __version__
from bucatini.cli.options import GROUPS, PASTA, Option

SYNOPSIS = """Usage: pasta [OPTION]... [COMMAND] [ARGUMENT]...
       pasta [OPTION]... PID
       pasta [OPTION]... --netns PATH|NAME

Connect a network namespace to the network without privilege. Without COMMAND, PID
or --netns, the user's shell runs in new namespaces.
"""
COLUMN = 34  # where the explanations begin
WIDTH = 90


def line(option: Option) -> str:
    """Return the line of an option, or two: its name is never glued to anything."""
    short = f"-{option.short}" if option.short else "  "
    head = f"  {short} --{option.long} {option.metavar}".rstrip()
    text = option.help + (" (not yet)" if option.not_yet else "")
    return f"{head:<{COLUMN - 1}} {text}" if len(head) < COLUMN else f"{head}\n{'':<{COLUMN}}{text}"


def usage() -> str:
    """Return the text of --help, at most `WIDTH` columns wide."""
    lines = [SYNOPSIS]
    for title, options in GROUPS:
        lines.append(f"{title}:")
        lines += [line(option) for option in options if option.modes & PASTA and not option.hidden]
        lines.append("")
    lines.append("SPEC: none, all, or [ADDRESS][%INTERFACE]/PORTS; see pasta(1).")
    return "\n".join(lines) + "\n"


def version() -> str:
    """Return the text of --version."""
    return (
        f"pasta {__version__}\n"
        "Bucatini: rootless networking in Python\n"
        "Licence: BSD-3-Clause. There is no warranty, to the extent permitted by law.\n"
    )
