"""The paths of the files that this machine keeps of a store, of each store and of all."""

from __future__ import annotations

import os
from typing import Final

import msgspec
from blake3 import blake3

_WRITER_KEY: Final = "writer.key"
_IN_PLACE: Final = "in-place"
_LOCATIONS: Final = "locations"
"""The folder, in a store's state, with one folder for each location of the store or of its copies."""


class MachinePaths(msgspec.Struct, frozen=True):
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

    def seen_of(self, store_id: bytes, location: str) -> str:
        """Return the path of what was seen of a store at a location, which reveals an older copy."""
        return os.path.join(self._state_at(store_id, location), "seen")

    def all_seen_of(self, store_id: bytes) -> list[str]:
        """Return the paths of what was seen of a store, at every location where this machine used it."""
        folder = os.path.join(self.state_of(store_id), _LOCATIONS)
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return [os.path.join(folder, name, "seen") for name in names]

    def has_used(self, location: str) -> bool:
        """Return whether this machine has used a store, or a copy of one, at a location."""
        name = _folder_of(location)
        stores = os.listdir(self.state) if os.path.isdir(self.state) else []
        return any(os.path.isdir(os.path.join(self.state, store, _LOCATIONS, name)) for store in stores)

    def ages_of(self, store_id: bytes, location: str) -> str:
        """Return the path of the record of how long objects have been seen in a store at a location."""
        return os.path.join(self._state_at(store_id, location), "ages")

    def restores_of(self, store_id: bytes, location: str) -> str:
        """Return the path of the record of restores in place from a store at a location."""
        return os.path.join(self._state_at(store_id, location), "restores")

    def verified_of(self, store_id: bytes, location: str) -> str:
        """Return the path of the record of verified packs of a store at a location."""
        return os.path.join(self._state_at(store_id, location), "verified")

    def events_of(self, store_id: bytes) -> str:
        """Return the path of the log of operations on the services of a store."""
        return os.path.join(self.state_of(store_id), "events")

    def index_of(self, store_id: bytes, location: str) -> str:
        """Return the folder of the index of a store at a location."""
        return os.path.join(self._cache_at(store_id, location), "index")

    def scans_of(self, store_id: bytes, location: str) -> str:
        """Return the folder of the scan cache of a store at a location."""
        return os.path.join(self._cache_at(store_id, location), "scan")

    def base_cache_of(self, store_id: bytes, location: str) -> str:
        """Return the folder of the base cache of a store at a location."""
        return os.path.join(self._cache_at(store_id, location), "base-cache")

    # A copy of a store has the id of the original, but other objects: what was seen of one says nothing
    # about the other.

    def _state_at(self, store_id: bytes, location: str) -> str:
        return os.path.join(self.state_of(store_id), _LOCATIONS, _folder_of(location))

    def _cache_at(self, store_id: bytes, location: str) -> str:
        return os.path.join(self.cache, store_id.hex(), _folder_of(location))


def _folder_of(location: str) -> str:
    return blake3(location.encode("utf-8", "surrogateescape")).hexdigest(8)
