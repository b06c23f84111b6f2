"""Record on this machine where a restore in place is at work, so that an interrupted one is noticed.

It leaves its journal in the directory that it works in, which may be deep in a tree: a snapshot or rollback
of that tree looks it up here.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING

from blake3 import blake3

from castore.content.aside import refuse_leftovers
from castore.errors import CastoreError
from castore.store.places import write_private

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.store import Store

_FOLDER = "in-place"


@contextlib.contextmanager
def recorded(store: Store, path: str) -> Iterator[None]:
    """Record through the block, and after it if it leaves its journal, that a restore works in `path`.

    Raises StorageError.
    """
    record = os.path.join(_folder(store), blake3(os.fsencode(os.path.realpath(path))).hexdigest(16))
    write_private(record, os.fsencode(os.path.realpath(path)))
    lock = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
        _drop_if_ended(record, path)


def refuse_unfinished(store: Store, top: str) -> None:
    """Raise CastoreError if a restore in place was interrupted in the directory `top`, or below it."""
    refuse_leftovers(top)
    folder = _folder(store)
    above = os.path.join(os.fsencode(os.path.realpath(top)), b"")
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in names:
        record = os.path.join(folder, name)
        with contextlib.suppress(OSError):
            with open(record, "rb") as file:
                found = file.read()
            if found.startswith(above):
                refuse_leftovers(os.fsdecode(found))
                _drop_if_ended(record, os.fsdecode(found))


def _drop_if_ended(record: str, path: str) -> None:
    """Remove a record unless a restore is at work there, or was interrupted."""
    with contextlib.suppress(OSError, CastoreError):
        refuse_leftovers(path)
        lock = os.open(record, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(record)
        finally:
            os.close(lock)


def _folder(store: Store) -> str:
    return os.path.join(store.places.state_of(store.store_id), _FOLDER)
