"""Declare the kernel's C functions to cffi, from its headers; setup.py builds the module `_ffi` with this.

The compiler checks every structure and every function that the headers declare.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import cffi

NAMES: Final = ("chunker", "delta", "dir_entries", "dir_listing", "id_set", "index_rows", "sketch")
_INTERNAL: Final = ("gear.h", "ids.h")
_FOLDER: Final = Path(__file__).parent
_CONSTANT: Final = re.compile(r"#define \w+ (?:0x)?[0-9]+u?$")


def declarations(header: str) -> str:
    """Return what a header declares, without comments and without what only the preprocessor reads."""
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    lines = (line.rstrip() for line in text.splitlines())
    return "\n".join(line for line in lines if not line.startswith("#") or _CONSTANT.fullmatch(line))


def builder(folder: str = "castore/kernel") -> Any:
    """Return the builder of the module. folder: of the sources, as the compiler is to see them."""
    made = cffi.FFI()
    for name in NAMES:
        made.cdef(declarations((_FOLDER / f"{name}.h").read_text(encoding="ascii")))
    made.set_source(
        "castore.kernel._ffi",
        "".join(f'#include "{name}.h"\n' for name in NAMES),
        sources=[f"{folder}/{name}.c" for name in NAMES],
        depends=[f"{folder}/{name}" for name in (*_INTERNAL, *(f"{one}.h" for one in NAMES))],
        include_dirs=[folder],
        extra_compile_args=[
            *("-std=c11", "-O3", "-Wall", "-Wextra", "-Werror=implicit", "-fvisibility=hidden"),
            # The code that cffi generates has parameters and initializers that are not used.
            *("-Wno-unused-parameter", "-Wno-missing-field-initializers"),
            # The kernel reads bytes of untrusted stores. Python's own flags may set another level.
            *("-fno-strict-overflow", "-fstack-protector-strong", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=3"),
        ],
        extra_link_args=["-Wl,-z,relro,-z,now"],
    )
    return made


ffi: Final = builder()
