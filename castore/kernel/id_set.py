"""A set for very many ids: it stores hashes of 8 bytes, and takes 12 to 16 bytes per id."""

from __future__ import annotations

import ctypes
import mmap
from typing import Final

from castore.kernel import _ADDRESS, _ID_SEED, _SIZE, _U64, _address, _function, _new_bytes

_LEAST: Final = 1 << 10
_marks_add: Final = _function(
    "marks_add", _SIZE, _ADDRESS, _U64, _ADDRESS, ctypes.c_char_p, _SIZE, _SIZE, ctypes.c_char_p
)
_marks_find: Final = _function(
    "marks_find", None, _ADDRESS, _U64, _ADDRESS, ctypes.c_char_p, _SIZE, _SIZE, ctypes.c_char_p
)
_marks_move: Final = _function("marks_move", None, _ADDRESS, _U64, _ADDRESS, _U64)


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
        count = len(ids) // stride
        if self._count + count > self._slots - self._slots // 8:
            self._grow(self._count + count)
        flags: bytes = _new_bytes(None, count)
        table, held = _address(self._table, 0, len(self._table))
        self._count += _marks_add(table, self._slots, _ID_SEED, ids, stride, count, flags)
        del held
        return flags

    def find(self, ids: bytes, stride: int = 32) -> bytes:
        """Look up ids, one every `stride` bytes; return a byte for each: 1 if it is marked, else 0."""
        count = len(ids) // stride
        flags: bytes = _new_bytes(None, count)
        table, held = _address(self._table, 0, len(self._table))
        _marks_find(table, self._slots, _ID_SEED, ids, stride, count, flags)
        del held
        return flags

    def __contains__(self, record_id: bytes) -> bool:
        return self.find(record_id) == b"\1"

    def _grow(self, count: int) -> None:
        slots = max(2 * self._slots, count + count // 2)
        table = mmap.mmap(-1, 8 * slots)
        old, held = _address(self._table, 0, len(self._table))
        new, also = _address(table, 0, len(table))
        _marks_move(old, self._slots, new, slots)
        del held, also
        self._table.close()
        self._table, self._slots = table, slots
