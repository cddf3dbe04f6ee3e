"""`pasta`: connect a network namespace, new or existing, to the network with no privilege."""

import os
import sys
import time

from bucatini.cli.getopt import GetoptError
from bucatini.cli.options import parse
from bucatini.errors import BucatiniError


def main() -> int:
    """Entry point of the command; the exit status."""
    from bucatini.host import process

    process.occupy_standard_descriptors()
    # Python gives no stream to a descriptor that was closed when it started
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115 - for the whole run
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115 - for the whole run
    process.close_inherited()
    process.have_directory()
    try:
        parsed = parse(sys.argv[1:])
    except GetoptError as error:
        from bucatini.cli.usage import usage

        sys.stderr.write(f"pasta: {error}\n{usage()}")
        return 1
    except BucatiniError as error:
        sys.stderr.write(f"pasta: {error}\n")
        return 1
    if parsed.show:
        from bucatini.cli import usage as texts

        sys.stdout.write(texts.version() if parsed.show == "version" else texts.usage())
        return 0
    from bucatini.runtime import log as logs
    from bucatini.runtime.pasta import run

    settings = parsed.settings
    spawning = settings.target_pid is None and settings.netns is None
    try:
        log = logs.Log(
            debug=settings.debug,
            trace=settings.trace,
            # Around a command, only what was asked for
            quiet=settings.quiet or (spawning and not (settings.debug or settings.log_file or settings.stats)),
            path=settings.log_file,
            size=settings.log_size,
        )
        status = run(settings, log, time.monotonic_ns)
    except (BucatiniError, ModuleNotFoundError) as error:
        text = str(error)
        if isinstance(error, ModuleNotFoundError):
            if not str(error.name).startswith("bucatini.datapath"):
                raise
            text = "the compiled packet path is missing: run 'make build'"
        sys.stderr.write(f"pasta: {text}\n")
        sys.stderr.flush()
        status = 1
    # Everything is written; what Python would do on its way out costs milliseconds
    os._exit(status)
