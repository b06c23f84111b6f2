"""Generate the module `_ffi`, which declares the kernel's C functions to cffi, from the kernel's headers.

tools/build_backend.py runs this when castore is built. The module is Python: to build castore one needs a C
compiler, but not Python's headers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import cffi

NAMES: Final = (
    *("chunker", "delta", "small_streams", "dir_entries", "dir_listing", "dir_compare"),
    *("id_set", "index_rows", "sketch"),
)
_FOLDER: Final = Path(__file__).parent
_CONSTANT: Final = re.compile(r"#define \w+ (?:0x)?[0-9]+u?$")


def declarations(header: str) -> str:
    """Return what a header declares, without comments and without what only the preprocessor reads."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if not line.startswith("#") or _CONSTANT.fullmatch(line))


def generate() -> None:
    """Write `_ffi.py` next to this file, unless it is up to date."""
    builder = cffi.FFI()
    for name in NAMES:
        builder.cdef(declarations((_FOLDER / f"{name}.h").read_text(encoding="ascii")))
    builder.set_source("_ffi", None)
    builder.emit_python_code(str(_FOLDER / "_ffi.py"))
