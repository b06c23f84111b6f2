"""The state of services on this machine: locks, the live revision, the journal of a rollback, numbers.

Each item is a file of its own, written durably. File names contain the service tag, a keyed hash of the
service name, so that they do not reveal it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from castore.errors import StorageError
from castore.fs.durable import read_private, remove_private, sync_names, write_private
from castore.state.event_log import EventLog
from castore.state.first_seen import FirstSeen
from castore.state.locks import named_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from castore.state.paths import MachinePaths
    from castore.storage import Storage

_verified_encoder = msgspec.msgpack.Encoder()
_verified_decoder = msgspec.msgpack.Decoder(dict[bytes, bytes])


class ServiceState:
    """What this machine keeps about a store and its services, apart from keys and caches."""

    def __init__(
        self, paths: MachinePaths, storage: Storage, store_id: bytes, tag_of: Callable[[str], bytes]
    ) -> None:
        """Use the state of the store in `storage`. tag_of: returns a service's tag, which never changes."""
        self._folder = paths.state_of(store_id)
        self._location = storage.location
        self._tag_of = tag_of
        self._verified = paths.verified_of(store_id, storage.canonical_location)
        self._taken_over: dict[str, dict[str, int]] = {}
        self.event_log = EventLog(paths.events_of(store_id))
        """The log of operations on services of the store, on this machine."""
        self.first_seen = FirstSeen(paths.ages_of(store_id, storage.canonical_location))
        """How long this machine has seen objects in the store."""

    # Locks

    def lock(self, service: str) -> AbstractContextManager[None]:
        """Hold the lock of a service on this machine. Raises BusyError, StorageError."""
        return named_lock(self._file("locks", service), repr(service))

    def upkeep_lock(self) -> AbstractContextManager[None]:
        """Hold this machine's lock for removing from the store. Raises BusyError, StorageError."""
        path = os.path.join(self._folder, "locks", "upkeep")
        return named_lock(path, f"the upkeep of {self._location}")

    def guard_lock(self, service: str) -> AbstractContextManager[None]:
        """Hold the lock for one deployment of a service at a time; it does not block snapshots.

        Raises BusyError, StorageError.
        """
        return named_lock(self._file("guards", service), repr(service), "guarding a deployment of")

    def keys_lock(self) -> AbstractContextManager[None]:
        """Hold this machine's lock for changing the keys of the store. Raises BusyError, StorageError."""
        path = os.path.join(self._folder, "locks", "writer-key")
        return named_lock(path, f"the keys of {self._location}")

    # Revisions and origins

    def live_revision(self, service: str) -> str | None:
        """Return the revision to which the service's state on this machine was last set; or None."""
        text = read_private(self._file("live", service))
        return None if text is None else text.removesuffix("\n")

    def set_live_revision(self, service: str, revision: str) -> None:
        """Record the revision that the service's state on this machine belongs to. Raises StorageError."""
        path = self._file("live", service)
        if self.live_revision(service) == revision:
            # The content of a file is durable before its name; a process that wrote it may have been killed
            # before its name was.
            sync_names(path)
        else:
            write_private(path, revision.encode() + b"\n")

    def known_origins(self, service: str) -> str | None:
        """Return where snapshots on this machine took the parts of a service from, as JSON; or None."""
        return read_private(self._file("programs", service))

    def set_known_origins(self, service: str, origins: str) -> None:
        """Record where snapshots on this machine took parts from. Raises StorageError."""
        write_private(self._file("programs", service), origins.encode())

    # Generations

    def last_taken(self, service: str) -> int:
        """Return the number of the last generation that this machine took of a service; 0 if none."""
        return self._number("taken", service) or 0

    def set_last_taken(self, service: str, number: int) -> None:
        """Record that this machine takes a generation. Raises StorageError."""
        write_private(self._file("taken", service), f"{number}\n".encode())

    def taken_over(self, service: str) -> dict[str, int]:
        """Return the last generation that this host took over, by the key of its former host."""
        if service not in self._taken_over:
            text = read_private(self._file("taken-over", service)) or ""
            lines = (line.partition(" ") for line in text.splitlines())
            self._taken_over[service] = {key: int(number) for number, _, key in lines if number.isdecimal()}
        return self._taken_over[service]

    def take_over(self, service: str, keys: Collection[str], number: int) -> None:
        """Treat other hosts' generations, up to a number, as this host's own. Raises StorageError."""
        lines = "".join(f"{number} {key}\n" for key in sorted(keys))
        write_private(self._file("taken-over", service), lines.encode("utf-8", "surrogateescape"))
        self._taken_over.pop(service, None)

    # Rollbacks

    def has_rollback_journal(self, service: str) -> bool:
        """Return whether a rollback of a service has not ended; its journal may be unreadable."""
        return os.path.lexists(self._file("rollbacks", service))

    def rollback_journal(self, service: str) -> bytes | None:
        """Return the journal of a rollback that has not ended, or None. Raises StorageError."""
        try:
            with open(self._file("rollbacks", service), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the journal of the rollback of {service!r}: {error}") from error

    def write_rollback_journal(self, service: str, journal: bytes) -> None:
        """Write the journal of a rollback of a service, durably. Raises StorageError."""
        write_private(self._file("rollbacks", service), journal)

    def delete_rollback_journal(self, service: str) -> None:
        """Delete the journal of a rollback that has ended. Raises StorageError."""
        remove_private(self._file("rollbacks", service))

    def undo_number(self, service: str) -> int | None:
        """Return the number of the generation that the last rollback of a service kept; None if none."""
        return self._number("undo", service)

    def set_undo_number(self, service: str, number: int | None) -> None:
        """Record the number of the generation that a rollback kept. Raises StorageError."""
        write_private(self._file("undo", service), f"{number or ''}\n".encode())

    # Verification

    def verified_packs(self) -> dict[bytes, bytes]:
        """Return which packs were verified; empty if that was never recorded or is unreadable."""
        try:
            with open(self._verified, "rb") as file:
                return _verified_decoder.decode(file.read())
        except (OSError, msgspec.MsgspecError):
            return {}

    def set_verified_packs(self, verified: dict[bytes, bytes]) -> None:
        """Record which packs were verified, outside the cache. Raises StorageError."""
        write_private(self._verified, _verified_encoder.encode(verified))

    def _number(self, folder: str, service: str) -> int | None:
        text = read_private(self._file(folder, service)) or ""
        return int(text) if text.strip().isdecimal() else None

    def _file(self, folder: str, service: str) -> str:
        return os.path.join(self._folder, folder, self._tag_of(service).hex())
