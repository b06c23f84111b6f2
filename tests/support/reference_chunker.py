"""The rule of castore/kernel/chunker.h in slow Python, to hold the kernel against.

Written from the header's words, not from its code.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW = 64
_WORD = (1 << 64) - 1


def gear_words(gear: bytes) -> tuple[int, ...]:
    """Return the 256 words of a gear table."""
    return struct.unpack("<256Q", gear)


def gear_hash(words: Sequence[int], window: bytes) -> int:
    """Return the gear hash of up to 64 bytes: each byte's word, shifted once for each byte after it."""
    return sum(words[byte] << age for age, byte in enumerate(reversed(window))) & _WORD


def cut_points(
    words: Sequence[int], data: bytes, *, low: int, normal: int, high: int, early: int, late: int
) -> list[int]:
    """Return the end offset of each chunk of the whole stream `data`."""
    hashes = _hashes(words, data)
    ends = []
    start = 0
    while start < len(data):
        end = min(start + high, len(data))
        for i in range(start + low - 1, end):
            if hashes[i] < (early if i - start < normal else late):
                end = i + 1
                break
        ends.append(end)
        start = end
    return ends


def _hashes(words: Sequence[int], data: bytes) -> list[int]:
    """Return for each byte the gear hash of the 64 bytes (or all there are) that end with it."""
    # A word of 64 bits forgets what is shifted out of it, so one pass gives all windows; a chunk is
    # never cut before its 64th byte, so that no window that is used reaches into the chunk before.
    hashes = []
    value = 0
    for byte in data:
        value = (value << 1) + words[byte] & _WORD
        hashes.append(value)
    return hashes
