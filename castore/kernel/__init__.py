"""C11 hot loops without policy: buffers in, offsets out, the GIL released.

The library is plain C without Python's headers, built by the package's build and
called through ctypes, which releases the GIL around every call.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from typing import Final

_WINDOW: Final = 64


def _load() -> ctypes.CDLL:
    here = os.path.dirname(__file__)
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = os.path.join(here, "_kernel" + suffix)
        if os.path.exists(path):
            return ctypes.CDLL(path)
    raise ImportError(
        f"castore's C kernel is not built: no _kernel{importlib.machinery.EXTENSION_SUFFIXES[0]} "
        f"in {here}; install castore with pip, which needs a C compiler"
    )


_lib = _load()


class _Rule(ctypes.Structure):
    """struct cut_rule of cut.h."""

    _fields_ = (
        ("early", ctypes.c_uint64),
        ("late", ctypes.c_uint64),
        ("min", ctypes.c_uint32),
        ("normal", ctypes.c_uint32),
        ("max", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
        ("gear", ctypes.c_uint64 * 256),
    )


_cut_scan = _lib.cut_scan
_cut_scan.restype = ctypes.c_size_t
_cut_scan.argtypes = [
    ctypes.POINTER(_Rule),
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_size_t,
]


class Cutter:
    """The rule that divides a stream into chunks; safe to share between threads.

    gear: 2048 bytes, 256 little-endian words, secret.
    average: the mean chunk length to aim for, in bytes. No chunk but a stream's last is
    shorter than a quarter of it, none is longer than eight times it.
    """

    def __init__(self, gear: bytes, average: int) -> None:
        if len(gear) != 2048:
            raise ValueError(f"a gear table has 2048 bytes, not {len(gear)}")
        if not 4 * _WINDOW <= average <= 1 << 24:
            raise ValueError(f"an average chunk has 256 bytes to 16 MiB, not {average}")
        self.average = average
        self.min = average // 4
        self.max = average * 8
        # The chance of a border at each byte is 1/(4 average) before `normal` and 4/average
        # behind it; `normal` is where the mean of random data comes out at `average`
        # (0.99 to 1.01 of it, measured on 256 MiB of random bytes, averages of 4 KiB to 256 KiB).
        self.normal = average - average // 6
        self.early = (1 << 64) // (4 * average)
        self.late = (1 << 64) // average * 4
        self._rule = _Rule(
            self.early,
            self.late,
            self.min,
            self.normal,
            self.max,
            0,
            (ctypes.c_uint64 * 256).from_buffer_copy(gear),
        )

    def scan(self, buffer: bytearray, start: int, end: int, *, final: bool) -> list[int]:
        """Cut buffer[start:end], which begins at a border; return the offset behind each chunk.

        Unless this is the stream's `final` stretch, the bytes behind the last offset belong to a
        chunk that goes on: give them again, followed by more. How a stream is split over calls
        does not change where it is cut.
        """
        if not 0 <= start <= end <= len(buffer):
            raise ValueError(f"no stretch {start} to {end} in a buffer of {len(buffer)} bytes")
        length = end - start
        room = length // self.min + 1
        ends = (ctypes.c_uint32 * room)()
        view = (ctypes.c_char * length).from_buffer(buffer, start) if length else None
        count = _cut_scan(
            self._rule, ctypes.addressof(view) if view is not None else None, length, final, ends, room
        )
        return [start + offset for offset in ends[:count]]


def padme(length: int) -> int:
    """The padded length of an object of `length` bytes by the Padmé rule.

    It keeps the top bits of a length and rounds the rest up, so that O(log log length) bits
    of it are told, for at most 12 % more bytes (Nikitin et al., PETS 2019).
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    kept = exponent.bit_length()
    mask = (1 << max(exponent - kept, 0)) - 1
    return (length + mask) & ~mask
