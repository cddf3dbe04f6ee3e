"""Build of what is compiled: the packet path, and the benchmark's instruments.

BUCATINI_BUILD: release (default), debug, coverage, asan or fuzz (by clang, for libFuzzer).
"""

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

BUILD = os.environ.get("BUCATINI_BUILD", "release")
CFLAGS = {
    "release": ["-O3", "-g1", "-fno-plt", "-fno-strict-aliasing"],
    "debug": ["-O0", "-g3"],
    "coverage": ["-O0", "-g1"],
    "asan": ["-O1", "-g3", "-fsanitize=address,undefined", "-fno-omit-frame-pointer"],
    "fuzz": ["-O1", "-g1", "-fsanitize=fuzzer-no-link,address,undefined", "-fno-sanitize-recover=undefined"],
}[BUILD] + ["-Wall", "-Wno-unused-function"]
GENERATED = Path("build/generated")


TARGET_CFLAGS = ["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
SOURCES = {".".join(path.with_suffix("").parts[1:]): path for path in sorted(Path("src/bucatini").glob("*/*.pyx"))}
if {"build", "build_ext"} & set(sys.argv):  # make's commands, not a package's: what the fuzz targets are made of
    SOURCES |= {f"fuzz_{path.stem}": path for path in sorted(Path("tests/fuzz").glob("*.pyx"))}


def write_syscall_names() -> None:
    """Write the names of all system calls that the C library's headers know, for `datapath/syscall_numbers`."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    macros = subprocess.run(
        [*compiler, "-E", "-dM", "-x", "c", "-"],
        input="#include <sys/syscall.h>\n",
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    text = "".join(f"CALL({name})\n" for name in sorted(re.findall(r"^#define SYS_(\w+) ", macros, re.MULTILINE)))
    header = GENERATED / "syscall_names.h"
    if not header.exists() or header.read_text() != text:
        GENERATED.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


class ParallelBuildExt(build_ext):
    """Compile the extensions side by side."""

    def build_extensions(self) -> None:
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()


write_syscall_names()
setup(
    cmdclass={"build_ext": ParallelBuildExt},
    ext_modules=cythonize(
        [
            Extension(
                name,
                [str(path)],
                include_dirs=[str(GENERATED)],
                # A target is not what is looked for faults in
                extra_compile_args=TARGET_CFLAGS if BUILD == "fuzz" and name.startswith("fuzz_") else CFLAGS,
                extra_link_args=CFLAGS if BUILD == "asan" else [],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if BUILD == "coverage" else [],
            )
            for name, path in SOURCES.items()
        ],
        # Cython.Coverage wants the C beside its source; otherwise src/ stays clean.
        build_dir=None if BUILD == "coverage" else f"build/cython-{BUILD}",
        include_path=["src"],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": BUILD != "release",
            "initializedcheck": BUILD != "release",
            "wraparound": False,
            "cdivision": True,
            "linetrace": BUILD == "coverage",
        },
    ),
)
