"""Survey large data before it is sampled: list its files, and find copies of large ones."""

from __future__ import annotations

import os
import stat
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.content.scan.small_files import SMALL

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from castore.progress import Progress

_COPY: Final = 1 << 20
"""Bytes: shorter files are not compared with others of the same length."""
_PROBE: Final = 4096
_ENTRY: Final = struct.Struct("<IIIqQ")
Identity = tuple[int, int]
"""Device and inode."""


class LargeFile(NamedTuple):
    """A file that is not stored together with others."""

    path: bytes
    size: int
    ids: Identity


class SmallFiles(NamedTuple):
    """The small files of a directory, and what describes all its names."""

    files: list[tuple[bytes, int]]
    """Paths and sizes."""
    entries: bytes

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(size for _, size in self.files)


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
    # Of each length, only the first path is kept until another file has it: there may be a million lengths.
    first: dict[int, bytes] = {}
    probes: dict[int, set[bytes]] = {}
    for item in walk(paths, leave_out, found.warnings):
        found.plain += item.size
        if isinstance(item, SmallFiles):
            found.files += len(item.files)
        else:
            found.files += 1
            if item.size >= _COPY and _is_copy(item, first, probes):
                found.copies.add(item.ids)
                found.copied += item.size
        progress.files = found.files
    return found


def _is_copy(file: LargeFile, first: dict[int, bytes], probes: dict[int, set[bytes]]) -> bool:
    """Return whether some file of the same length, seen before, has the same probe."""
    path = first.setdefault(file.size, file.path)
    if path is file.path:
        return False
    seen = probes.get(file.size)
    if seen is None:
        seen = probes[file.size] = {_probe(path, file.size)}
    probe = _probe(file.path, file.size)
    if probe and probe in seen:
        return True
    seen.add(probe)
    return False


def _probe(path: bytes, size: int) -> bytes:
    """Return a hash of some bytes of a file; empty if it cannot be read."""
    hasher = blake3()
    try:
        with open(path, "rb", buffering=0) as opened:
            for offset in (0, size // 3, 2 * size // 3, size - _PROBE):
                hasher.update(os.pread(opened.fileno(), _PROBE, offset))
    except OSError:
        return b""
    return hasher.digest()


def walk(
    paths: Sequence[str], leave_out: Collection[Identity], warnings: list[tuple[str, bytes, str]]
) -> Iterator[LargeFile | SmallFiles]:
    """Yield the small files of each directory together, and each large file, in the order of a scan."""
    linked: set[Identity] = set()
    for path in map(os.fsencode, paths):
        info = os.stat(path)
        if stat.S_ISREG(info.st_mode):
            yield LargeFile(path, info.st_size, (info.st_dev, info.st_ino))
            continue
        todo = [path]
        while todo:
            folder = todo.pop()
            try:
                with os.scandir(folder) as found:
                    listed = sorted(found, key=lambda entry: entry.name)
            except OSError as error:
                warnings.append(("sample", folder, str(error.strerror)))
                continue
            small, large, below = _sorted_out(listed, leave_out, linked)
            yield small
            yield from large
            todo += below[::-1]


def _sorted_out(
    listed: Sequence[os.DirEntry[bytes]], leave_out: Collection[Identity], linked: set[Identity]
) -> tuple[SmallFiles, list[LargeFile], list[bytes]]:
    """Return the small files, the large files and the subdirectories of a directory.

    linked: files with several names that were found before; each is returned once.
    """
    small: list[tuple[bytes, int]] = []
    large: list[LargeFile] = []
    below: list[bytes] = []
    entries = bytearray()
    for entry in listed:
        try:
            info = entry.stat(follow_symlinks=False)
        except OSError:
            continue
        ids = (info.st_dev, info.st_ino)
        entries += entry.name
        entries += _ENTRY.pack(info.st_mode, info.st_uid, info.st_gid, info.st_mtime_ns, info.st_size)
        if stat.S_ISDIR(info.st_mode) and ids not in leave_out:
            below.append(entry.path)
        if not stat.S_ISREG(info.st_mode) or not info.st_size or ids in linked:
            continue
        if info.st_nlink > 1:
            linked.add(ids)
        if info.st_size <= SMALL:
            small.append((entry.path, info.st_size))
        else:
            large.append(LargeFile(entry.path, info.st_size, ids))
    return SmallFiles(small, bytes(entries)), large, below
