"""Where the programs under test are, such that every user can run them.

Usually that is .venv/bin. Where a directory above the work tree is closed to other users (a clone below /root), or
another build is asked for, the package is copied to a directory under /var/tmp with a virtual environment of its own,
which goes away with the session. Environment:

BUCATINI_TEST_PACKAGE  directory that holds the package to test (`make asan`), instead of the installed one
BUCATINI_TEST_PRELOAD  libraries to preload into the programs (the sanitizers' runtimes)
BUCATINI_TEST_PASTA    another program in place of pasta, only to debug the tests themselves
"""

import compileall
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path
from typing import NamedTuple

from system.users import User

SANITIZER_OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1:log_path={logs}/address",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1:log_path={logs}/undefined",
    "PYTHONMALLOC": "malloc",
}


class Installation(NamedTuple):
    """The programs to test and the interpreter that guest programs may use."""

    pasta: str
    passt: str
    bucatini: str
    python: str  # executable for every user; without our package
    logs: Path | None  # reports of the sanitizers appear here
    directory: Path | None  # made by us

    def remove(self) -> None:
        """Remove what was copied."""
        if self.directory is not None:
            shutil.rmtree(self.directory)


def install(user: User) -> Installation:
    """The installation that `user` can run: the one in .venv if possible, else a copy."""
    scripts = Path(sys.prefix, "bin")
    package = os.environ.get("BUCATINI_TEST_PACKAGE")
    override = os.environ.get("BUCATINI_TEST_PASTA")
    python = _interpreter(user)
    if override:
        return Installation(override, str(scripts / "passt"), str(scripts / "bucatini"), python, None, None)
    sources = Path(package, "bucatini") if package else Path(__file__).parents[2] / "src" / "bucatini"
    if package or not (_can_run(user, scripts / "pasta", scripts / "python") and _can_read(user, sources)):
        return _copy(sources, python)
    return _installation(scripts, python, None, None)


def _can_run(user: User, *programs: Path) -> bool:
    return all(
        subprocess.run([*user.prefix, "test", "-x", str(program)], check=False).returncode == 0 for program in programs
    )


def _can_read(user: User, package: Path) -> bool:
    files = [path for path in package.rglob("*") if path.suffix in {".py", ".so"}]
    return (
        subprocess.run(
            [*user.prefix, "sh", "-c", 'for f; do test -r "$f" || exit 1; done', "sh", *map(str, files)], check=False
        ).returncode
        == 0
    )


def _interpreter(user: User) -> str:
    """The interpreter below our virtual environment, or an equal one, that `user` may execute."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys._base_executable, f"/usr/bin/python{version}"):
        same = [
            *user.prefix,
            candidate,
            "-c",
            f"import sys; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})",
        ]
        if (
            candidate
            and shutil.which(candidate)
            and subprocess.run(same, check=False, capture_output=True).returncode == 0
        ):
            return str(candidate)
    message = (
        f"no Python {version} that {user.name} may execute; make .venv from another one: PYTHON=/usr/bin/python3 make"
    )
    raise RuntimeError(message)


def _copy(package: Path, python: str) -> Installation:
    directory = Path(tempfile.mkdtemp(prefix="bucatini-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    try:
        environment = directory / "venv"
        subprocess.run([python, "-m", "venv", "--without-pip", str(environment)], check=True, umask=0o022)
        site = next(environment.glob("lib/python*/site-packages"))
        shutil.copytree(
            package, site / "bucatini", ignore=shutil.ignore_patterns("*.c", "*.pyx", "*.html", "__pycache__")
        )
        compileall.compile_dir(str(site), quiet=1)
        preload = os.environ.get("BUCATINI_TEST_PRELOAD", "")
        logs = directory / "log" if preload else None
        if logs is not None:
            logs.mkdir()
            logs.chmod(0o1777)
        for entry in distribution("bucatini").entry_points:
            module, _, function = entry.value.partition(":")
            script = environment / "bin" / entry.name
            text = f"import sys\nfrom {module} import {function}\nsys.exit({function}())\n"
            if logs is None:
                script.write_text(f"#!{environment}/bin/python\n{text}")
            else:
                # The preloaded libraries are for our process, not for the setpriv before it.
                inner = script.with_name(f"{entry.name}-itself")
                # Nor for the guest's programs: they are not ours to examine, and some hang with it.
                forget = (
                    f"import os\nfor name in {['LD_PRELOAD', *SANITIZER_OPTIONS]}:\n    os.environ.pop(name, None)\n"
                )
                # A sanitizer reports by opening files, which the wall would forbid.
                isolation = 'sys.argv.insert(1, "--no-isolation")\n' if entry.name in {"pasta", "passt"} else ""
                inner.write_text(forget + text.replace("sys.exit(", f"{isolation}sys.exit("))
                options = " ".join(f"{name}={value.format(logs=logs)}" for name, value in SANITIZER_OPTIONS.items())
                script.write_text(
                    f'#!/bin/sh\nexec env LD_PRELOAD="{preload}" {options} {environment}/bin/python {inner} "$@"\n'
                )
            script.chmod(0o755)
        for path in directory.rglob("*"):
            if not path.is_symlink() and path != logs:
                mode = stat.S_IMODE(path.stat().st_mode)
                path.chmod(mode | (0o555 if path.is_dir() or mode & 0o100 else 0o444))
    except BaseException:
        shutil.rmtree(directory)
        raise
    scripts = environment / "bin"
    return _installation(scripts, python, logs, directory)


def _installation(scripts: Path, python: str, logs: Path | None, directory: Path | None) -> Installation:
    pasta, passt, bucatini = (str(scripts / name) for name in ("pasta", "passt", "bucatini"))
    return Installation(pasta, passt, bucatini, python, logs, directory)
