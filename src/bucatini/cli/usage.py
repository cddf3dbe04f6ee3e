"""--help and --version, rendered from the option table. Integrators look for bare option names in them."""

from __future__ import annotations

from bucatini import __version__
from bucatini.cli.options import GROUPS, NAMES, PASST, PASTA, Option

SYNOPSIS = {
    PASTA: """Usage: pasta [OPTION]... [COMMAND] [ARGUMENT]...
       pasta [OPTION]... PID
       pasta [OPTION]... --netns PATH|NAME

Connect a network namespace to the network without privilege. Without COMMAND, PID
or --netns, the user's shell runs in new namespaces.
""",
    PASST: """Usage: passt [OPTION]...

Connect a virtual machine to the network without privilege. QEMU reaches it by
-netdev stream,id=net0,server=off,addr.type=unix,addr.path=/tmp/passt_1.socket
""",
}
COLUMN = 34  # where the explanations begin
WIDTH = 90


def about(text: str, mode: int) -> str:
    """Return a text of the option table in the words of a program: whom passt serves is a guest."""
    if mode == PASTA:
        return text
    return "user namespace".join(part.replace("namespace", "guest") for part in text.split("user namespace"))


def line(option: Option, mode: int) -> str:
    """Return the line of an option, or two: its name is never glued to anything."""
    short = f"-{option.short}" if option.short else "  "
    head = f"  {short} --{option.long} {option.metavar}".rstrip()
    text = about(option.help, mode) + (" (not yet)" if option.not_yet else "")
    return f"{head:<{COLUMN - 1}} {text}" if len(head) < COLUMN else f"{head}\n{'':<{COLUMN}}{text}"


def usage(mode: int = PASTA) -> str:
    """Return the text of --help, at most `WIDTH` columns wide."""
    lines = [SYNOPSIS[mode]]
    for title, options in GROUPS:
        found = [line(option, mode) for option in options if option.modes & mode and not option.hidden]
        if found:
            lines += [f"{title}:", *found, ""]
    lines.append(f"SPEC: none, all, or [ADDRESS][%INTERFACE]/PORTS; see {NAMES[mode]}(1).")
    return "\n".join(lines) + "\n"


def version(mode: int = PASTA) -> str:
    """Return the text of --version."""
    return (
        f"{NAMES[mode]} {__version__}\n"
        "Bucatini: rootless networking in Python\n"
        "Licence: BSD-3-Clause. There is no warranty, to the extent permitted by law.\n"
    )
