"""Sample large data: estimate the figures of all of it from a part, with an error bound.

All content is taken as one sequence of bytes, in the order of a scan. Windows of 8 MiB at regular distances
from a random start are passed to the pipeline: the small files of a directory as one stream, and large files,
or ranges of them. All windows have the same length. So the ratio of stored to read bytes is unbiased for
content that is not repeated elsewhere. Copies of large files are found before, by their lengths and a few of
their bytes, and count as duplicates. Other content that files share is only seen where both places are in the
sample.
"""

from __future__ import annotations

import math
import os
import random
import struct
from dataclasses import dataclass, field
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import msgspec

from castore.analysis.first_seen import FirstSeen
from castore.analysis.nights import Night, Stored
from castore.analysis.results import ChunkClass, LevelFigures, NightFigures
from castore.analysis.survey import LargeFile, walk
from castore.content.pipeline import Pipeline
from castore.errors import UsageError
from castore.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from castore.analysis.results import Row
    from castore.analysis.survey import Identity, SmallFiles, Survey
    from castore.analysis.trial import TrialStore
    from castore.model.refs import Ref
    from castore.progress import Watch

WINDOW: Final = 8 << 20
DEFAULT_SAMPLE: Final = 1 << 30
_LEAST_WINDOWS: Final = 8
_CONFIDENCE: Final = 1.96
"""Standard deviations within which 95 % of a normal distribution are."""
_LENGTH: Final = struct.Struct("<I")


class _Piece(msgspec.Struct, frozen=True, array_like=True):
    """A part of a window: a range of a large file, or small files of a directory."""

    window: int
    """Its number."""
    path: bytes = b""
    """The large file."""
    start: int = 0
    end: int = 0
    small: tuple[tuple[bytes, int], ...] = ()
    """Paths and sizes of small files."""
    entries: bytes = b""
    """A share of what describes the names of their directory."""


class _Pieces:
    """The pieces of all windows, in a temporary file: each setting reads the same."""

    def __init__(self, path: str, pieces: Iterable[_Piece]) -> None:
        self._path = path
        with open(path, "xb") as file:
            for piece in pieces:
                data = msgspec.msgpack.encode(piece)
                file.write(_LENGTH.pack(len(data)) + data)

    def __iter__(self) -> Iterator[_Piece]:
        """Yield the pieces in order."""
        with open(self._path, "rb") as file:
            while head := file.read(_LENGTH.size):
                yield msgspec.msgpack.decode(file.read(*_LENGTH.unpack(head)), type=_Piece)


@dataclass
class _Window:
    """A window of the data, in the trial store."""

    read: int = 0
    stored: float = 0.0
    """Bytes of the records of chunks that no window before it has."""
    roots: list[Ref | None] = field(default_factory=list)
    """Its streams."""


class SampledNight(Night):
    """Windows of files and directories, which represent all of them."""

    def __init__(
        self,
        paths: Sequence[str],
        leave_out: Collection[Identity],
        found: Survey,
        sample: int,
        folder: str,
    ) -> None:
        """sample: bytes to read. folder: for a temporary file.

        Raises UsageError if the data is too small to be sampled.
        """
        super().__init__("sample")
        self._paths, self._leave_out, self._found = paths, leave_out, found
        count = max(min(sample, found.distinct) // WINDOW, 1)
        if found.distinct < 2 * _LEAST_WINDOWS * WINDOW or count < _LEAST_WINDOWS:
            raise UsageError(
                f"--sample needs at least {_LEAST_WINDOWS} windows of 8 MiB, and twice as much data: "
                "leave it out, or sample more"
            )
        self._step = found.distinct / count
        self._start = random.Random().random() * max(self._step - WINDOW, 0)  # noqa: S311 - a statistic
        self._file = os.path.join(folder, "sample")
        self._windows: list[_Window] = []
        self._pieces: _Pieces | None = None

    @property
    def survey(self) -> Survey:
        """What is known of all data."""
        return self._found

    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Store the windows."""
        progress = Progress(total=round(self._found.distinct / self._step) * WINDOW)
        watch("sample", progress)
        self._windows = [_Window()]
        with trial.session() as session, Pipeline(session, trial.keys.cutter, progress) as pipeline:
            self._feed(pipeline)
        seen = FirstSeen(trial)
        for window in self._windows:
            window.stored = sum(seen.weigh(root) for root in window.roots if root is not None)
        return Stored(
            plain=progress.read,
            unique=progress.new_bytes,
            files=self._found.files,
            roots=[root for window in self._windows for root in window.roots if root is not None],
            warnings=self._found.warnings,
        )

    def _choose(self) -> Iterator[_Piece]:
        """List all data, and yield what is in the windows."""
        position = number = 0
        for item in walk(self._paths, self._leave_out, []):
            if isinstance(item, LargeFile) and item.ids in self._found.copies:
                continue
            size = item.size
            while (begin := round(self._start + number * self._step)) < position + size:
                end = begin + WINDOW
                low, high = max(begin - position, 0), min(end - position, size)
                if isinstance(item, LargeFile):
                    yield _Piece(number, item.path, low, high)
                else:
                    yield _part_of(item, number, low, high)
                if end > position + size:
                    break
                number += 1
            position += size

    def _feed(self, pipeline: Pipeline) -> None:
        if self._pieces is None:
            self._pieces = _Pieces(self._file, self._choose())
        for piece in self._pieces:
            while len(self._windows) <= piece.window:
                self._windows.append(_Window())
            window = self._windows[piece.window]
            before = pipeline.progress.read
            if piece.path:
                _feed_range(pipeline, piece.path, piece.start, piece.end)
            for path, size in piece.small:
                _feed_range(pipeline, path, 0, size)
            pipeline.end_stream(window.roots.append)
            if piece.entries:
                pipeline.write(piece.entries)
                pipeline.end_stream(window.roots.append)
            window.read += pipeline.progress.read - before

    def relative_error(self) -> float:
        """Return the error bound (95 %) of the stored bytes, as a share of them, after `store`.

        The windows are taken as a random sample: each stores some share of what it reads.
        """
        windows = [window for window in self._windows if window.read]
        count, read = len(windows), sum(window.read for window in windows)
        stored = sum(window.stored for window in windows)
        if count < 2 or not stored:
            return 1.0
        ratio = stored / read
        squares = sum((window.stored - ratio * window.read) ** 2 for window in windows)
        deviation = math.sqrt(squares / (count - 1) / count) / (read / count)
        unseen = max(1 - read / self._found.distinct, 0.0)
        return _CONFIDENCE * deviation * math.sqrt(unseen) / ratio


def scaled(row: Row, night: SampledNight) -> Row:
    """Return the figures of all data, from those of its sample."""
    found = night.survey
    factor = found.distinct / max(row.plain, 1)

    def grown(count: int) -> int:
        return round(count * factor)

    one = row.nights[0]
    stored = grown(row.stored)
    return msgspec.structs.replace(
        row,
        plain=found.plain,
        unique=grown(row.unique),
        stored=stored,
        error=math.ceil(night.relative_error() * stored),
        index=grown(row.index),
        chunks=grown(row.chunks),
        delta_chunks=grown(row.delta_chunks),
        scatter=None,
        nights=[NightFigures(one.name, found.plain, grown(one.unique), stored, one.seconds)],
        sizes=[ChunkClass(size.least, grown(size.chunks), grown(size.size)) for size in row.sizes],
        levels=[
            LevelFigures(level.level, grown(level.stored), grown(level.error), level.mb_per_s)
            for level in row.levels
        ],
    )


def _part_of(folder: SmallFiles, window: int, low: int, high: int) -> _Piece:
    """Return the small files of a directory that begin in a range, and their share of its entries."""
    ends = list(accumulate((size for _, size in folder.files), initial=0))
    small = tuple(file for file, at in zip(folder.files, ends, strict=False) if low <= at < high)
    length, total = len(folder.entries), max(ends[-1], 1)
    return _Piece(
        window, small=small, entries=folder.entries[length * low // total : length * high // total]
    )


def _feed_range(pipeline: Pipeline, path: bytes, low: int, high: int) -> None:
    """Feed a range of a file; what cannot be read is left out."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        while low < high:
            room = pipeline.reserve()
            count = os.preadv(descriptor, [room[: high - low]], low)
            if not count:
                return
            pipeline.commit(count)
            low += count
    except OSError:
        return
    finally:
        os.close(descriptor)
