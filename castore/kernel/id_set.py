"""A set for very many ids: it stores hashes of 8 bytes, and takes 12 to 16 bytes per id."""

from __future__ import annotations

import mmap
from typing import Any, Final

from castore.kernel import ID_SEED, lib, new_bytes, view_of

_LEAST: Final = 1 << 10


class IdSet:
    """A set of 32-byte ids that never shrinks. For use by one thread.

    Ids are stored as hashes of 8 bytes under a random seed of the process. Two ids have the same hash once in
    many billions, and an attacker cannot choose such ids. Marking one of them marks both: callers must accept
    that an id is rarely reported as marked although it is not.
    """

    def __init__(self, expected: int = 0) -> None:
        self._count = 0
        self._slots = max(expected + expected // 2, _LEAST)
        self._table = mmap.mmap(-1, 8 * self._slots)

    def __len__(self) -> int:
        return self._count

    @property
    def memory(self) -> int:
        """Bytes of memory that the set uses."""
        return len(self._table)

    def add(self, ids: bytes, stride: int = 32) -> bytes:
        """Mark ids, one every `stride` bytes; return a byte for each: 1 if it was new, else 0."""
        count = _count_ids(ids, stride)
        if self._count + count > self._slots - self._slots // 8:
            self._grow(self._count + count)
        flags: bytes = new_bytes(None, count)
        self._count += lib.marks_add(self._words(), self._slots, ID_SEED, ids, stride, count, flags)
        return flags

    def find(self, ids: bytes, stride: int = 32) -> bytes:
        """Look up ids, one every `stride` bytes; return a byte for each: 1 if it is marked, else 0."""
        count = _count_ids(ids, stride)
        flags: bytes = new_bytes(None, count)
        lib.marks_find(self._words(), self._slots, ID_SEED, ids, stride, count, flags)
        return flags

    def __contains__(self, record_id: bytes) -> bool:
        return self.find(record_id) == b"\1"

    def _words(self) -> Any:
        return view_of(self._table, "uint64_t[]")

    def _grow(self, count: int) -> None:
        slots = max(2 * self._slots, count + count // 2)
        table = mmap.mmap(-1, 8 * slots)
        lib.marks_move(self._words(), self._slots, view_of(table, "uint64_t[]"), slots)
        self._table.close()
        self._table, self._slots = table, slots


def _count_ids(ids: bytes, stride: int) -> int:
    """Return the number of ids. Raises ValueError if the kernel would read beyond the last one."""
    if stride < 32:
        raise ValueError(f"an id has 32 bytes, and not {stride}")
    return len(ids) // stride
