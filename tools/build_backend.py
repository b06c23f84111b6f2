"""The build backend: that of setuptools, which first generates castore/kernel/_ffi.py from the C headers."""

import importlib.util
from pathlib import Path

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the other hooks of PEP 517 and PEP 660

_GENERATOR = Path(__file__).parents[1] / "castore" / "kernel" / "build_ffi.py"


def _generate():
    spec = importlib.util.spec_from_file_location("build_ffi", _GENERATOR)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate()


def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    """Build a wheel; return its name."""
    _generate()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    """Build the wheel of an editable installation; return its name."""
    _generate()
    return build_meta.build_editable(wheel_directory, config_settings, metadata_directory)


def build_sdist(sdist_directory, config_settings=None):
    """Build a source archive; return its name."""
    _generate()
    return build_meta.build_sdist(sdist_directory, config_settings)
