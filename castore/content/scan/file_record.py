"""Records of the last snapshot of a dump that is one file: if the file is unchanged, it is not read again.

The rules are those of a scan cache (castore/content/scan/cache.py), in whose place the record is: device,
inode, size and times of the file are as they were when it was read, and its ctime was not recent then.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.content.scan.cache import HASH_BYTES
from castore.errors import StorageError
from castore.fs.durable import NewFile, make_private_directory
from castore.fs.stamp import Stamp  # noqa: TC001 - msgspec needs it
from castore.model.generation import StoredRef  # noqa: TC001
from castore.store.reachability import is_whole

if TYPE_CHECKING:
    from castore.model.refs import Ref
    from castore.store import Store

_MAGIC: Final = b"castore-file-1\n"
_MOST: Final = 4096
"""Bytes: a record is far smaller."""


class FileRecord(msgspec.Struct, frozen=True, array_like=True):
    """A stored stream that a file has as its content, as long as the file has this stamp."""

    stamp: Stamp
    content: StoredRef
    epoch: bytes
    """Of the index when the stream was stored: nothing can have been lost since if it is the same."""


_decoder: Final = msgspec.msgpack.Decoder(FileRecord)


def is_unchanged(store: Store, path: str, stamp: Stamp, content: Ref) -> bool:
    """Whether a file with this stamp has the stored `content`, all of which the store still has.

    path: of the record.
    """
    record = _read(path)
    if record is None or record.stamp != stamp or record.content.ref != content:
        return False
    # The store may have lost objects that are needed, or that no generation references any more.
    return record.epoch == store.index.epoch() or is_whole(store, [content])


def write_record(path: str, record: FileRecord) -> None:
    """Replace the last record by this one; nothing is recorded if this machine has no room for it."""
    data = _MAGIC + msgspec.msgpack.encode(record)
    with contextlib.suppress(OSError, StorageError):
        make_private_directory(os.path.dirname(path))
        file = NewFile(f"{path}:{os.urandom(8).hex()}.part")
        try:
            file.write(data + blake3(data).digest())
            # Not synced: a loss of power leaves the previous record, this one, or bytes without its hash.
            file.commit(path, durable=False)
        finally:
            file.discard()


def _read(path: str) -> FileRecord | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.read(fd, _MOST)
        finally:
            os.close(fd)
    except OSError:
        return None
    body, digest = data[:-HASH_BYTES], data[-HASH_BYTES:]
    if not body.startswith(_MAGIC) or blake3(body).digest() != digest:
        return None
    try:
        return _decoder.decode(body[len(_MAGIC) :])
    except (msgspec.MsgspecError, ValueError):
        return None
