"""This checkout: where it is, and its modules."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import castore

ROOT = Path(__file__).parents[2]


def import_all_modules() -> None:
    """Import every module of castore."""
    for module in pkgutil.walk_packages(castore.__path__, "castore."):
        # The kernel's library is no module of Python.
        if not module.name.endswith((".__main__", "._kernel")):
            importlib.import_module(module.name)
