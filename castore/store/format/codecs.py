"""Codecs of records: compress the plaintext, or a group of deltas."""

from __future__ import annotations

import itertools
import struct
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import zstandard

from castore.errors import DamageError
from castore.kernel import join_deltas, part_deltas
from castore.store.format.pack import MAX_PLAIN, RAW, ZSTD

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

_PARAMETERS: Final = zstandard.ZstdCompressionParameters(
    window_log=18,
    chain_log=16,
    hash_log=16,
    search_log=1,
    min_match=6,
    strategy=zstandard.STRATEGY_DFAST,
    write_content_size=1,
)
"""For chunks: level 3, but with matches of at least 6 bytes. For chunks of 256 KiB, output is 4 to 20 %
smaller and made 1.5 times as fast for SQL dumps, and 1 to 3 % larger for source text and SQLite files.
"""
_DELTA_LEVEL: Final = 6
"""Deltas are so few that this costs little: it saves 2.5 % over level 3; level 9 would save 1.3 % more."""
_GROUP: Final = struct.Struct("<III")
"""Lengths of the first three of the four frames of a group."""
_MAX_GROUP_BYTES: Final = MAX_PLAIN
"""Of all streams of a group. A full group may be a single delta, at most half as long as its chunk."""
_KEPT_BYTES: Final = 16 << 20


class Codecs:
    """Encodes and decodes records; safe to share between threads, each of which has its own contexts.

    Contexts are kept because creating one costs more than using it.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def compress(self, plain: memoryview | bytes) -> tuple[int, bytes | memoryview]:
        """Return the codec and the bytes to seal: compressed only if that saves more than 1/32."""
        # zstd itself gives up on incompressible data, and passes it through at 4 to 6 GB/s.
        data = self._compressor().compress(plain)
        length = len(plain)
        if length - len(data) > length >> 5:
            return ZSTD, data
        return RAW, plain

    def compress_group(self, deltas: Sequence[bytes]) -> bytes:
        """Return deltas, at most MAX_GROUP, encoded as one record that holds the group."""
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "delta_compressor", None)
        if compressor is None:
            compressor = self._local.delta_compressor = zstandard.ZstdCompressor(level=_DELTA_LEVEL)
        frames = [compressor.compress(stream) for stream in part_deltas(deltas)]
        return _GROUP.pack(*map(len, frames[:3])) + b"".join(frames)

    def group(self, data: bytes) -> list[bytes]:
        """Return the deltas of an encoded group. Raises DamageError."""
        if len(data) < _GROUP.size:
            raise DamageError("it is too short for a group of deltas")
        ends = [*itertools.accumulate(_GROUP.unpack_from(data), initial=_GROUP.size), len(data)]
        decompressor = self._decompressor()
        streams = []
        bytes_left = _MAX_GROUP_BYTES
        try:
            for start, end in itertools.pairwise(ends):
                frame = data[start:end]
                # The decompressor allocates what the frame claims, whatever is in it.
                claimed = zstandard.frame_content_size(frame)
                if not 0 <= claimed <= bytes_left:
                    raise DamageError("a group of deltas is longer than castore writes")
                bytes_left -= claimed
                streams.append(decompressor.decompress(frame))
        except zstandard.ZstdError as error:
            raise DamageError(f"a group of deltas does not decompress: {error}") from None
        deltas = join_deltas(streams)
        if deltas is None:
            raise DamageError("it is not a group of deltas")
        return deltas

    def plain(self, codec: int, data: bytes, length: int) -> bytes:
        """Return the content of a record that holds a chunk in full, or a node. Raises DamageError."""
        if codec == RAW:
            return data
        if length > MAX_PLAIN:
            raise DamageError(f"it has {length} bytes, more than a chunk can have")
        try:
            # The decompressor allocates what the frame claims, whatever is in it.
            claimed = zstandard.frame_content_size(data)
            if claimed < 0:
                raise DamageError("its frame does not say how many bytes it has")
            if claimed != length:
                raise DamageError(f"its frame has {claimed} bytes instead of {length}")
            plain: bytes = self._decompressor().decompress(data)
        except zstandard.ZstdError as error:
            raise DamageError(f"it does not decompress: {error}") from None
        return plain

    def _compressor(self) -> zstandard.ZstdCompressor:
        compressor: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if compressor is None:
            compressor = self._local.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        return compressor

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        decompressor: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if decompressor is None:
            decompressor = self._local.decompressor = zstandard.ZstdDecompressor()
        return decompressor


class Groups:
    """Keeps the most recently opened groups of deltas; safe to share between threads."""

    def __init__(self, codecs: Codecs) -> None:
        self._codecs = codecs
        self._lock = threading.Lock()
        # Threads that read ahead in one stream reach its next group at about the same time.
        self._opening = [threading.Lock() for _ in range(16)]
        self._kept: OrderedDict[Hashable, list[bytes]] = OrderedDict()
        self._kept_bytes = 0

    def get(self, key: Hashable) -> list[bytes] | None:
        """Return the deltas of a group if they are kept, else None."""
        with self._lock:
            deltas = self._kept.get(key)
            if deltas is not None:
                self._kept.move_to_end(key)
            return deltas

    def open(self, key: Hashable, data: Callable[[], bytes]) -> list[bytes]:
        """Return the deltas of a group: the kept ones, or else those decoded from `data()`, and keep them.

        Raises DamageError, and what `data` raises.
        """
        with self._opening[hash(key) % len(self._opening)]:
            deltas = self.get(key)
            if deltas is not None:
                return deltas
            deltas = self._codecs.group(data())
            with self._lock:
                self._kept[key] = deltas
                self._kept_bytes += _weight(deltas)
                while self._kept_bytes > _KEPT_BYTES and len(self._kept) > 1:
                    _, discarded = self._kept.popitem(last=False)
                    self._kept_bytes -= _weight(discarded)
            return deltas


def _weight(deltas: list[bytes]) -> int:
    return sum(map(len, deltas)) + 64 * len(deltas)


def member_of(deltas: Sequence[bytes], member: int) -> bytes:
    """Return one delta of a group. Raises DamageError."""
    if member >= len(deltas):
        raise DamageError(f"its group has {len(deltas)} deltas, and it should be number {member}")
    return deltas[member]
