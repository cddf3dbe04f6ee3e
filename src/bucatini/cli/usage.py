"""--help and --version, rendered from the option table. Integrators look for bare option names in them."""

from bucatini import __version__
from bucatini.cli.options import OPTIONS

SYNOPSIS = """Usage: pasta [OPTION]... [COMMAND] [ARGUMENT]...
       pasta [OPTION]... PID
       pasta [OPTION]... --netns [PATH|NAME]
"""


def usage() -> str:
    """Return the text of --help; every line at most 100 columns, option names never glued to anything."""
    lines = [SYNOPSIS, "Without COMMAND, PID or --netns, the user's shell runs in new namespaces.", ""]
    for option in OPTIONS:
        short = f"-{option.short} " if option.short else "   "
        head = f"  {short} --{option.long} {option.metavar}".rstrip()
        lines.append(f"{head:<38} {option.help}" if len(head) < 38 else f"{head}\n{'':<38} {option.help}")
    return "\n".join(lines) + "\n"


def version() -> str:
    """Return the text of --version."""
    return f"pasta {__version__}\nBucatini: rootless networking in Python\nLicence: BSD-3-Clause\n"
