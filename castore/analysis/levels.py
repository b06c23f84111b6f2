"""What other levels of zstd would give, estimated from a sample of chunks."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

import zstandard

from castore.analysis.results import LevelFigures
from castore.store.format.codecs import Codecs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.analysis.census import Census

LEVELS: Final = range(1, 20)
SAMPLE_BYTES: Final = 8 << 20
"""At level 19, one thread compresses 3 to 5 MB/s."""
_FAST: Final = 12
"""Slower levels are compared with this one on a quarter of the sample, which takes as long as all of it."""
_LEAST: Final = 8
"""Chunks of a quarter, at least."""
_THREADS: Final = 2
_CONFIDENCE: Final = 1.96
"""Standard deviations within which 95 % of a normal distribution are."""


class _Compressed(NamedTuple):
    """Some chunks, compressed at a level."""

    lengths: list[int]
    """As castore would store them."""
    mb_per_s: float


class _Ratio(NamedTuple):
    """An estimated ratio of two sums over all chunks, and its error bound (95 %)."""

    value: float
    error: float


def estimate_levels(census: Census, stored: int, levels: Sequence[int] = LEVELS) -> list[LevelFigures]:
    """Return what each level would give for a store of `stored` bytes.

    Only chunks that are stored in full are compressed at another level. Deltas, nodes and footers stay as
    they are.
    """
    sample, count = census.sample, census.full_chunks
    if not sample:
        return []
    codecs = Codecs()
    present = [len(codecs.compress(data)[1]) for data in sample]
    found = _compress_all(sample, levels)
    fast = found[_FAST].lengths
    to_fast = _ratio(fast, present, count)
    figures = []
    for level in levels:
        lengths, speed = found[level]
        if level <= _FAST:
            ratio = _ratio(lengths, present, count)
        else:
            more = _ratio(lengths, fast[: len(lengths)], count)
            error = math.hypot(more.value * to_fast.error, to_fast.value * more.error)
            ratio = _Ratio(to_fast.value * more.value, error)
        figures.append(
            LevelFigures(
                level=level,
                stored=round(stored + (ratio.value - 1) * census.full_bytes),
                error=math.ceil(ratio.error * census.full_bytes),
                mb_per_s=speed,
            )
        )
    return figures


def _compress_all(sample: list[bytes], levels: Sequence[int]) -> dict[int, _Compressed]:
    """Compress the sample at each level, and at _FAST."""
    quarter = sample[: max(len(sample) // 4, _LEAST)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="castore-level") as pool:
        # The slowest level first, so that no thread waits for the other at the end.
        tasks = {
            level: pool.submit(_compress, quarter if level > _FAST else sample, level)
            for level in sorted({*levels, _FAST}, reverse=True)
        }
        return {level: task.result() for level, task in tasks.items()}


def _compress(sample: list[bytes], level: int) -> _Compressed:
    compressor = zstandard.ZstdCompressor(level=level)
    began = time.thread_time()
    lengths = []
    for data in sample:
        length = len(compressor.compress(data))
        # As `Codecs.compress`: only if that saves more than 1/32.
        lengths.append(length if len(data) - length > len(data) >> 5 else len(data))
    seconds = max(time.thread_time() - began, 1e-9)
    return _Compressed(lengths, round(sum(map(len, sample)) / 1e6 / seconds, 1))


def _ratio(lengths: list[int], base: list[int], population: int) -> _Ratio:
    """Estimate the ratio of two sums over a population from a random sample of it.

    The error is the usual one of a ratio estimate (Cochran, Sampling Techniques, 1977, section 6.3), with
    the correction for a finite population.
    """
    count = len(lengths)
    value = sum(lengths) / sum(base)
    if count >= population:
        return _Ratio(value, 0.0)
    if count < 2:
        return _Ratio(value, 1.0)
    squares = sum((length - value * one) ** 2 for length, one in zip(lengths, base, strict=True))
    deviation = math.sqrt(squares / (count - 1) / count) / (sum(base) / count)
    return _Ratio(value, _CONFIDENCE * deviation * math.sqrt(1 - count / population))
