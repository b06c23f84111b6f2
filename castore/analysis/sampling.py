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
import stat
import struct
from collections import defaultdict
from dataclasses import field
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
from blake3 import blake3

from castore.analysis.first_seen import FirstSeen
from castore.analysis.nights import Night, Stored
from castore.analysis.results import ChunkClass, LevelFigures, NightFigures
from castore.content.pipeline import Pipeline
from castore.content.scan.small_files import SMALL
from castore.deferred import dataclass
from castore.errors import UsageError
from castore.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from castore.analysis.results import Row
    from castore.analysis.trial import TrialStore
    from castore.model.refs import Ref
    from castore.progress import Watch

WINDOW: Final = 8 << 20
DEFAULT_SAMPLE: Final = 1 << 30
_LEAST_WINDOWS: Final = 8
_COPY: Final = 1 << 20
"""Bytes: shorter files are not compared with others of the same length."""
_PROBE: Final = 4096
_CONFIDENCE: Final = 1.96
"""Standard deviations within which 95 % of a normal distribution are."""
_ENTRY: Final = struct.Struct("<IIIqQ")
Identity = tuple[int, int]
"""Device and inode."""


class _File(NamedTuple):
    path: str
    size: int
    ids: Identity


class _Directory(NamedTuple):
    """The small files of a directory, and what describes all its names."""

    small: list[_File]
    entries: bytes

    @property
    def size(self) -> int:
        return sum(file.size for file in self.small)


@dataclass
class Survey:
    """What is known of the data before it is sampled."""

    plain: int = 0
    """Bytes of content."""
    files: int = 0
    copies: set[Identity] = field(default_factory=set)
    """Large files that are copies of others."""
    copied: int = 0
    """Bytes of these."""
    warnings: list[tuple[str, bytes, str]] = field(default_factory=list)

    @property
    def distinct(self) -> int:
        """Bytes of content without the copies of large files."""
        return self.plain - self.copied


def survey(paths: Sequence[str], leave_out: Collection[Identity], progress: Progress) -> Survey:
    """Walk files and directories, and find copies of large files. Raises UsageError."""
    found = Survey()
    sizes: dict[int, list[_File]] = defaultdict(list)
    for item in _items(paths, leave_out, found.warnings):
        if isinstance(item, _File):
            found.files += 1
            found.plain += item.size
            if item.size >= _COPY:
                sizes[item.size].append(item)
        else:
            found.files += len(item.small)
            found.plain += item.size
        progress.files = found.files
    for size, files in sizes.items():
        if len(files) < 2:
            continue
        seen: set[bytes] = set()
        for file in files:
            probe = _probe(file)
            if probe in seen:
                found.copies.add(file.ids)
                found.copied += size
            elif probe:
                seen.add(probe)
    return found


def _probe(file: _File) -> bytes:
    """Return a hash of some bytes of a file; empty if it cannot be read."""
    hasher = blake3()
    try:
        with open(file.path, "rb", buffering=0) as opened:
            for offset in (0, file.size // 3, 2 * file.size // 3, file.size - _PROBE):
                hasher.update(os.pread(opened.fileno(), _PROBE, offset))
    except OSError:
        return b""
    return hasher.digest()


def _items(
    paths: Sequence[str], leave_out: Collection[Identity], warnings: list[tuple[str, bytes, str]]
) -> Iterator[_File | _Directory]:
    """Yield the small files of each directory together, and each large file, in the order of a scan."""
    linked: set[Identity] = set()
    for path in paths:
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            yield _File(path, info.st_size, (info.st_dev, info.st_ino))
            continue
        todo = [path]
        while todo:
            folder = todo.pop()
            try:
                with os.scandir(folder) as found:
                    listed = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                warnings.append(("sample", os.fsencode(folder), str(error.strerror)))
                continue
            directory, large, below = _sorted_out(listed, leave_out, linked)
            yield directory
            yield from large
            todo += below[::-1]


def _sorted_out(
    listed: Sequence[os.DirEntry[str]], leave_out: Collection[Identity], linked: set[Identity]
) -> tuple[_Directory, list[_File], list[str]]:
    """Return the small files, the large files and the subdirectories of a directory.

    linked: files with several names that were found before; each is returned once.
    """
    small: list[_File] = []
    large: list[_File] = []
    below: list[str] = []
    entries = bytearray()
    for entry in listed:
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        ids = (info.st_dev, info.st_ino)
        entries += os.fsencode(entry.name)
        entries += _ENTRY.pack(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_size)
        if stat.S_ISDIR(info.st_mode) and ids not in leave_out:
            below.append(entry.path)
        if not stat.S_ISREG(info.st_mode) or not info.st_size or ids in linked:
            continue
        if info.st_nlink > 1:
            linked.add(ids)
        (small if info.st_size <= SMALL else large).append(_File(entry.path, info.st_size, ids))
    return _Directory(small, bytes(entries)), large, below


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
        self, paths: Sequence[str], leave_out: Collection[Identity], found: Survey, sample: int
    ) -> None:
        """sample: bytes to read. Raises UsageError if the data is too small to be sampled."""
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
        self._windows: list[_Window] = []

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

    def _feed(self, pipeline: Pipeline) -> None:
        position, number = 0, 0
        for item in _items(self._paths, self._leave_out, []):
            if isinstance(item, _File) and item.ids in self._found.copies:
                continue
            size = item.size
            while (begin := round(self._start + number * self._step)) < position + size:
                end = begin + WINDOW
                low, high = max(begin - position, 0), min(end - position, size)
                window = self._windows[-1]
                before = pipeline.progress.read
                if isinstance(item, _File):
                    _feed_range(pipeline, item, low, high)
                    pipeline.end_stream(window.roots.append)
                else:
                    _feed_small(pipeline, item, low, high, window.roots.append)
                window.read += pipeline.progress.read - before
                if end > position + size:
                    break
                self._windows.append(_Window())
                number += 1
            position += size

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


def _feed_range(pipeline: Pipeline, file: _File, low: int, high: int) -> None:
    """Feed a range of a file; what cannot be read is left out."""
    try:
        descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
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


def _feed_small(
    pipeline: Pipeline, folder: _Directory, low: int, high: int, done: Callable[[Ref | None], None]
) -> None:
    """Feed the small files of a directory that begin in a range, and their share of its entries."""
    at = 0
    for file in folder.small:
        if low <= at < high:
            _feed_range(pipeline, file, 0, file.size)
        at += file.size
    pipeline.end_stream(done)
    share = slice(len(folder.entries) * low // max(at, 1), len(folder.entries) * high // max(at, 1))
    pipeline.write(folder.entries[share])
    pipeline.end_stream(done)
