"""What zstd makes of the nights' files: each by itself, and as a patch of the one before.

The patch is a floor for what deduplication can reach: it sees all of the previous file. It needs both files,
in memory, which a store does not.
"""

from __future__ import annotations

import os
import shutil
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from castore.analysis.results import WholeFile
from castore.process.runners import run_dump

if TYPE_CHECKING:
    from collections.abc import Sequence

_LEVEL: Final = "-3"
_MOST: Final = (2 << 30) - (1 << 20)
"""Bytes of the longest file that zstd makes patches of."""
_BUFFER: Final = 1 << 20


def whole_files(paths: Sequence[str]) -> list[WholeFile]:
    """Return the figures of each file; [] if the program zstd is not installed. Raises ProgramError."""
    if shutil.which("zstd") is None:
        return []
    figures_of_files = [WholeFile(compressed=_compressed([], path)) for path in paths]
    for figures, (before, path) in zip(figures_of_files[1:], pairwise(paths), strict=True):
        # zstd refuses to make a patch of a file with itself.
        same = os.path.samefile(before, path)
        if not same and max(os.path.getsize(before), os.path.getsize(path)) <= _MOST:
            figures.patch = _compressed(["--long=31", f"--patch-from={before}"], path)
    return figures_of_files


def _compressed(options: Sequence[str], path: str) -> int:
    """Return how many bytes zstd makes of a file."""
    buffer = memoryview(bytearray(_BUFFER))
    total = 0
    with run_dump(["zstd", "-q", "-c", _LEVEL, *options, "--", path]) as readinto:
        while count := readinto(buffer):
            total += count
    return total
