"""The large files of the last scan: which of them a new or renamed file is a version of.

A file is compared with its previous version as a dump is: the chunks at the same places are its first choice
of bases, and where they ended is where its own are likely to end. A file of the same name has one. People
also keep dumps under a name per night, and rotate logs: for these it is found by inode, or by its content.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.scan.record_streams import marked_own, own_streams
from castore.errors import CastoreError
from castore.kernel.dir_listing import entry_at

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.content.pipeline import Pipeline
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.kernel.dir_listing import Listed
    from castore.model.refs import RecordId, Ref

_LEAST: Final = 8 << 20
"""Shorter files find their bases by sketches well enough; samples would cost a tenth of reading them."""
_SAMPLES: Final = 4
_SAMPLE_CHUNKS: Final = 4
"""Length of a sample, in average chunks."""
_CANDIDATES: Final = 8
_SIZES: Final = 4
"""A candidate is at most this many times longer or shorter."""
_DIGITS: Final = rb"\d+"


class _LargeFile(NamedTuple):
    entry: Listed
    directory: int
    """The position of its directory's record."""
    order: int
    """Its number among the files of the directory that have streams of their own."""


def _ranking(
    name: bytes, info: os.stat_result, directory: int | None
) -> Callable[[_LargeFile], tuple[bool, bool, bool, bool, int]]:
    """Return the order of candidates for the previous version of a file: the likeliest come first."""
    pattern = re.sub(_DIGITS, b"0", name)

    def rank(file: _LargeFile) -> tuple[bool, bool, bool, bool, int]:
        entry, elsewhere = file.entry, file.directory != directory
        return (
            (entry.dev, entry.ino) != (info.st_dev, info.st_ino),
            elsewhere or entry.name != name,
            elsewhere,
            re.sub(_DIGITS, b"0", entry.name) != pattern,
            -entry.mtime_ns,
        )

    return rank


class PreviousFiles:
    """Finds the previous versions of large files whose names are new."""

    def __init__(self, pipeline: Pipeline, old: ScanCacheReader) -> None:
        self._pipeline = pipeline
        self._old = old
        self._files: list[_LargeFile] | None = None

    def find(self, fd: int, name: bytes, info: os.stat_result, directory: int | None) -> Ref | None:
        """Return the stream of the file, open as `fd`, as it was in the last scan; None if none is found.

        It is the candidate that has, or resembles, most of a few samples of the file.
        directory: the position of its directory's record, which is searched first. Errors of reading `fd` are
        raised, those of the store are not: they affect only size and speed.
        """
        candidates = self._candidates(info.st_size)
        samples = self._samples(fd, info.st_size) if candidates else []
        known = [stored for stored in samples if stored]
        ranked = sorted(candidates, key=_ranking(name, info, directory))[:_CANDIDATES] if known else []
        best: tuple[int, Ref | None] = (0, None)
        for file in ranked:
            try:
                ref = self._stream(file)
                ids = {chunk.id for _, run in iter_runs_of_chunks(self._old.store, ref) for chunk in run}
            except CastoreError:
                continue
            hits = sum(1 for stored in known if not ids.isdisjoint(stored))
            best = max(best, (hits, ref), key=lambda one: one[0])
            if 2 * hits > len(samples):
                break
        return best[1]

    def _candidates(self, size: int) -> list[_LargeFile]:
        """Return the files that are at most _SIZES times shorter or longer than `size`."""
        if size < _LEAST:
            return []
        if self._files is None:
            self._files = list(self._iter_files())
        return [file for file in self._files if size // _SIZES <= file.entry.size <= size * _SIZES]

    def _iter_files(self) -> Iterator[_LargeFile]:
        for record in self._old.records():
            for order, (place, _) in enumerate(marked_own(record)):
                entry = entry_at(record.listing, place)
                if entry.size >= _LEAST // _SIZES:
                    yield _LargeFile(entry, record.start, order)

    def _stream(self, file: _LargeFile) -> Ref | None:
        streams = list(own_streams(self._old.record(file.directory)))
        return streams[file.order].ref if file.order < len(streams) else None

    def _samples(self, fd: int, size: int) -> list[set[RecordId]]:
        """Return, for each chunk of a few samples of the file, which stored chunks it is or resembles."""
        candidates: list[set[RecordId]] = []
        length = _SAMPLE_CHUNKS * self._pipeline.average
        for number in range(_SAMPLES):
            offset = size * (2 * number + 1) // (2 * _SAMPLES)
            candidates += self._pipeline.find_stored(os.pread(fd, length, offset))
        return candidates
