"""The kernel is built with the compiler's and the linker's protections."""

from __future__ import annotations

import struct
from pathlib import Path

import castore.kernel

DYNAMIC, GNU_RELRO = 2, 0x6474E552  # types of segments
STRTAB, SYMTAB, BIND_NOW, FLAGS, FLAGS_1 = 5, 6, 24, 30, 0x6FFFFFFB  # tags of the dynamic section


class Library:
    """The segments and the dynamic section of an ELF file of 64 bits."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        assert data[:5] == b"\x7fELF\x02"
        order = "<" if data[5] == 1 else ">"
        start, size, count = *struct.unpack_from(order + "32xQ", data), *struct.unpack_from(order + "54xHH", data)
        self.segments = {}
        for at in range(start, start + size * count, size):
            kind, flags, offset, _, _, length = struct.unpack_from(order + "IIQQQQ", data, at)
            self.segments[kind] = flags, data[offset : offset + length]
        self.tags = dict(struct.iter_unpack(order + "QQ", self.segments[DYNAMIC][1]))
        self.data = data


def test_the_kernel_is_built_with_protections():
    (path,) = Path(castore.kernel.__file__).parent.glob("_kernel*.so")
    library = Library(path)
    assert b"\0__stack_chk_fail\0" in library.data, "without -fstack-protector-strong"
    assert GNU_RELRO in library.segments
    now = BIND_NOW in library.tags or library.tags.get(FLAGS, 0) & 8 or library.tags.get(FLAGS_1, 0) & 1
    assert now, "without -z now"


def test_the_kernel_s_stack_is_not_executable():
    (path,) = Path(castore.kernel.__file__).parent.glob("_kernel*.so")
    flags, _ = Library(path).segments[0x6474E551]
    assert not flags & 1
