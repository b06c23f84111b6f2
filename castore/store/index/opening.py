"""The open environments of this process: where an index may be, when it is replaced, what errors say."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from typing import Any, Final

import lmdb

from castore.errors import StorageError
from castore.fs.durable import make_private_directory
from castore.fs.filesystem import network_of
from castore.store.index.lmdb_env import Environment
from castore.store.index.lmdb_files import BROKEN, CRASHES, LEAST_STEP, kept_in_place
from castore.store.index.schema import MARK

_VERSION: Final = b"7"
"""Version of the layout of the tables. An index with another one is replaced."""
_TRIES: Final = 100
_ELSEWHERE: Final = "or move the cache: set XDG_CACHE_HOME to another folder"

_environments: dict[tuple[int, str], Environment] = {}
_opening = threading.Lock()


def refusal(path: str, error: Exception, environment: Environment | None = None) -> StorageError:
    """Return the error for a failure of the index in `path`, with what to do next.

    environment: the open environment, which is marked corrupt if the failure shows damage.
    """
    hint = ""
    number = error.errno if isinstance(error, OSError) else None
    if not isinstance(error, lmdb.Error | OSError | MemoryError) or isinstance(error, BROKEN):
        if environment is not None and environment.mark_corrupt():
            hint = "; it is damaged: try again, and it is rebuilt from the store"
        else:
            hint = "; it is damaged: delete that folder, and it is rebuilt from the store"
    elif isinstance(error, lmdb.DiskError) or number in {errno.ENOSPC, errno.EDQUOT} or _is_full(path):
        hint = f"; free some space there, {_ELSEWHERE}"
    elif isinstance(error, lmdb.ReadonlyError) or number in {errno.EROFS, errno.EACCES, errno.EPERM}:
        hint = f"; let this user write there, {_ELSEWHERE}"
    elif isinstance(error, lmdb.MemoryError | MemoryError):
        hint = "; it needs more address space than this process may have: raise the limit with 'ulimit -v'"
    elif isinstance(error, lmdb.ReadersFullError):
        hint = "; too many processes read from it at this moment: try again when some of them have ended"
    return StorageError(f"the index in {path} does not work: {error}{hint}")


def _is_full(path: str) -> bool:
    """Return whether the disk is almost full: LMDB reports a short write only as an I/O error."""
    with contextlib.suppress(OSError):
        filesystem = os.statvfs(path)
        return filesystem.f_bavail * filesystem.f_frsize < LEAST_STEP // 16
    return False


def refuse_place(path: str) -> None:
    """Refuse a folder that cannot hold an index, or that others may write to. Raises StorageError."""
    if (network := network_of(path)) is not None:
        raise StorageError(
            f"the index cannot be in {path}, which is on a network file system ({network}): LMDB needs a "
            "local one; set XDG_CACHE_HOME to a folder on a local disk"
        )
    status = os.stat(path)
    if status.st_uid != os.geteuid():
        raise StorageError(
            f"{path} belongs to user {status.st_uid}, and castore runs as user {os.geteuid()}: only its "
            "owner may use an index; run castore as that user, or set XDG_CACHE_HOME to a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise StorageError(
            f"other users can write to {path}, and could have changed the index in it: remove the folder, "
            "and the index is rebuilt from the store"
        )


def acquire(path: str, store_id: bytes) -> Environment:
    """Open the environment, or share the open one; replace what is not an intact index of this store.

    Raises StorageError.
    """
    with _opening:
        key = (os.getpid(), os.path.realpath(path))
        # Environments that were open before a fork are the parent's; closing them here does not touch those.
        for other in [environment for environment in _environments if environment[0] != key[0]]:
            _environments.pop(other).close()
        found = _environments.get(key)
        # A damaged environment is left to its present users.
        if found is None or found.corrupt:
            found = _open_or_create(path, store_id)
            _environments[key] = found
        found.users += 1
        return found


def _open_or_create(path: str, store_id: bytes) -> Environment:
    found, tries = None, 0
    while found is None:
        tries += 1
        try:
            make_private_directory(path)
        except StorageError as error:
            raise StorageError(
                f"{error}; the index belongs there: let this user write there, {_ELSEWHERE}"
            ) from None
        try:
            refuse_place(path)
            with kept_in_place(path, shared=True):
                found = _open_intact(path, store_id)
            if found is None:
                found = _remove_unusable(path, store_id)
        except (lmdb.Error, OSError) as error:
            # Another process may move the folder away at any moment, to replace the index.
            if not isinstance(error, FileNotFoundError) or tries == _TRIES:
                raise refusal(path, error) from error
    return found


def _remove_unusable(path: str, store_id: bytes) -> Environment | None:
    """Remove an unusable index; but if another process has already replaced it, open that one."""
    aside = f"{path}.{os.urandom(8).hex()}"
    with kept_in_place(path, shared=False):
        if (found := _open_intact(path, store_id)) is not None:
            return found
        # Rename first, in one step: a partly removed index could look intact.
        os.rename(path, aside)
    import shutil

    shutil.rmtree(aside, ignore_errors=True)
    return None


def _open_intact(path: str, store_id: bytes) -> Environment | None:
    """Open an existing index; None if it is damaged, or has another layout or store."""
    with contextlib.suppress(OSError):
        if os.path.getsize(os.path.join(path, CRASHES)):
            return None
    try:
        environment = Environment(path)
    except BROKEN:
        return None
    try:
        if _claim(environment, store_id):
            return environment
    except BROKEN:
        pass
    environment.close()
    return None


def mark_of(store_id: bytes) -> bytes:
    """Return the mark that identifies an index of this layout and store."""
    return _VERSION + store_id


def _claim(environment: Environment, store_id: bytes) -> bool:
    """Mark an empty environment as this store's index; return whether it is this store's index now."""
    mark = mark_of(store_id)
    meta = environment.tables["meta"]

    def claim(txn: Any) -> bool:
        if (found := txn.get(MARK, db=meta)) is None:
            txn.put(MARK, mark, db=meta)
        return found in {None, mark}

    with environment.reading() as txn:
        if (found := txn.get(MARK, db=meta)) is not None:
            return bool(found == mark)
    return environment.write(claim)


def release(environment: Environment) -> None:
    """Release an environment; its last user closes it."""
    with _opening:
        environment.users -= 1
        if not environment.users:
            environment.close()
            for key in [key for key, found in _environments.items() if found is environment]:
                del _environments[key]
