"""Bindings of the C kernel: hot loops without policy, which take buffers and return offsets.

The kernel is a plain shared library in C11, `_kernel`. The module `_ffi` declares it to cffi and is generated
from its headers (see `build_ffi`), so that there is one definition of each structure. The GIL is released
during every call. A small call takes 1.1 us, through ctypes 1.8 us. cffi's API mode (0.5 us) would need
Python's headers to build castore.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import struct
import threading
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

_LIBRARY: Final = os.path.join(os.path.dirname(__file__), "_kernel.abi3.so")

try:
    # By its name: linters see no source of this module.
    _module: Any = importlib.import_module("castore.kernel._ffi")
    ffi: Final = _module.ffi
    """Makes and converts values of C."""
    lib: Final = ffi.dlopen(_LIBRARY)
    """The functions and constants of the kernel's headers."""
except (ImportError, OSError) as error:
    raise ImportError(
        f"its C kernel is not built ({error}): install castore with pip, which needs a C compiler (on "
        "Debian: apt-get install gcc libc6-dev)"
    ) from error

if TYPE_CHECKING:
    from array import array
    from collections.abc import Sequence
    from mmap import mmap

    Readable = bytes | bytearray | memoryview | mmap | array[int]

_WINDOW: Final = 64
_RANDOM_BYTES: Final = 32
ID_SEED: Final = ffi.new("uint64_t[4]", struct.unpack("<4Q", os.urandom(_RANDOM_BYTES)))
"""The random seed with which this process hashes ids for hash tables: see ids.h."""
TOO_MANY: Final = int(ffi.cast("size_t", -1))
"""What functions of the kernel return if there is not enough room."""

# Without ctypes, each result that the kernel writes would have to be copied, or filled with zeros before.
new_bytes: Final = ctypes.pythonapi.PyBytes_FromStringAndSize
"""Return a new bytes object, which may be written in place while nothing else refers to it (C API)."""
new_bytes.restype, new_bytes.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_ssize_t)


def view_of(buffer: Readable, kind: str = "uint8_t[]") -> Any:
    """Return the memory of a buffer as a C array. It pins the buffer while it is referenced."""
    if not isinstance(buffer, memoryview):
        return ffi.from_buffer(kind, buffer)
    # The garbage collector of Python before 3.11.8 and 3.12.2 crashes if it breaks a reference cycle with a
    # memoryview that is pinned (cpython issue 77894). So the object that it is a view of is pinned instead.
    with ffi.from_buffer("uint8_t[]", buffer) as view:
        start = ffi.cast(kind.replace("[]", " *"), view)
    owner = ffi.from_buffer(buffer.obj)
    return ffi.gc(start, lambda _start: owner)


def _range_of(buffer: bytearray | mmap, start: int, end: int) -> Any:
    """Return `view_of` a buffer. Raises ValueError if start and end are not a range of the buffer."""
    if not 0 <= start <= end <= len(buffer):
        raise ValueError(f"a buffer of {len(buffer)} bytes has no range {start} to {end}")
    return view_of(buffer)


class Borders:
    """The positions at which chunks of a stretch may end, found before it is known where they begin."""

    def __init__(self, rule: Any, minimum: int, hits: Any, count: int) -> None:
        self._rule = rule
        self._minimum = minimum
        self._hits = hits
        self._count = count
        self._next = ffi.new("size_t *")

    def choose(self, start: int, end: int, *, final: bool) -> list[int]:
        """Return the end offset of each chunk of [start, end), as Cutter.scan does.

        The caller must ask for stretches in ascending order.
        """
        room = (end - start) // self._minimum + 1
        ends = ffi.new("uint32_t[]", room)
        count = lib.cut_choose(
            self._rule, self._hits, self._count, self._next, start, end, final, ends, room
        )
        found: list[int] = ffi.unpack(ends, count)
        return found


class CutLimits(NamedTuple):
    """The limits of a cutter with the same rule for all lengths: what other programs use, to compare them."""

    minimum: int
    """Bytes: only the last chunk of a stream may be shorter."""
    maximum: int
    period: int
    """Between these limits, one in this number of bytes is a border, on average."""


class Cutter:
    """The rule that divides a stream into chunks; safe to share between threads.

    gear: 2048 secret bytes, which are 256 little-endian words.
    average: the intended mean length of chunks, in bytes. Only the last chunk of a stream may be shorter
    than a quarter of it; no chunk is longer than eight times it. limits: replace what follows from average.
    """

    def __init__(self, gear: bytes, average: int, limits: CutLimits | None = None) -> None:
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
        if limits is not None:
            if not _WINDOW <= limits.minimum < limits.maximum <= 1 << 27:
                raise ValueError(f"these limits are out of order, or too small or large: {limits}")
            self.min = self.normal = limits.minimum
            self.max = limits.maximum
            self.early = self.late = (1 << 64) // limits.period
        self._rule = ffi.new(
            "struct cut_rule *",
            {
                "early": self.early,
                "late": self.late,
                "min": self.min,
                "normal": self.normal,
                "max": self.max,
                "gear": struct.unpack("<256Q", gear),
            },
        )

    def scan(self, buffer: bytearray | mmap, start: int, end: int, *, final: bool) -> list[int]:
        """Cut buffer[start:end], which begins at a border; return the end offset of each chunk.

        Unless this is the `final` stretch of the stream, the bytes after the last offset belong to an
        incomplete chunk: pass them again, followed by more. How a stream is split over calls does not change
        where it is cut.
        """
        view = _range_of(buffer, start, end)
        length = end - start
        room = length // self.min + 1
        ends = ffi.new("uint32_t[]", room)
        count = lib.cut_scan(self._rule, view + start, length, final, ends, room)
        return [start + offset for offset in ffi.unpack(ends, count)]

    def find(self, buffer: bytearray | mmap, first: int, start: int, end: int) -> Borders | None:
        """Find the positions at which chunks of buffer[start:end] may end, wherever they begin.

        buffer[first:start] is the preceding part of the stream. Return None if there are too many positions,
        as in a run of one byte; the caller then uses `scan`.
        """
        view = _range_of(buffer, start, end)
        # Four positions per chunk are expected; unlucky content has more.
        room = min(lib.CUT_MAX_HITS, 1024 + 32 * ((end - start) // self.min))
        hits = ffi.new("uint32_t[]", room)
        count = lib.cut_find(self._rule, view, first, start, end, hits, room)
        return None if count == TOO_MANY else Borders(self._rule, self.min, hits, count)


Sketch = tuple[bytes, ...]
"""The three super-features of a chunk, four bytes each; empty if it is too short or too monotonous."""

_FEATURES: Final = lib.SKETCH_SUPER
_NO_FEATURE: Final = bytes(4)


class Sketcher:
    """Computes the sketches of chunks: similar chunks are likely to share a super-feature.

    gear: as for `Cutter`. key: 192 secret bytes: a sketch under a known key would reveal content.
    """

    def __init__(self, gear: bytes, key: bytes) -> None:
        if len(gear) != 2048 or len(key) != 192:
            raise ValueError(f"2048 and 192 bytes were expected, not {len(gear)}, {len(key)}")
        words = struct.unpack("<24Q", key)
        self._rule = ffi.new(
            "struct sketch_rule *",
            {
                "limit": 1 << 57,  # one position in 128
                "mul": [word | 1 for word in words[:12]],
                "add": words[12:],
                "gear": struct.unpack("<256Q", gear),
            },
        )

    def sketch(self, buffer: bytearray | mmap, spans: list[tuple[int, int]]) -> list[Sketch]:
        """Return the sketches of the chunks buffer[start:end] of `spans`."""
        flat = [border for span in spans for border in span]
        view = _range_of(buffer, min(flat, default=0), max(flat, default=0))
        out = ffi.new("uint32_t[]", _FEATURES * len(spans))
        lib.sketch_chunks(self._rule, view, ffi.new("uint32_t[]", flat), len(spans), out)
        features = struct.unpack("4s" * (_FEATURES * len(spans)), ffi.buffer(out))
        sketches = [features[at : at + _FEATURES] for at in range(0, len(features), _FEATURES)]
        return [() if _NO_FEATURE in sketch else sketch for sketch in sketches]


_DELTA_TABLE: Final = 4 << 18
"""Bytes of DELTA_TABLE words."""
_local: Final = threading.local()


def _scratch(length: int) -> Any:
    """Return this thread's scratch memory of at least `length` bytes: allocating costs more than a delta."""
    found = getattr(_local, "scratch", None)
    if found is None or len(found) < length:
        found = _local.scratch = ffi.new("uint8_t[]", max(length, 1 << 18))
    return found


def encode_delta(base: bytes, buffer: bytearray | mmap, start: int, end: int, room: int) -> bytes | None:
    """Encode buffer[start:end] as a delta of `base`; return None if it exceeds `room` bytes."""
    view = _range_of(buffer, start, end)
    scratch = _scratch(_DELTA_TABLE + room)
    table = ffi.cast("uint32_t *", scratch)
    out = scratch + _DELTA_TABLE
    length = lib.delta_encode(base, len(base), view + start, end - start, out, room, table)
    return ffi.buffer(out, length)[:] if length else None


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
    made: bytes = new_bytes(None, lengths[-1])
    views = [view_of(delta) for delta, _ in deltas]
    if lib.delta_apply_all(
        base,
        len(base),
        ffi.new("uint8_t *[]", views),
        ffi.new("size_t[]", [len(delta) for delta, _ in deltas]),
        ffi.new("size_t[]", lengths),
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
    lengths = ffi.new("uint32_t[]", list(map(len, deltas)))
    joined = b"".join(deltas)
    room = len(joined) + len(deltas)
    out = _scratch(4 * room)
    sizes = ffi.new("size_t[4]")
    if lib.delta_part(joined, lengths, len(deltas), out, room, sizes):
        raise ValueError("these are not deltas")
    return [ffi.buffer(out + room * i, size)[:] for i, size in enumerate(sizes)]


def join_deltas(streams: Sequence[bytes]) -> list[bytes] | None:
    """Rebuild the deltas of a group from its four streams; return None if they are not valid."""
    joined = b"".join(streams)
    out = _scratch(len(joined) + len(streams[0]))
    lengths = ffi.new("uint32_t[]", MAX_GROUP)
    count = lib.delta_join(joined, ffi.new("size_t[4]", list(map(len, streams))), out, lengths, MAX_GROUP)
    if count < 0:
        return None
    ends = list(accumulate(ffi.unpack(lengths, count), initial=0))
    return [ffi.buffer(out + start, end - start)[:] for start, end in pairwise(ends)]


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
