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
    log = None
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
    except Exception as error:  # noqa: BLE001 - whatever it is, it must not reach the interpreter: see `told`
        status = 1
        text, *places = told(error, logs.printable)
        lines = [f"{name}: {text}", *(places if settings.debug or settings.trace else ())]
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()
        if log is not None:  # in the background nobody hears the other
            log.stderr = False
            log.error(text)
    # Everything is written; what Python would do on its way out costs milliseconds
    os._exit(status)


def told(error: Exception, printable: Callable[[str], str]) -> list[str]:
    """Return what to say about an error that ends the program: a line, and for a mistake of ours how it came to that.

    Inside the wall (`host/isolation`) the interpreter's own report would be the end: it opens the sources.
    """
    if isinstance(error, BucatiniError):
        return [str(error)]
    if isinstance(error, OSError):  # no process, no descriptor, no memory is left for a start
        return [f"cannot start: {error.strerror}"]
    if isinstance(error, ModuleNotFoundError) and str(error.name).startswith("bucatini.datapath"):
        return ["the compiled packet path is missing: run 'make build'"]
    places = []
    where = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{os.path.basename(code.co_filename)}:{trace.tb_lineno}"
        places.append(f"  {code.co_filename}:{trace.tb_lineno} in {code.co_name}")
        trace = trace.tb_next
    return [printable(f"unexpected {type(error).__name__} at {where}: {error}"), *places]
