"""The base cache: unsealed chunks on this machine that a writer needs to make deltas.

A writer cannot open what it sealed. So for each pack that it writes, it keeps a file `base-cache/P`. The file
has the payload of each chunk, as it was before sealing, at the offset of the record in the pack. Only its
owner can read it. It may be deleted, cut off or damaged at any time: code that reads a payload from here
*must* verify the chunk by its id. Then damage costs space, but never content.
"""

from __future__ import annotations

import contextlib
import os
import re
import struct
import threading
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.errors import StorageError
from castore.fs.durable import NewFile, make_private_directory
from castore.fs.flock import open_lock_file, try_lock, wait_for_lock
from castore.model.refs import PackId

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_HEADER: Final = struct.Struct("<8sHHxxxxQ")
"""Magic, version, bytes that sealing adds to a payload, creation time (seconds since 1970).

It is shorter than what precedes a pack's first record.
"""
_MAGIC: Final = b"castorer"
_VERSION: Final = 1
_BUFFER: Final = 1 << 20
_OPEN_FILES: Final = 64
_UNFINISHED: Final = ".part"
_NAME: Final = "[0-9a-f]{64}"
_OTHERS_SECONDS: Final = 86400
"""A younger file may belong to a running snapshot of another service, whose generation is not written yet."""
_MAX_AGE_SECONDS: Final = 90 * 86400
"""An older file is not used, and is removed: its cleartext may be from state that was deleted long ago."""
_USED_ENOUGH: Final = 16
"""A file of which less than 1/16 is used is not worth its space."""
_DEFAULT_LIMIT: Final = 20 * 10**9


class BaseCacheWriter:
    """The cache file of a pack being written. Its payloads can be read immediately.

    If this machine has no space for it, it is silently discarded: it only saves space in the store.
    """

    def __init__(self, path: str, overhead: int) -> None:
        self._buffer = bytearray(_HEADER.pack(_MAGIC, _VERSION, overhead, int(time.time())))
        self._flushed = 0
        self._lock = threading.Lock()
        self._file: NewFile | None = None
        with contextlib.suppress(OSError):
            self._file = NewFile(path)

    def add(self, offset: int, payload: bytes | memoryview) -> None:
        """Keep a payload at its record's offset. Offsets must ascend."""
        if self._file is None:
            return
        with self._lock:
            self._buffer += bytes(offset - self._flushed - len(self._buffer))
            self._buffer += payload
            if len(self._buffer) >= _BUFFER:
                self._flush()

    def read(self, offset: int, length: int) -> bytes | None:
        """Return the payload at an offset, or None."""
        with self._lock:
            if self._file is None:
                return None
            if offset >= self._flushed:
                at = offset - self._flushed
                return bytes(self._buffer[at : at + length])
            if offset + length > self._flushed:
                self._flush()
            return _pread(self._file.fd, offset, length) if self._file is not None else None

    def commit(self, path: str) -> None:
        """Rename the file to `path`, which makes it the cache file of its pack."""
        with self._lock:
            self._flush()
            if self._file is not None:
                with contextlib.suppress(OSError):
                    self._file.commit(path, durable=False)
            self._give_up()

    def abort(self) -> None:
        """Close the file, and delete it unless it was committed."""
        with self._lock:
            self._give_up()

    def _flush(self) -> None:
        if self._file is None:
            return
        try:
            self._file.write(self._buffer)
        except OSError:
            self._give_up()
            return
        self._flushed += len(self._buffer)
        self._buffer.clear()

    def _give_up(self) -> None:
        if self._file is not None:
            self._file.discard()
            self._file = None
        self._buffer.clear()


class _CacheFile(NamedTuple):
    """A file in the folder of the cache."""

    name: str
    size: int
    """Bytes that it takes on disk."""
    modified: float


class _OpenFile(NamedTuple):
    """The open cache file of a pack."""

    descriptor: int
    """-1 if there is no usable file."""
    overhead: int
    """Bytes that a record is longer than its payload."""


_UNUSABLE: Final = _OpenFile(-1, 0)


class BaseCache:
    """The cache files in a folder; safe to share between threads.

    limit: bytes; 0 switches the cache off; None means 10 % of its disk's free space, at most 20 GB.
    """

    def __init__(self, folder: str, limit: int | None = None) -> None:
        self._folder = folder
        self.limit = limit
        self._lock = threading.Lock()
        self._open: OrderedDict[PackId, _OpenFile] = OrderedDict()
        self._adding = -1
        """A shared lock, held while files are added whose generation is not written yet."""

    def create(self, overhead: int) -> BaseCacheWriter | None:
        """Begin a cache file; None if the cache is full or switched off.

        overhead: bytes that a record is longer than its payload.
        """
        if self.limit == 0:
            return None
        with contextlib.suppress(OSError, StorageError):
            make_private_directory(self._folder)
            self._hold_shared()
        if self.size() >= self._bound():
            return None
        name = os.urandom(16).hex() + _UNFINISHED
        return BaseCacheWriter(os.path.join(self._folder, name), overhead)

    def path_of(self, pack: PackId) -> str:
        """Return the path of a pack's cache file."""
        return os.path.join(self._folder, pack.hex())

    def read(self, pack: PackId, offset: int, sealed_length: int) -> bytes | None:
        """Return the payload of a record, or None if it is not cached, or too old to be a base."""
        if self.limit == 0:
            return None
        with self._lock:
            file = self._opened(pack)
            if file.descriptor < 0:
                return None
            return _pread(file.descriptor, offset, sealed_length - file.overhead)

    def size(self) -> int:
        """Return the bytes that the cache takes on disk."""
        return sum(file.size for file in self._files())

    def evict(self, used: Mapping[PackId, int]) -> None:
        """Remove files that are too old or not used by a last generation, then the oldest beyond the limit.

        used: the bytes of each pack that the last generations use. Little used files are removed, too.
        """
        sizes = {pack.hex(): size for pack, size in used.items()}
        now = time.time()
        files = sorted(self._files(), key=lambda file: -file.modified)
        bound = self._bound(sum(file.size for file in files))
        total = 0
        for file in files:
            age = now - file.modified
            unfinished = file.name.endswith(_UNFINISHED)
            unused = sizes.get(file.name, -1) < file.size // _USED_ENOUGH
            total += file.size
            if unfinished and age < _OTHERS_SECONDS:
                continue
            if (unused and age > _OTHERS_SECONDS) or total > bound or age > _MAX_AGE_SECONDS:
                total -= file.size
                self._remove(file.name)
        self.close()

    def _remove(self, name: str) -> None:
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(self._folder, name))

    def packs(self) -> list[PackId]:
        """Return the packs that have cache files."""
        return [PackId(bytes.fromhex(file.name)) for file in self._files() if re.fullmatch(_NAME, file.name)]

    @contextlib.contextmanager
    def trimming(self) -> Iterator[Callable[[PackId, list[tuple[int, int]]], None]]:
        """Yield a function that trims a pack's file to the records at (offset, sealed length).

        An empty list removes the file. While a snapshot adds files, young files are left as they are.
        """
        self.close()
        lock = -1
        alone = False
        with contextlib.suppress(OSError):
            lock = open_lock_file(f"{self._folder}.lock")
            alone = try_lock(lock)

        def trim(pack: PackId, records: list[tuple[int, int]]) -> None:
            path = self.path_of(pack)
            with contextlib.suppress(OSError):
                if alone or time.time() - os.stat(path).st_mtime > _OTHERS_SECONDS:
                    if records:
                        _copy_records(path, records)
                    else:
                        os.unlink(path)

        try:
            if alone:
                # No snapshot is running: a killed one left these files.
                for file in self._files():
                    if file.name.endswith(_UNFINISHED):
                        self._remove(file.name)
            yield trim
        finally:
            if lock >= 0:
                os.close(lock)

    def _hold_shared(self) -> None:
        with self._lock:
            if self._adding < 0:
                self._adding = open_lock_file(f"{self._folder}.lock")
                wait_for_lock(self._adding, shared=True)

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        with self._lock:
            if self._adding >= 0:
                os.close(self._adding)
                self._adding = -1
            while self._open:
                self._close_oldest()

    def _bound(self, size: int | None = None) -> int:
        if self.limit is not None:
            return self.limit
        try:
            info = os.statvfs(self._folder)
        except OSError:
            return 0
        free = info.f_bavail * info.f_frsize + (self.size() if size is None else size)
        return min(free // 10, _DEFAULT_LIMIT)

    def _files(self) -> list[_CacheFile]:
        found = []
        with contextlib.suppress(OSError), os.scandir(self._folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    info = entry.stat(follow_symlinks=False)
                    found.append(_CacheFile(entry.name, info.st_blocks * 512, info.st_mtime))
        return found

    def _opened(self, pack: PackId) -> _OpenFile:
        """Return the open file of a pack; a bounded number of files stays open."""
        file = self._open.get(pack)
        if file is not None:
            self._open.move_to_end(pack)
            return file
        if len(self._open) >= _OPEN_FILES:
            self._close_oldest()
        file = self._open[pack] = _open_file(self.path_of(pack))
        return file

    def _close_oldest(self) -> None:
        _, file = self._open.popitem(last=False)
        if file.descriptor >= 0:
            os.close(file.descriptor)


def _open_file(path: str) -> _OpenFile:
    """Open a cache file, unless it is missing, too old, or not a valid one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return _UNUSABLE
    with contextlib.suppress(OSError):
        header = os.pread(descriptor, _HEADER.size, 0)
        if len(header) == _HEADER.size:
            magic, version, overhead, created = _HEADER.unpack(header)
            if (magic, version) == (_MAGIC, _VERSION) and time.time() - created <= _MAX_AGE_SECONDS:
                return _OpenFile(descriptor, overhead)
    os.close(descriptor)
    return _UNUSABLE


def _copy_records(path: str, records: list[tuple[int, int]]) -> None:
    """Rewrite a file with these records only, and holes elsewhere. Raises OSError."""
    part = f"{path}{_UNFINISHED}"
    with open(path, "rb") as old:
        status = os.fstat(old.fileno())
        header = os.pread(old.fileno(), _HEADER.size, 0)
        if len(header) < _HEADER.size:
            os.unlink(path)
            return
        overhead = _HEADER.unpack(header)[2]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part)
        new = NewFile(part)
        try:
            new.write(header)
            for offset, length in records:
                payload = os.pread(old.fileno(), length - overhead, offset)
                # A hole stays a hole: the record may never have been cached.
                if payload.strip(b"\0"):
                    os.lseek(new.fd, offset, os.SEEK_SET)
                    new.write(payload)
            os.utime(new.fd, ns=(status.st_atime_ns, status.st_mtime_ns))
            new.commit(path, durable=False)
        finally:
            new.discard()


def _pread(descriptor: int, offset: int, length: int) -> bytes | None:
    if length < 0:
        return None
    try:
        data = os.pread(descriptor, length, offset)
    except OSError:
        return None
    return data if len(data) == length else None
