"""A store in a local directory.

An object is written to a file under `tmp/` and synced. Then it is linked to its name, and the directory of
the name is synced. After a loss of power an object exists completely or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Final

from castore.errors import (
    CastoreError,
    DamageError,
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    StorageFullError,
)
from castore.fs.durable import NO_SYNC, give_new_name
from castore.storage.base import MAX_WHOLE, Storage, Writer
from castore.storage.os_files import FILES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.storage.os_files import Files

_TMP: Final = "tmp"
_SHARED: Final = "flags/shared"
"""The object that records that not every user of the directory sees its lock."""
_STALE_SECONDS: Final = 7 * 86400
"""Temporary files older than this are abandoned: no snapshot writes one pack for a week."""
_FRESH_SECONDS: Final = 60
"""Far longer than it takes to lock a newly created file."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT}


def _refusal(doing: str, path: str, error: OSError) -> StorageError:
    hint = {
        errno.ENOSPC: "; free some space there; committed generations are intact",
        errno.EDQUOT: "; its quota is used up; committed generations are intact",
        errno.EROFS: "; it is mounted read-only",
        errno.EACCES: "; run castore as a user who has the permission",
        errno.EPERM: "; run castore as a user who has the permission",
    }.get(error.errno or 0, "")
    if doing == "make durable" and error.errno in NO_SYNC:
        hint = "; its file system does not support fsync there: keep the store on one that does"
    kind = StorageFullError if error.errno in _FULL else StorageError
    return kind(f"cannot {doing} {path}: {error.strerror or error}{hint}")


def _sync_refusal(path: str, error: OSError) -> StorageError:
    """Return the error for a directory that could not be synced. The caller must not retry the sync."""
    return StorageError(str(_refusal("make durable", path, error)))


class _LocalWriter(Writer):
    def __init__(self, root: str, files: Files, folders: set[str]) -> None:
        self._root = root
        self._files = files
        self._folders = folders
        self._path = os.path.join(root, _TMP, os.urandom(16).hex())
        self._error: CastoreError | None = None
        try:
            try:
                self._descriptor = files.create(self._path)
            except FileNotFoundError:
                # A copy of a store may lack the empty folder.
                with contextlib.suppress(FileExistsError):
                    files.mkdir(os.path.dirname(self._path))
                self._descriptor = files.create(self._path)
        except OSError as error:
            raise _refusal("write to", os.path.dirname(self._path), error) from error

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._refuse_if_failed()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[self._files.write(self._descriptor, rest) :]
        except OSError as error:
            raise self._fail(_refusal("write to", self._root, error)) from error

    def commit(self, name: str) -> None:
        self._refuse_if_failed()
        path = os.path.join(self._root, name)
        try:
            # After a failed fsync the kernel may forget the pages it could not write and report
            # success the next time (the "fsyncgate" of 2018): never retry, abandon the file.
            self._files.fsync(self._descriptor)
            self._name(path)
            self._sync_directory(os.path.dirname(path))
            self._close()
        except FileExistsError as error:
            self.abort()
            self._error = ObjectExistsError(f"{path} exists already, and objects are never replaced")
            raise self._error from error
        except OSError as error:
            raise self._fail(_refusal("make durable", self._root, error)) from error

    def _sync_directory(self, folder: str) -> None:
        try:
            self._files.sync_directory(folder)
        except OSError as error:
            raise self._fail(_sync_refusal(folder, error)) from error

    def _name(self, path: str) -> None:
        """Link the file to its name. Raises FileExistsError if the name is taken."""
        folder = os.path.dirname(path)
        if folder in self._folders:
            with contextlib.suppress(FileNotFoundError):
                give_new_name(self._path, path, self._files)
                return
        # An existing folder may have been created by a castore that was killed before it synced the name.
        # Only this one folder: a store that is missing, unmounted say, must not be created again.
        with contextlib.suppress(FileExistsError):
            self._files.mkdir(folder)
        self._sync_directory(os.path.dirname(folder))
        self._folders.add(folder)
        give_new_name(self._path, path, self._files)

    def abort(self) -> None:
        if self._descriptor >= 0:
            self._close()
            with contextlib.suppress(OSError):
                self._files.unlink(self._path)
        if self._error is None:
            self._error = StorageError(f"{self._path} was closed")

    def _close(self) -> None:
        """Close the file. Whether it is usable is decided before; it is never closed twice (close(2))."""
        descriptor, self._descriptor = self._descriptor, -1
        with contextlib.suppress(OSError):
            self._files.close(descriptor)

    def _fail(self, failure: StorageError) -> StorageError:
        self.abort()
        self._error = failure
        return failure

    def _refuse_if_failed(self) -> None:
        if self._error is not None:
            raise self._error


class LocalStorage(Storage):
    """The directory `path`; with `create`, it is created if it does not exist.

    files: the file system that it is in. Raises NotFoundError, StorageError.
    """

    forks = True

    def __init__(self, path: str, *, create: bool = False, files: Files = FILES) -> None:
        self._root = os.path.abspath(path)
        self._files = files
        self._folders = {self._root}
        """The folders whose own names are known to be durable."""
        try:
            if create:
                self._make()
            self._files.listdir(self._root)
            self._sweep()
        except FileNotFoundError:
            raise NotFoundError(f"no store at {self._root}: there is no such directory") from None
        except NotADirectoryError:
            raise NotFoundError(f"no store at {self._root}: it is not a directory") from None
        except OSError as error:
            raise _refusal("open the store at", self._root, error) from error

    @property
    def location(self) -> str:
        """The directory, as an absolute path."""
        return self._root

    @property
    def canonical_location(self) -> str:
        """The directory without symbolic links: each directory has one name."""
        return os.path.realpath(self._root)

    def create(self) -> Writer:
        """Begin a new object in `tmp/`."""
        return _LocalWriter(self._root, self._files, self._folders)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        files = self._files
        path = os.path.join(self._root, name)
        try:
            descriptor = files.open(path)
            try:
                if length is None:
                    length = max(files.length(descriptor) - offset, 0)
                    if length > MAX_WHOLE:
                        raise DamageError(
                            f"{name} is damaged: it has {length:,} bytes, more than castore writes"
                        )
                parts = []
                while length > 0 and (data := files.pread(descriptor, length, offset)):
                    parts.append(data)
                    offset += len(data)
                    length -= len(data)
            finally:
                files.close(descriptor)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except OSError as error:
            raise self._read_error(path, error) from error

    def size(self, name: str) -> int:
        """Return an object's length."""
        path = os.path.join(self._root, name)
        try:
            return self._files.stat(path)[0]
        except OSError as error:
            raise self._read_error(path, error) from error

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder."""
        path = os.path.join(self._root, folder)
        try:
            names = self._files.listdir(path)
        except FileNotFoundError as error:
            if not self._files.is_directory(self._root):
                raise _refusal("list", self._root, error) from error
            return
        except OSError as error:
            raise _refusal("list", path, error) from error
        yield from (name for name in names if name > after) if after else names

    def delete(self, name: str) -> None:
        """Delete an object, durably."""
        path = os.path.join(self._root, name)
        try:
            self._files.unlink(path)
            self._files.sync_directory(os.path.dirname(path))
        except FileNotFoundError:
            raise ObjectMissingError(f"{path} does not exist") from None
        except OSError as error:
            raise _refusal("remove", path, error) from error

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects; each directory is synced once."""
        folders = set()
        try:
            for name in names:
                path = os.path.join(self._root, name)
                with contextlib.suppress(FileNotFoundError):
                    self._files.unlink(path)
                    folders.add(os.path.dirname(path))
            for folder in sorted(folders):
                self._files.sync_directory(folder)
        except OSError as error:
            raise _refusal("remove objects of", self._root, error) from error

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Hold a lock on the store's directory, unless other machines may use it, too.

        A machine with a local disk cannot see that the directory is exported over a network. So the first
        machine that mounts it over a network records that in the store.
        """
        try:
            lock = self._files.lock(self._root, exclusive=exclusive)
            shared = self._files.exists(os.path.join(self._root, _SHARED))
        except OSError as error:
            raise _refusal("lock", self._root, error) from error
        try:
            if lock is None and not shared:
                with contextlib.suppress(ObjectExistsError):
                    self.put(_SHARED, b"castore: other machines use this directory, and see no lock of it\n")
            yield lock is not None and not shared
        finally:
            if lock is not None:
                with contextlib.suppress(OSError):
                    self._files.close(lock)

    def sync_dir(self, folder: str) -> None:
        """Sync a folder, and its own name."""
        path = os.path.join(self._root, folder)
        try:
            self._files.sync_directory(path)
            if path not in self._folders:
                # It covers the names of all folders that existed before: they need no sync of their own.
                existing = self._files.listdir(self._root)
                self._files.sync_directory(self._root)
                self._folders.update(os.path.join(self._root, name) for name in existing)
                self._folders.add(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _sync_refusal(path, error) from error

    def _make(self) -> None:
        """Create the store's directory and missing parents, each durable before its content."""
        steps = [os.path.join(self._root, _TMP)]
        while not self._files.is_directory(steps[-1]) and steps[-1] != os.path.dirname(steps[-1]):
            steps.append(os.path.dirname(steps[-1]))
        # The last one exists. Its creator may not have synced it; or it belongs to another user, like
        # its parent directory, which we may not be able to read.
        with contextlib.suppress(OSError):
            self._files.sync_directory(os.path.dirname(steps.pop()))
        for step in reversed(steps):
            with contextlib.suppress(FileExistsError):
                self._files.mkdir(step)
            self._files.sync_directory(os.path.dirname(step))

    def _sweep(self) -> None:
        """Delete files that killed writers left in `tmp/`.

        For files of this machine alone, it is known which ones are abandoned; if other machines write there,
        too, their age decides.
        """
        folder = os.path.join(self._root, _TMP)
        now = time.time()
        names = self._files.listdir(folder) if self._files.is_directory(folder) else []
        alone = bool(names) and not self._files.exists(os.path.join(self._root, _SHARED))
        for name in names:
            path = os.path.join(folder, name)
            with contextlib.suppress(OSError):
                age = now - self._files.stat(path)[1]
                known = alone and age > _FRESH_SECONDS
                if age > _STALE_SECONDS or (known and self._files.is_abandoned(path)):
                    self._files.unlink(path)

    @staticmethod
    def _read_error(path: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(f"{path} does not exist")
        return _refusal("read", path, error)
