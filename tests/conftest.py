"""What all tests share: hypothesis profiles, and that the right build is tested."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["case_table", "attack_table"]

# One machine is not as fast as another, and never twice: time is no property of the code.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_sessionstart() -> None:
    """With BUCATINI_TEST_PACKAGE, what is imported must be that build and not the one below src/."""
    package = os.environ.get("BUCATINI_TEST_PACKAGE")
    if package and os.environ.get("PYTHONPATH"):
        import bucatini

        if not Path(bucatini.__file__).is_relative_to(package):
            pytest.exit(f"bucatini comes from {bucatini.__file__}, not from {package}", returncode=4)
