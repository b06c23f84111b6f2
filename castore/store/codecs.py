"""How the plaintext of a record is written shorter: compressed, or as what differs from its bases."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import zstandard

from castore.errors import DamageError
from castore.kernel import apply_deltas
from castore.store.pack import DELTA, DELTA_PAIR, DICTIONARY, RAW, ZSTD

if TYPE_CHECKING:
    from collections.abc import Sequence

_PARAMETERS: Final = zstandard.ZstdCompressionParameters(
    window_log=18,
    chain_log=16,
    hash_log=16,
    search_log=1,
    min_match=6,
    strategy=zstandard.STRATEGY_DFAST,
    write_content_size=1,
)
"""For chunks: level 3 but for matches of at least 6 bytes. In chunks of 256 KiB that is 4 to 20 % smaller
and half as fast again for SQL dumps, 1 to 3 % larger for source text and SQLite files.
"""
_DELTA_LEVEL: Final = 3


class Codecs:
    """Encodes and decodes; safe to share between threads: each has contexts of its own.

    They cost more to make than to use.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def compress(self, plain: memoryview | bytes) -> tuple[int, bytes | memoryview]:
        """Return the codec and what is to be sealed: compressed only if that saves over 1/32."""
        # zstd gives up on incompressible data by itself, and passes it at 4 to 6 GB/s.
        data = self._compressor().compress(plain)
        length = len(plain)
        if length - len(data) > length >> 5:
            return ZSTD, data
        return RAW, plain

    def compress_delta(self, raw: bytes) -> bytes:
        """Return a delta as a record of codec DELTA or DELTA_PAIR holds it."""
        found: zstandard.ZstdCompressor | None = getattr(self._local, "delta_compressor", None)
        if found is None:
            found = self._local.delta_compressor = zstandard.ZstdCompressor(level=_DELTA_LEVEL)
        return found.compress(raw)

    def decompress(self, codec: int, data: bytes, length: int, bases: Sequence[bytes]) -> bytes:
        """Return the `length` bytes that `data` stands for. Raises DamageError."""
        if codec == RAW:
            return data
        try:
            if codec in {DELTA, DELTA_PAIR}:
                return self.apply(b"".join(bases), [(self.delta(data, length), length)])
            told = zstandard.frame_content_size(data)
            if told not in {-1, length}:
                raise DamageError(f"its frame has {told} bytes instead of {length}")
            decompressor = self._decompressor()
            if codec == DICTIONARY:
                words = zstandard.ZstdCompressionDict(
                    bases[0], dict_type=zstandard.DICT_TYPE_RAWCONTENT
                )
                decompressor = zstandard.ZstdDecompressor(dict_data=words)
            found: bytes = decompressor.decompress(data, max_output_size=length)
        except zstandard.ZstdError as error:
            raise DamageError(f"it does not decompress: {error}") from None
        return found

    def delta(self, data: bytes, length: int) -> bytes:
        """Return the delta that a record of codec DELTA or DELTA_PAIR holds. Raises DamageError."""
        try:
            raw: bytes = self._decompressor().decompress(data, max_output_size=2 * length + 64)
        except zstandard.ZstdError as error:
            raise DamageError(f"it does not decompress: {error}") from None
        return raw

    @staticmethod
    def apply(base: bytes, deltas: list[tuple[bytes, int]]) -> bytes:
        """Return what a chain of deltas, the lowest first, makes of a base. Raises DamageError."""
        plain = apply_deltas(base, deltas)
        if plain is None:
            raise DamageError("it is no delta of its base")
        return plain

    def _compressor(self) -> zstandard.ZstdCompressor:
        found: zstandard.ZstdCompressor | None = getattr(self._local, "compressor", None)
        if found is None:
            found = self._local.compressor = zstandard.ZstdCompressor(compression_params=_PARAMETERS)
        return found

    def _decompressor(self) -> zstandard.ZstdDecompressor:
        found: zstandard.ZstdDecompressor | None = getattr(self._local, "decompressor", None)
        if found is None:
            found = self._local.decompressor = zstandard.ZstdDecompressor()
        return found
