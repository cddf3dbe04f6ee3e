"""What `pasta` and `passt` have in common: from a command line to an exit status."""

from __future__ import annotations

import gc
import os
import sys
import time

from bucatini.cli.getopt import GetoptError
from bucatini.cli.options import NAMES, PASTA, parse
from bucatini.errors import BucatiniError
from bucatini.host import process
from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from bucatini.plan.settings import Settings
    from bucatini.runtime.log import Log

    Run = Callable[[Settings, Log, Callable[[], int]], int]


def main(mode: int, runner: Callable[[], Run]) -> int:
    """Run the program of `mode`; the exit status.

    Args:
        runner: loads and returns what serves, once it is known that something is to be served.
    """
    gc.disable()  # a start leaves nothing that refers to itself; `isolate` turns it on again
    name = NAMES[mode]
    process.occupy_standard_descriptors()
    # Python gives no stream to a descriptor that was closed when it started
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the whole run
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the whole run
    process.have_directory()
    try:
        parsed = parse(sys.argv[1:], mode)
    except GetoptError as error:
        from bucatini.cli.usage import usage

        sys.stderr.write(f"{name}: {error}\n{usage(mode)}")
        return 1
    except BucatiniError as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    if parsed.show:
        from bucatini.cli import usage as texts

        sys.stdout.write(texts.version(mode) if parsed.show == "version" else texts.usage(mode))
        return 0
    settings = parsed.settings
    process.close_inherited(*(() if settings.fd is None else (settings.fd,)))
    from bucatini.runtime import log as logs

    spawning = mode == PASTA and settings.target_pid is None and settings.netns is None
    try:
        run = runner()
        log = logs.Log(
            debug=settings.debug,
            trace=settings.trace,
            # Around a command, only what was asked for
            quiet=settings.quiet or (spawning and not (settings.debug or settings.log_file or settings.stats)),
            path=settings.log_file,
            size=settings.log_size,
            name=name,
        )
        status = run(settings, log, time.monotonic_ns)
    except (BucatiniError, ModuleNotFoundError, OSError) as error:
        # An OSError as it is: no process, no descriptor, no memory is left for a start
        text = f"cannot start: {error.strerror}" if isinstance(error, OSError) else str(error)
        if isinstance(error, ModuleNotFoundError):
            if not str(error.name).startswith("bucatini.datapath"):
                raise
            text = "the compiled packet path is missing: run 'make build'"
        sys.stderr.write(f"{name}: {text}\n")
        sys.stderr.flush()
        status = 1
    # Everything is written; what Python would do on its way out costs milliseconds
    os._exit(status)
