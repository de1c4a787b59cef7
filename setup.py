"""Builds the native extension; everything else about the package stands in pyproject.toml."""

from glob import glob

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup

# No -march: the baseline of the platform is built, and each SIMD file opens its own target region. No contraction of
# a * b + c: it would make the same expression round differently inside and outside those regions.
FLAGS = ["-O3", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra"]

ParallelCompile("VQDISTILL_BUILD_JOBS", default=2).install()
setup(
    ext_modules=[
        Pybind11Extension(
            "vqdistill._native",
            sorted(glob("csrc/*.cpp")),
            depends=sorted(glob("csrc/*.h")),
            cxx_std=17,
            extra_compile_args=FLAGS,
        )
    ]
)
