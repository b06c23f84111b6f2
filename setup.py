"""Build the kernel with cffi; pyproject.toml has everything else."""

from setuptools import setup

setup(
    cffi_modules=["castore/kernel/build_ffi.py:ffi"],
    # The module uses Python's stable ABI: one wheel serves Python 3.11 and all later versions.
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
