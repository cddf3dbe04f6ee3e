"""Build of what is compiled: the packet path, and the benchmark's instruments.

BUCATINI_BUILD: release (default), debug, coverage or asan.
"""

import os
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
}[BUILD] + ["-Wall", "-Wno-unused-function"]
SOURCES = sorted(Path("src/bucatini").glob("*/*.pyx"))


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
                ".".join(path.with_suffix("").parts[1:]),
                [str(path)],
                extra_compile_args=CFLAGS,
                extra_link_args=CFLAGS if BUILD == "asan" else [],
                define_macros=[("CYTHON_TRACE_NOGIL", "1")] if BUILD == "coverage" else [],
            )
            for path in SOURCES
        ],
        # Cython.Coverage wants the C beside its source; otherwise src/ stays clean.
        build_dir=None if BUILD == "coverage" else f"build/cython-{BUILD}",
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
