"""What all tests share: hypothesis profiles, that the right build is tested, and who buries orphans."""

import ctypes
import os
import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["case_table", "attack_table"]

# One machine is not as fast as another, and never twice: time is no property of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_configure() -> None:
    """Go on below a process to which all orphans of the tests fall, so that they are found, and which buries them.

    A session that is told to end cleans up too: pytest itself only knows the interrupt of a terminal.
    """
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    tests = os.fork()
    if tests == 0:
        signal.signal(signal.SIGTERM, lambda number, frame: signal.raise_signal(signal.SIGINT))
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to both
    signal.signal(signal.SIGTERM, lambda number, frame: os.kill(tests, number))
    while True:
        ended, status = os.wait()
        if ended == tests:
            os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))


def pytest_sessionstart() -> None:
    """With BUCATINI_TEST_PACKAGE, what is imported must be that build and not the one below src/."""
    package = os.environ.get("BUCATINI_TEST_PACKAGE")
    if package and os.environ.get("PYTHONPATH"):
        import bucatini

        if not Path(bucatini.__file__).is_relative_to(package):
            pytest.exit(f"bucatini comes from {bucatini.__file__}, not from {package}", returncode=4)
