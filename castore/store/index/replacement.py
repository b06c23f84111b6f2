"""Replace the environment of an index by one that was built in another folder."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

from castore.fs.durable import sync_if_supported
from castore.store.index.lmdb_files import kept_in_place
from castore.store.index.schema import OF_CONTENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.store.index.lmdb_env import Environment

_COPIED: Final = 1 << 14
"""Entries of a table that are copied in one batch."""


def replace(environment: Environment, built: Environment, kept: Iterable[str]) -> None:
    """Switch an environment to one that was built in another folder, and make it durable.

    kept: tables to copy from the old one. Processes that have the old one open keep it, without its name:
    syncing with the store updates it as usual, and what only it has is found in the store again.
    """
    path, olds = environment.path, []
    with environment.exclusive(), contextlib.ExitStack() as files:
        environment.fit_map()
        # Lock the folder before the write lock, in the order in which an opening process takes them. If
        # the folder is missing, another process replaces the index because it was damaged.
        with contextlib.suppress(FileNotFoundError):
            files.enter_context(kept_in_place(path, shared=False))
        # From here on, no other process writes to the old one.
        with environment.env.begin(write=True) as txn:
            _copy(environment, txn, built, kept)
            built.env.sync(True)
            built.env.close()
            olds = _exchange(built.path, path)
        environment.close()
        with kept_in_place(path, shared=True):
            environment.open(durable=True)
        environment.corrupt = False
    for old in olds:
        shutil.rmtree(old, ignore_errors=True)


def _copy(old: Environment, txn: Any, new: Environment, tables: Iterable[str]) -> None:
    """Copy tables and metadata, in a transaction of the old environment."""
    for name in tables:
        pairs = iter(txn.cursor(old.tables[name]))
        while batch := list(itertools.islice(pairs, _COPIED)):
            new.append(name, [batch])
    meta = dict(txn.cursor(old.tables["meta"]))
    new.write(lambda to: _put_missing(to, new.tables["meta"], meta))


def _put_missing(txn: Any, meta: Any, entries: dict[bytes, bytes]) -> None:
    """Copy metadata of an index, except what refers to its pack numbers, or to what it had indexed."""
    for key, value in entries.items():
        if key not in OF_CONTENT:
            txn.put(key, value, overwrite=False, db=meta)


def _exchange(built: str, path: str) -> list[str]:
    """Give a folder the path of another one, durably; return the new paths of folders that had it."""
    olds = [f"{built}.0"]
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, olds[0])
    # Another process may have created an empty one at this very moment.
    while not _rename(built, path):
        olds.append(f"{built}.{len(olds)}")
        with contextlib.suppress(FileNotFoundError), kept_in_place(path, shared=False):
            os.rename(path, olds[-1])
    sync_if_supported(os.path.dirname(path))
    return olds


def _rename(old: str, new: str) -> bool:
    """Rename a folder; return whether the new name was free."""
    try:
        os.rename(old, new)
    except OSError as error:
        if error.errno in {errno.ENOTEMPTY, errno.EEXIST}:
            return False
        raise
    return True
