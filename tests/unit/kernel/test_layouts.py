"""Structures are laid out for Python as the C compiler lays them out."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

import castore.kernel
from castore.kernel import build_ffi, dir_entries, dir_listing, ffi, lib

MIRRORED = {
    "scan_entry": dir_listing._ENTRY,
    "scan_record": dir_listing._RECORD,
    "scan_change": dir_listing._CHANGE,
    "entry_place": dir_entries._PLACE,
    "entry_ids": dir_entries._IDS,
}


@pytest.mark.parametrize("name", MIRRORED)
def test_a_mirrored_structure_has_the_layout_of_the_compiler(name: str) -> None:
    layout, made = MIRRORED[name], ffi.typeof(f"struct {name}")
    assert layout.size == ffi.sizeof(made)
    codes = re.findall(r"\d*[A-Za-z]", layout.format.lstrip("<"))
    codes = [one[-1] for one in codes for _ in range(1 if one[-1] == "s" else int(one[:-1] or 1))]
    fields = [(offset.offset, ffi.sizeof(offset.type)) for _, offset in made.fields]
    at = 0
    for code, (offset, size) in zip(codes, fields, strict=True):
        length = 96 if code == "s" else struct.calcsize(code)
        assert (at, length) == (offset, size)
        at += length


def test_constants_of_layouts_are_those_of_the_headers() -> None:
    from castore.kernel.index_rows import BASE_ROW, COPY, FIRST, ROW

    assert (ROW, BASE_ROW) == (lib.ROW_LEN, lib.ROW_KEY + 4 + 32 * lib.ROW_BASES)
    assert (FIRST, COPY) == (32 + lib.ROW_PLACE, 32 + 4 + lib.ROW_PLACE)
    assert lib.SKETCH_SUPER == castore.kernel._FEATURES


def test_the_compiler_lays_out_every_structure_as_python_does(tmp_path: Path) -> None:
    folder = Path(castore.kernel.__file__).parent
    lines = ["#include <stddef.h>", *(f'#include "{name}.h"' for name in build_ffi.NAMES)]
    structures = sorted(ffi.list_types()[1])
    assert {"cut_rule", "scan_record", "rows"} <= set(structures)
    for name in structures:
        made = ffi.typeof(f"struct {name}")
        lines.append(f'_Static_assert(sizeof(struct {name}) == {ffi.sizeof(made)}, "{name}");')
        for field, at in made.fields:
            place = f"offsetof(struct {name}, {field}) == {at.offset}"
            size = f"sizeof(((struct {name} *)0)->{field}) == {ffi.sizeof(at.type)}"
            lines.append(f'_Static_assert({place} && {size}, "{name}.{field}");')
    (tmp_path / "layouts.c").write_text("\n".join(lines) + "\n")
    command = ["cc", "-std=c11", "-fsyntax-only", f"-I{folder}", tmp_path / "layouts.c"]
    subprocess.run(command, check=True)


def test_every_header_is_declared_or_internal() -> None:
    headers = {path.name for path in Path(castore.kernel.__file__).parent.glob("*.h")}
    assert headers == {*(f"{name}.h" for name in build_ffi.NAMES), "gear.h", "ids.h", "listed_file.h"}


def test_every_declared_function_is_in_the_library() -> None:
    functions = [name for name in dir(lib) if name.islower()]
    assert len(functions) > 20
    for name in functions:
        assert ffi.typeof(getattr(lib, name)).kind == "function"


def test_one_library_serves_all_versions_of_python() -> None:
    (path,) = Path(castore.kernel.__file__).parent.glob("*.so")
    assert path.name == "_kernel.abi3.so"
    assert b"Py" not in path.read_bytes()
