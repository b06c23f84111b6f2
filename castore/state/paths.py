"""Where this machine keeps its own files of a store, and how it writes secret ones."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from typing import Final

from blake3 import blake3

from castore.errors import StorageError
from castore.storage.os_files import sync_if_supported

_WRITER_KEY: Final = "writer.key"
_IN_PLACE: Final = "in-place"
_PLACES: Final = "places"
"""The folder, in a store's state, with one folder for each place of the store or of its copies."""


@dataclass(frozen=True)
class MachinePaths:
    """The folders on this machine that hold files for each store, under its id."""

    state: str
    """State that must outlive caches: the writer key, what was seen of the store, locks, journals."""
    cache: str
    """Files that can be deleted at any time: the index and other caches."""

    @property
    def journals(self) -> str:
        """The folder of the journals of restores in place, for all stores."""
        return os.path.join(self.state, _IN_PLACE)

    def state_of(self, store_id: bytes) -> str:
        """Return the state folder of a store."""
        return os.path.join(self.state, store_id.hex())

    def writer_key_of(self, store_id: bytes) -> str:
        """Return the path of a store's writer key."""
        return os.path.join(self.state_of(store_id), _WRITER_KEY)

    def writer_keys(self) -> list[str]:
        """Return the possible paths of writer keys, for all stores that this machine has known."""
        stores = os.listdir(self.state) if os.path.isdir(self.state) else []
        return [os.path.join(self.state, store, _WRITER_KEY) for store in stores]

    def seen_of(self, store_id: bytes, place: str) -> str:
        """Return the path of what was seen of a store at a place, which reveals an older copy."""
        return os.path.join(self._state_at(store_id, place), "seen")

    def all_seen_of(self, store_id: bytes) -> list[str]:
        """Return the paths of what was seen of a store, at every place where this machine used it."""
        folder = os.path.join(self.state_of(store_id), _PLACES)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [os.path.join(folder, name, "seen") for name in names]

    def has_used(self, place: str) -> bool:
        """Return whether this machine has used a store, or a copy of one, at a place."""
        name = _folder_of(place)
        stores = os.listdir(self.state) if os.path.isdir(self.state) else []
        return any(os.path.isdir(os.path.join(self.state, one, _PLACES, name)) for one in stores)

    def ages_of(self, store_id: bytes, place: str) -> str:
        """Return the path of the record of how long objects have been seen in a store at a place."""
        return os.path.join(self._state_at(store_id, place), "ages")

    def verified_of(self, store_id: bytes, place: str) -> str:
        """Return the path of the record of verified packs of a store at a place."""
        return os.path.join(self._state_at(store_id, place), "verified")

    def events_of(self, store_id: bytes) -> str:
        """Return the path of the log of operations on the services of a store."""
        return os.path.join(self.state_of(store_id), "events")

    def index_of(self, store_id: bytes, place: str) -> str:
        """Return the folder of the index of a store at a place."""
        return os.path.join(self._cache_at(store_id, place), "index")

    def scans_of(self, store_id: bytes, place: str) -> str:
        """Return the folder of the scan cache of a store at a place."""
        return os.path.join(self._cache_at(store_id, place), "scan")

    def references_of(self, store_id: bytes, place: str) -> str:
        """Return the folder of the base cache of a store at a place."""
        return os.path.join(self._cache_at(store_id, place), "reference")

    # A copy of a store has the id of the original, but other objects: what was seen of one says nothing
    # about the other.

    def _state_at(self, store_id: bytes, place: str) -> str:
        return os.path.join(self.state_of(store_id), _PLACES, _folder_of(place))

    def _cache_at(self, store_id: bytes, place: str) -> str:
        return os.path.join(self.cache, store_id.hex(), _folder_of(place))


def _folder_of(place: str) -> str:
    return blake3(place.encode("utf-8", "surrogateescape")).hexdigest(8)


def refusal(doing: str, path: str, error: OSError) -> StorageError:
    """Return the error for an operation that this machine refused."""
    return StorageError(f"cannot {doing} {path}: {error.strerror or error}")


def make_private_directory(path: str) -> None:
    """Create `path` and its missing parents, accessible to the owner only. Raises StorageError."""
    missing = []
    step = os.path.abspath(path)
    while not os.path.isdir(step):
        missing.append(step)
        if (above := os.path.dirname(step)) == step:
            break
        step = above
    for step in reversed(missing):
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(step, 0o700)
            sync_if_supported(os.path.dirname(step))
        except OSError as error:
            raise refusal("create the directory", step, error) from error


def write_private(path: str, data: bytes) -> None:
    """Write `data` to the file `path`, durably, in one step, readable by its owner only.

    An existing file is replaced. Raises StorageError.
    """
    folder = os.path.dirname(path)
    make_private_directory(folder)
    part = f"{path}.{os.urandom(8).hex()}"
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(part, path)
        sync_if_supported(folder)
        # The process that created the folder may have been killed before it synced the folder's name.
        sync_if_supported(os.path.dirname(folder))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise refusal("write", path, error) from error


def read_private(path: str) -> str | None:
    """Return the text of a file, or None if it does not exist. Raises StorageError."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise refusal("read", path, error) from error
