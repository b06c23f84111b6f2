"""Structures that Python packs and unpacks itself are laid out as the compiler lays them out."""

from __future__ import annotations

import re
import struct
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


def test_every_header_is_declared_or_internal() -> None:
    headers = {path.name for path in Path(castore.kernel.__file__).parent.glob("*.h")}
    assert headers == {f"{name}.h" for name in build_ffi.NAMES} | set(build_ffi._INTERNAL)


def test_the_module_has_the_stable_abi() -> None:
    (path,) = Path(castore.kernel.__file__).parent.glob("_ffi*.so")
    assert path.name == "_ffi.abi3.so"
