"""Build of the load generators, in place: `python setup.py build_ext --inplace`, from this folder."""

from Cython.Build import cythonize
from setuptools import Extension, setup

setup(
    name="bucatini-bench",
    ext_modules=cythonize([Extension("load", ["load.pyx"], extra_compile_args=["-O2"])], build_dir="../build/bench"),
)
