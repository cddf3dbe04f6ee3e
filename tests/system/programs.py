"""Programs of others that the system tests run."""

import os
import shutil

import pytest


def need(program: str, package: str) -> str:
    """The path of a program that the test runs.

    Without it the test is skipped; in CI, where nothing may be, it fails.
    """
    found = shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if found is None:
        message = f"{program} is not installed (apt-get install {package})"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    return found
