"""Which ids of very many were met: a set of hashes of 8 bytes, in 12 to 16 bytes an id."""

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


class Marks:
    """A set of 32-byte ids, from which nothing is taken away. For one thread.

    Ids are known by a hash of 8 bytes under a random factor of the process. Two ids have the same hash once
    in many billions, and nobody can choose such ids; marking one then marks both: callers must not mind that
    an id is reported as marked that is not.
    """

    def __init__(self, expected: int = 0) -> None:
        self._count = 0
        self._slots = max(expected + expected // 2, _LEAST)
        self._table = mmap.mmap(-1, 8 * self._slots)

    def __len__(self) -> int:
        return self._count

    @property
    def memory(self) -> int:
        """How many bytes it takes."""
        return len(self._table)

    def add(self, ids: bytes, stride: int = 32) -> bytes:
        """Mark ids, one every `stride` bytes; return a byte for each: 1 where it was not marked before."""
        count = len(ids) // stride
        if self._count + count > self._slots - self._slots // 8:
            self._grow(self._count + count)
        told: bytes = _new_bytes(None, count)
        table, held = _address(self._table, 0, len(self._table))
        self._count += _marks_add(table, self._slots, _ID_SEED, ids, stride, count, told)
        del held
        return told

    def find(self, ids: bytes, stride: int = 32) -> bytes:
        """Return a byte for each id, one every `stride` bytes: 1 where it is marked."""
        count = len(ids) // stride
        told: bytes = _new_bytes(None, count)
        table, held = _address(self._table, 0, len(self._table))
        _marks_find(table, self._slots, _ID_SEED, ids, stride, count, told)
        del held
        return told

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
