"""Write a scan cache."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.content.scan.cache import (
    HEADER,
    MAGIC,
    SUMMARY,
    VERSION,
    DirectorySummary,
)
from castore.errors import StorageError
from castore.fs.durable import NewFile, make_private_directory
from castore.kernel.dir_listing import (
    encode_record,
    summary_fields,
)

if TYPE_CHECKING:

    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.model.refs import Ref

_UNFINISHED: Final = ".part"
_BUFFER: Final = 1 << 20


class ScanCacheWriter:
    """Writes a scan cache. If this machine has no room for it, it is discarded silently."""

    def __init__(self, path: str, epoch: bytes) -> None:
        self.path = path
        self._epoch = epoch
        self._buffer = bytearray(HEADER.size)
        self._flushed = 0
        self._file: NewFile | None = None
        with contextlib.suppress(OSError, StorageError):
            folder, name = os.path.split(path)
            make_private_directory(folder)
            for other in os.listdir(folder):
                # No other process uses it: the service is locked.
                if other.startswith(name + ":") and other.endswith(_UNFINISHED):
                    os.unlink(os.path.join(folder, other))
            self._file = NewFile(f"{path}:{os.urandom(8).hex()}{_UNFINISHED}")

    def begin(self, listing: bytes, count: int, streams: int) -> int:
        """Append the record of a directory of `count` entries; return its position.

        streams: the length of its encoded streams.
        """
        at = self._flushed + len(self._buffer)
        self._append(encode_record(listing, count, streams))
        return at

    def copy(self, old: ScanCacheReader, at: int) -> None:
        """Append a record of the last scan, and all records below it."""
        length = old.length(at)
        self._append(old.data[at : at + length])

    def end(self, at: int) -> int:
        """Return the length of the record at `at`, once all records below it have been appended."""
        return self._flushed + len(self._buffer) - at

    def set_summary(
        self,
        at: int,
        length: int,
        summary: DirectorySummary,
        marks: bytes | bytearray,
        streams: bytes,
        flags: int,
        listed: int,
    ) -> None:
        """Set the summary of the directory whose record is at `at`.

        streams: its encoded streams. listed: the length of its listing in bytes.
        """
        ref = summary.ref
        packed = SUMMARY.pack(*summary[:4], ref.id, ref.size, *summary.ids)
        for offset, data in summary_fields(length, packed, flags, bytes(marks), streams, listed):
            self._put(at + offset, data)

    def _append(self, data: bytes | bytearray) -> None:
        self._buffer += data
        if len(self._buffer) >= _BUFFER:
            self._flush()

    def _put(self, at: int, data: bytes) -> None:
        if at < self._flushed and at + len(data) > self._flushed:
            self._flush()
        if at >= self._flushed:
            self._buffer[at - self._flushed : at - self._flushed + len(data)] = data
        elif self._file is not None:
            try:
                os.pwrite(self._file.fd, data, at)
            except OSError:
                self.discard()

    def _flush(self) -> None:
        if self._file is not None:
            try:
                self._file.write(self._buffer)
            except OSError:
                self.discard()
        self._flushed += len(self._buffer)
        self._buffer.clear()

    def finish(self, root: Ref, rules: bytes) -> None:
        """Write the header: the tree's root, and the rules of the scan."""
        self._put(0, HEADER.pack(MAGIC, VERSION, rules, self._epoch, root.id, root.size))
        self._flush()

    def keep(self) -> None:
        """Replace the last scan cache by this one, after the generation of its root is committed."""
        if self._file is None:
            return
        with contextlib.suppress(OSError, ValueError):
            hasher, at = blake3(), 0
            while data := os.pread(self._file.fd, _BUFFER, at):
                hasher.update(data)
                at += len(data)
            os.pwrite(self._file.fd, hasher.digest(), self._flushed)
            self._file.commit(self.path, durable=False)
        self.discard()

    def discard(self) -> None:
        """Delete the unfinished scan cache."""
        if self._file is not None:
            self._file.discard()
            self._file = None
