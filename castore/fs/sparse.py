"""Write a stream so that blocks of zeros become holes, as they were in a sparse file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

_BLOCK: Final = 4096
_ZEROS: Final = bytes(_BLOCK)


def write_sparse(fd: int, chunks: Iterable[bytes | memoryview]) -> int:
    """Write chunks to an empty file, with a hole for each aligned block of zeros; return their length."""
    end = 0
    for chunk in chunks:
        view = memoryview(chunk)
        for start, stop in _data_runs(view, end):
            rest = view[start:stop]
            at = end + start
            while rest:
                written = os.pwrite(fd, rest, at)
                rest, at = rest[written:], at + written
        end += len(view)
    os.ftruncate(fd, end)
    return end


def _data_runs(view: memoryview, offset: int) -> Iterable[tuple[int, int]]:
    """Yield (start, stop) of the data in a chunk that begins at `offset` of the file."""
    begun = None
    at = 0
    while at < len(view):
        stop = min(at + _BLOCK - (offset + at) % _BLOCK, len(view))
        if view[at:stop] == _ZEROS[: stop - at]:
            if begun is not None:
                yield begun, at
                begun = None
        elif begun is None:
            begun = at
        at = stop
    if begun is not None:
        yield begun, len(view)
