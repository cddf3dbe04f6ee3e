"""Build of what is compiled: the packet path, and the benchmark's instruments.

BUCATINI_BUILD: release (default), debug, coverage, asan or fuzz (by clang, for libFuzzer).
"""

import os
import sys
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
TARGET_CFLAGS = ["-O2", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
SOURCES = {".".join(path.with_suffix("").parts[1:]): path for path in sorted(Path("src/bucatini").glob("*/*.pyx"))}
if {"build", "build_ext"} & set(sys.argv):  # make's commands, not a package's: what the fuzz targets are made of
    SOURCES |= {f"fuzz_{path.stem}": path for path in sorted(Path("tests/fuzz").glob("*.pyx"))}


class ParallelBuildExt(build_ext):
    """Compile the extensions side by side."""

    def build_extensions(self) -> None:
        self.parallel = self.parallel or os.cpu_count()
        super().build_extensions()


setup(
    cmdclass={"build_ext": ParallelBuildExt},
    ext_modules=cythonize(
        [
            Extension(
                name,
                [str(path)],
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
