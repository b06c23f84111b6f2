"""Bindings of the C kernel: hot loops without policy, which take buffers and return offsets.

The library is plain C11 without Python's headers. The package's build compiles it, and ctypes calls it and
releases the GIL during every call.
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import struct
import threading
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Sequence
    from mmap import mmap

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


_U32: Final = ctypes.c_uint32
_U64: Final = ctypes.c_uint64
_SIZE: Final = ctypes.c_size_t
_ADDRESS: Final = ctypes.c_void_p

_ID_SEED: Final = (_U64 * 4)(*struct.unpack("<4Q", os.urandom(32)))
"""The random seed with which this process hashes ids for hash tables: see ids.h."""


class _Rule(ctypes.Structure):
    """struct cut_rule of chunker.h."""

    _fields_ = (
        ("early", _U64),
        ("late", _U64),
        ("min", _U32),
        ("normal", _U32),
        ("max", _U32),
        ("reserved", _U32),
        ("gear", _U64 * 256),
    )


class _SketchRule(ctypes.Structure):
    """struct sketch_rule of sketch.h."""

    _fields_ = (("limit", _U64), ("mul", _U64 * 12), ("add", _U64 * 12), ("gear", _U64 * 256))


def _function(name: str, result: Any, *arguments: Any) -> Any:
    found = getattr(_lib, name)
    found.restype, found.argtypes = result, arguments
    return found


_RULE: Final = ctypes.POINTER(_Rule)
_cut_scan: Final = _function(
    "cut_scan", _SIZE, _RULE, _ADDRESS, _SIZE, ctypes.c_int, _ADDRESS, _SIZE
)
_cut_find: Final = _function(
    "cut_find", _SIZE, _RULE, _ADDRESS, _SIZE, _SIZE, _SIZE, _ADDRESS, _SIZE
)
_cut_choose: Final = _function(
    "cut_choose",
    _SIZE,
    *(_RULE, _ADDRESS, _SIZE, ctypes.POINTER(_SIZE), _SIZE, _SIZE, ctypes.c_int, _ADDRESS, _SIZE),
)
_sketch_chunks: Final = _function(
    "sketch_chunks", None, ctypes.POINTER(_SketchRule), _ADDRESS, _ADDRESS, _SIZE, _ADDRESS
)
_delta_encode: Final = _function(
    "delta_encode", _SIZE, ctypes.c_char_p, _SIZE, _ADDRESS, _SIZE, _ADDRESS, _SIZE, _ADDRESS
)
_DELTA_TABLE: Final = 4 << 18
_delta_apply_all: Final = _function(
    "delta_apply_all",
    ctypes.c_int,
    *(ctypes.c_char_p, _SIZE, _ADDRESS, _ADDRESS, _ADDRESS, _SIZE, _SIZE, _ADDRESS, ctypes.c_char_p),
)
_delta_part: Final = _function(
    "delta_part", ctypes.c_int, ctypes.c_char_p, _ADDRESS, _SIZE, _ADDRESS, _SIZE, _ADDRESS
)
_delta_join: Final = _function(
    "delta_join", ctypes.c_int, ctypes.c_char_p, _ADDRESS, _ADDRESS, _ADDRESS, _SIZE
)
_new_bytes: Final = ctypes.pythonapi.PyBytes_FromStringAndSize
_new_bytes.restype, _new_bytes.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)

_MAX_HITS: Final = 16384
_TOO_MANY: Final = _SIZE(-1).value


def _address(buffer: bytearray | mmap, start: int, end: int) -> tuple[int, Any]:
    """Return the address of a buffer, and an object that pins the buffer while it is referenced.

    Raises ValueError if start and end are not a range of the buffer.
    """
    if not 0 <= start <= end <= len(buffer):
        raise ValueError(f"a buffer of {len(buffer)} bytes has no range {start} to {end}")
    if not buffer:
        return 0, None
    view = ctypes.c_char.from_buffer(buffer)
    return ctypes.addressof(view), view


class Borders:
    """The positions at which chunks of a stretch may end, found before it is known where they begin."""

    def __init__(self, rule: _Rule, minimum: int, hits: Any, count: int) -> None:
        self._rule = rule
        self._minimum = minimum
        self._hits = hits
        self._count = count
        self._next = _SIZE(0)

    def choose(self, start: int, end: int, *, final: bool) -> list[int]:
        """Return the end offset of each chunk of [start, end), as Cutter.scan does.

        The caller must ask for stretches in ascending order.
        """
        room = (end - start) // self._minimum + 1
        ends = (_U32 * room)()
        count = _cut_choose(
            self._rule, self._hits, self._count, self._next, start, end, final, ends, room
        )
        return ends[:count]


class Cutter:
    """The rule that divides a stream into chunks; safe to share between threads.

    gear: 2048 secret bytes, which are 256 little-endian words.
    average: the intended mean length of chunks, in bytes. Only the last chunk of a stream may be shorter
    than a quarter of it; no chunk is longer than eight times it.
    """

    def __init__(self, gear: bytes, average: int) -> None:
        if len(gear) != 2048:
            raise ValueError(f"a gear table has 2048 bytes, not {len(gear)}")
        if not 4 * _WINDOW <= average <= 1 << 24:
            raise ValueError(f"an average chunk has 256 bytes to 16 MiB, not {average}")
        self.average = average
        self.min = average // 4
        self.max = average * 8
        # The probability of a border at each byte is 1/(4 average) before `normal` and 4/average
        # after it. `normal` is chosen so that the mean of random data is `average`
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
            (_U64 * 256).from_buffer_copy(gear),
        )

    def scan(self, buffer: bytearray | mmap, start: int, end: int, *, final: bool) -> list[int]:
        """Cut buffer[start:end], which begins at a border; return the end offset of each chunk.

        Unless this is the `final` stretch of the stream, the bytes after the last offset belong to an
        incomplete chunk: pass them again, followed by more. How a stream is split over calls does not change
        where it is cut.
        """
        base, held = _address(buffer, start, end)
        length = end - start
        room = length // self.min + 1
        ends = (_U32 * room)()
        count = _cut_scan(self._rule, base + start, length, final, ends, room)
        del held
        return [start + offset for offset in ends[:count]]

    def find(self, buffer: bytearray | mmap, first: int, start: int, end: int) -> Borders | None:
        """Find the positions at which chunks of buffer[start:end] may end, wherever they begin.

        buffer[first:start] is the preceding part of the stream. Return None if there are too many positions,
        as in a run of one byte; the caller then uses `scan`.
        """
        base, held = _address(buffer, start, end)
        # Four positions per chunk are expected; unlucky content has more.
        room = min(_MAX_HITS, 1024 + 32 * ((end - start) // self.min))
        hits = (_U32 * room)()
        count = _cut_find(self._rule, base, first, start, end, hits, room)
        del held
        return None if count == _TOO_MANY else Borders(self._rule, self.min, hits, count)


Sketch = tuple[bytes, ...]
"""The three super-features of a chunk, four bytes each; empty if it is too short or too monotonous."""

_FEATURES: Final = 3
_NO_FEATURE: Final = bytes(4)


class Sketcher:
    """Computes the sketches of chunks: similar chunks are likely to share a super-feature.

    gear: as for `Cutter`. key: 192 secret bytes: a sketch under a known key would reveal content.
    """

    def __init__(self, gear: bytes, key: bytes) -> None:
        if len(gear) != 2048 or len(key) != 192:
            raise ValueError(f"2048 and 192 bytes were expected, not {len(gear)}, {len(key)}")
        words = struct.unpack("<24Q", key)
        self._rule = _SketchRule(
            1 << 57,  # one position in 128
            (_U64 * 12)(*(word | 1 for word in words[:12])),
            (_U64 * 12)(*words[12:]),
            (_U64 * 256).from_buffer_copy(gear),
        )

    def sketch(self, buffer: bytearray | mmap, spans: list[tuple[int, int]]) -> list[Sketch]:
        """Return the sketches of the chunks buffer[start:end] of `spans`."""
        flat = [border for span in spans for border in span]
        base, held = _address(buffer, min(flat, default=0), max(flat, default=0))
        out = ctypes.create_string_buffer(4 * _FEATURES * len(spans))
        _sketch_chunks(self._rule, base, (_U32 * len(flat))(*flat), len(spans), out)
        del held
        features = struct.unpack("4s" * (_FEATURES * len(spans)), out.raw)
        sketches = [features[at : at + _FEATURES] for at in range(0, len(features), _FEATURES)]
        return [() if _NO_FEATURE in sketch else sketch for sketch in sketches]


_local: Final = threading.local()


def _scratch(length: int) -> Any:
    """Return this thread's scratch memory of at least `length` bytes: allocating costs more than a delta."""
    found = getattr(_local, "scratch", None)
    if found is None or len(found) < length:
        found = _local.scratch = ctypes.create_string_buffer(max(length, 1 << 18))
    return found


def encode_delta(base: bytes, buffer: bytearray | mmap, start: int, end: int, room: int) -> bytes | None:
    """Encode buffer[start:end] as a delta of `base`; return None if it exceeds `room` bytes."""
    address, held = _address(buffer, start, end)
    scratch = _scratch(_DELTA_TABLE + room)
    table = ctypes.addressof(scratch)
    out = table + _DELTA_TABLE
    length = _delta_encode(base, len(base), address + start, end - start, out, room, table)
    del held
    return ctypes.string_at(out, length) if length else None


def apply_delta(base: bytes, delta: bytes, length: int) -> bytes | None:
    """Apply a delta to `base`; return the `length` bytes, or None if it is not a valid delta of these."""
    return apply_deltas(base, [(delta, length)])


def apply_deltas(base: bytes, deltas: list[tuple[bytes, int]]) -> bytes | None:
    """Apply a chain of deltas: the first to `base`, each other to the result of the one before.

    deltas: (delta, length of its result). Return the last result, or None if a delta is not valid.
    """
    count = len(deltas)
    lengths = [length for _, length in deltas]
    longest = max(lengths)
    # A new bytes object may be written in place while it has no other reference (C API).
    made: bytes = _new_bytes(None, lengths[-1])
    if _delta_apply_all(
        base,
        len(base),
        (ctypes.c_char_p * count)(*(delta for delta, _ in deltas)),
        (_SIZE * count)(*(len(delta) for delta, _ in deltas)),
        (_SIZE * count)(*lengths),
        count,
        longest,
        _scratch(2 * longest if count > 1 else 0),
        made,
    ):
        return None
    return made


MAX_GROUP: Final = 255
"""The largest number of deltas in a group."""


def part_deltas(deltas: Sequence[bytes]) -> list[bytes]:
    """Divide deltas into the four streams of a group. Raises ValueError if one is not a delta."""
    lengths = (_U32 * len(deltas))(*map(len, deltas))
    joined = b"".join(deltas)
    room = len(joined) + len(deltas)
    out = _scratch(4 * room)
    sizes = (_SIZE * 4)()
    if _delta_part(joined, lengths, len(deltas), out, room, sizes):
        raise ValueError("these are not deltas")
    address = ctypes.addressof(out)
    return [ctypes.string_at(address + room * i, size) for i, size in enumerate(sizes)]


def join_deltas(streams: Sequence[bytes]) -> list[bytes] | None:
    """Rebuild the deltas of a group from its four streams; return None if they are not valid."""
    joined = b"".join(streams)
    out = _scratch(len(joined) + len(streams[0]))
    lengths = (_U32 * MAX_GROUP)()
    count = _delta_join(joined, (_SIZE * 4)(*map(len, streams)), out, lengths, MAX_GROUP)
    if count < 0:
        return None
    address = ctypes.addressof(out)
    ends = list(accumulate(lengths[:count], initial=0))
    return [ctypes.string_at(address + start, end - start) for start, end in pairwise(ends)]


def padme(length: int) -> int:
    """Return the padded length of an object of `length` bytes by the Padmé rule.

    It keeps the top bits of a length and rounds up the rest. So it reveals O(log log length) bits of the
    length, for at most 12 % more bytes (Nikitin et al., PETS 2019).
    """
    if length < 2:
        return length
    exponent = length.bit_length() - 1
    kept = exponent.bit_length()
    mask = (1 << max(exponent - kept, 0)) - 1
    return (length + mask) & ~mask
