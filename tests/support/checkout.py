"""This checkout: where it is, and its modules."""

from __future__ import annotations

import gc
import importlib
import pkgutil
import re
from pathlib import Path

import castore
from castore import deferred

ROOT = Path(__file__).parents[2]


def import_all_modules() -> None:
    """Import every module of castore."""
    for module in pkgutil.walk_packages(castore.__path__, "castore."):
        # The kernel's library is no module of Python.
        if not module.name.endswith((".__main__", "._kernel")):
            importlib.import_module(module.name)


def complete_definitions() -> None:
    """Do what the modules that are loaded defer to its first use, for processes that are forked from this one."""
    definitions = vars(deferred)
    for each in list(definitions["_pending"]):
        definitions["_complete"](each)
    for each in gc.get_objects():
        if type(each) is definitions["pattern"]:
            re.compile(*vars(each)["_arguments"])  # kept by the module re
