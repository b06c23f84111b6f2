"""The LMDB environment of an index: opened once a process, rebuilt when it is not sound."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import shutil
import threading
from typing import Any, Final

import lmdb

from castore.store.places import make_private_directory

_VERSION: Final = b"3"
"""Of the layout of the tables. An index of another one is thrown away."""
_MAP_BYTES: Final = 64 << 30

TABLES: Final = (
    "chunks",
    "nodes",
    "copies",
    "bases",
    "features",
    "uses",
    "packs",
    "pack_numbers",
    "sessions",
    "session_numbers",
    "generations",
    "revisions",
    "records",
    "meta",
    "events",
    "verified",
)
BROKEN: Final = (
    lmdb.CorruptedError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)
"""What LMDB raises for a file that is none of its own."""

_CRASHES: Final = "crashes"
"""A file in the index's folder: not empty, a process that had it open was ended by a fault."""

_environments: dict[tuple[int, str], Environment] = {}
_opening = threading.Lock()


class Environment:
    """An open LMDB environment. A process opens one only once, as lmdb.h demands."""

    def __init__(self, path: str) -> None:
        self.env: Any = lmdb.open(
            path,
            map_size=_MAP_BYTES,
            mode=0o600,
            max_dbs=len(TABLES),
            max_readers=254,
        )
        self.users = 0
        self._crashes = -1
        self.failed: Exception | None = None
        """Why nothing more is written: after an error nobody knows what of the file is on the disk."""
        try:
            self._watch(path)
            self._check_length(path)
            self.env.reader_check()
            self.tables = {name: self.env.open_db(name.encode()) for name in TABLES}
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close it; what was open before a fork is only let go of."""
        self.env.close()
        if self._crashes >= 0:
            faulthandler.disable()
            os.close(self._crashes)
            self._crashes = -1

    def _watch(self, path: str) -> None:
        """Have it noted in the index's folder if the process is ended by a fault.

        LMDB believes its pages: one that a disk has changed can lead it anywhere (SIGBUS, SIGSEGV), or make
        it give up (SIGABRT). Whoever comes next builds the index again.
        """
        if not faulthandler.is_enabled():
            with contextlib.suppress(OSError):
                flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                self._crashes = os.open(os.path.join(path, _CRASHES), flags, 0o600)
                faulthandler.enable(self._crashes, all_threads=False)

    def _check_length(self, path: str) -> None:
        """Refuse a file that was cut: touching a mapped page behind its end is a SIGBUS."""
        pages = self.env.info()["last_pgno"] + 1
        if os.path.getsize(os.path.join(path, "data.mdb")) < pages * self.env.stat()["psize"]:
            raise lmdb.CorruptedError("the file is shorter than it says")


def acquire(path: str, store_id: bytes) -> Environment:
    """Open the environment, or share the one that is open; begin anew what is no index of ours."""
    with _opening:
        key = (os.getpid(), os.path.realpath(path))
        # What was open before a fork is the parent's; closed here, nothing of it is touched.
        for other in [one for one in _environments if one[0] != key[0]]:
            _environments.pop(other).close()
        found = _environments.get(key)
        if found is None:
            found = _sound(path, store_id)
            if found is None:
                shutil.rmtree(path)
                make_private_directory(path)
                found = Environment(path)
                _claim(found, store_id)
            _environments[key] = found
        found.users += 1
        return found


def _sound(path: str, store_id: bytes) -> Environment | None:
    """Open what is there; None if that is damaged, or of another layout or store."""
    with contextlib.suppress(OSError):
        if os.path.getsize(os.path.join(path, _CRASHES)):
            return None
    try:
        found = Environment(path)
    except BROKEN:
        return None
    try:
        if _claim(found, store_id):
            return found
    except BROKEN:
        pass
    found.close()
    return None


def _claim(environment: Environment, store_id: bytes) -> bool:
    """Mark an empty environment as this store's index; tell whether it is that now."""
    mark = _VERSION + store_id
    meta = environment.tables["meta"]
    with environment.env.begin() as txn:
        if (found := txn.get(b"mark", db=meta)) is not None:
            return bool(found == mark)
    with environment.env.begin(write=True) as txn:
        txn.put(b"mark", mark, db=meta)
    return True


def release(environment: Environment) -> None:
    """Give an environment up; the last to do so closes it."""
    with _opening:
        environment.users -= 1
        if not environment.users:
            environment.close()
            for key in [key for key, found in _environments.items() if found is environment]:
                del _environments[key]
