"""Spare castore's own process imports of other packages that it does not need: a fifth of a short command.

Only `castore.__main__` calls this: castore as a library changes no module of the process.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Inspect(ModuleType):
    """The module `inspect`, imported when a name is used that is not here.

    click calls one function of it for each option; the module imports the parser and disassembler of Python.
    """

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get("inspect") is self:
            del sys.modules["inspect"]
        import inspect

        self.__dict__.update(inspect.__dict__)
        return getattr(inspect, name)


def defer_inspect() -> None:
    """Let `import inspect` import the module only when more of it is used than `cleandoc`."""
    if "inspect" not in sys.modules:
        module = _Inspect("inspect")
        module.__dict__["cleandoc"] = cleandoc
        sys.modules["inspect"] = module


def cleandoc(doc: str) -> str:
    """Return a text without the common indent of its lines after the first, as `inspect.cleandoc` does."""
    first, *rest = doc.expandtabs().split("\n")
    margin = min((len(line) - len(line.lstrip()) for line in rest if line.lstrip()), default=0)
    return "\n".join([first.lstrip(), *(line[margin:] for line in rest)]).strip("\n")


def import_msgspec() -> None:
    """Import msgspec without `typing_extensions`, which it needs for versions of Python before 3.11 only."""
    if "msgspec" in sys.modules or "typing_extensions" in sys.modules:
        return
    sys.modules["typing_extensions"] = None  # type: ignore[assignment]  # importing it fails, as documented
    try:
        import msgspec  # noqa: F401
    except ImportError:
        pass  # a version that cannot do without: the next import of it succeeds
    finally:
        del sys.modules["typing_extensions"]
