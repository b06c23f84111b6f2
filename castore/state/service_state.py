"""What this machine keeps of the services of a store: locks, the live revision, journals of rollbacks."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from castore.errors import StorageError
from castore.fs.durable import read_private, remove_private, write_private
from castore.model.hosts import Host, begins_id
from castore.model.names import host_name
from castore.model.odd_text import escaped
from castore.state.event_log import EventLog
from castore.state.first_seen import FirstSeen
from castore.state.locks import named_lock

if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from contextlib import AbstractContextManager

    from castore.crypto import WriterKey
    from castore.model.generation import Generation
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig
    from castore.store.index import Index


_verified_encoder = msgspec.msgpack.Encoder()
_verified_decoder = msgspec.msgpack.Decoder(dict[bytes, bytes])


class Remembered:
    """The part of a store that is kept in this machine's state, one file per item and service."""

    storage: Storage
    places: MachinePaths
    store_id: bytes
    writer_key: WriterKey
    config: StoreConfig
    index: Index
    configured_host: str = ""
    """`host` of castore.toml."""
    former_hosts: Collection[str] = ()
    """`former-hosts` of castore.toml: earlier names of this host, or beginnings of its ids."""
    configured_recipients: Collection[str] = ()
    """`recipients` of castore.toml, as text; empty if it is not set."""
    isolate_writers: bool = False
    """`isolate-writers` of castore.toml: new snapshots share no content that another machine added."""
    chosen_host: str | None = None
    """The host whose generations are selected: ALL_HOSTS for every host, None for this one."""
    say: Callable[[str], None] = staticmethod(lambda _text: None)
    """Receives messages for the user about a selection."""

    @property
    def host(self) -> Host:
        """This host, as recorded in generations. Raises IdentityError if this machine may not add."""
        return Host(self.host_name, self.writer_key.signer.public.hex())

    @property
    def host_name(self) -> str:
        """The certified name of this machine, or else its name in castore.toml or in the system."""
        return self.certified_host or self.configured_host or host_name(escaped(os.uname().nodename))

    @property
    def certified_host(self) -> str:
        """The name under which this machine is certified; empty if it is not."""
        machine = self.writer_key.machine
        found = self.config.certificate(machine.signing.public) if machine is not None else None
        return "" if found is None or found.revoked else found.host

    def is_own(self, generation: Generation) -> bool:
        """Return whether a generation belongs to this host, or to one that this host took over."""
        return self.is_of_this_host(generation) or generation.number <= self._taken_over(
            generation.service
        ).get(self.host_key(generation), 0)

    def is_of_this_host(self, generation: Generation) -> bool:
        """Return whether a generation was taken on this host."""
        if self.former_hosts and self._is_former(generation):
            return True
        return self.host_key(generation) == self.host_name

    def _is_former(self, generation: Generation) -> bool:
        return generation.host in self.former_hosts or any(
            begins_id(generation.host_id, one) for one in self.former_hosts
        )

    def host_key(self, generation: Generation) -> str:
        """Return the present name of a generation's host: the host of the key that signed it."""
        return self._present_names.get(generation.host_id, generation.host)

    @property
    def _present_names(self) -> dict[str, str]:
        """The present host name of each machine, by its key in hex."""
        config, known = self.config, self.__dict__.get("_names")
        if known is None or known[0] is not config:
            known = config, {one.key.hex(): one.host for one in config.writers}
            self.__dict__["_names"] = known
        names: dict[str, str] = known[1]
        return names

    def last_taken(self, service: str) -> int:
        """Return the number of the last generation that this machine took of a service; 0 if none."""
        text = read_private(self._state_file("taken", service)) or ""
        return int(text) if text.strip().isdecimal() else 0

    def note_taken(self, service: str, number: int) -> None:
        """Record that this machine takes a generation. Raises StorageError."""
        write_private(self._state_file("taken", service), f"{number}\n".encode())

    def _taken_over(self, service: str) -> dict[str, int]:
        """Return the last generation taken over, by the key of its former host."""
        if service not in self._overtaken:
            text = read_private(self._state_file("taken-over", service)) or ""
            lines = (line.partition(" ") for line in text.splitlines())
            self._overtaken[service] = {key: int(number) for number, _, key in lines if number.isdecimal()}
        return self._overtaken[service]

    @cached_property
    def _overtaken(self) -> dict[str, dict[str, int]]:
        return {}

    def take_over(self, service: str, keys: Collection[str], number: int) -> None:
        """Treat other hosts' generations, up to a number, as this host's own. Raises StorageError."""
        lines = "".join(f"{number} {key}\n" for key in sorted(keys))
        write_private(self._state_file("taken-over", service), lines.encode("utf-8", "surrogateescape"))
        self._overtaken.pop(service, None)

    def lock(self, service: str) -> AbstractContextManager[None]:
        """Hold the lock of a service on this machine. Raises BusyError, StorageError."""
        return named_lock(self._state_file("locks", service), repr(service))

    def upkeep_lock(self) -> AbstractContextManager[None]:
        """Hold this machine's lock for removing from the store. Raises BusyError, StorageError."""
        path = os.path.join(self.places.state_of(self.store_id), "locks", "upkeep")
        return named_lock(path, f"the upkeep of {self.storage.location}")

    def guard_lock(self, service: str) -> AbstractContextManager[None]:
        """Hold the lock for one deployment of a service at a time; it does not block snapshots.

        Raises BusyError, StorageError.
        """
        path = self._state_file("guards", service)
        return named_lock(path, repr(service), "guarding a deployment of")

    @property
    def event_log(self) -> EventLog:
        """The log of operations on services of the store, on this machine."""
        return EventLog(self.places.events_of(self.store_id))

    def keep_verified(self) -> None:
        """Record verified packs in the state, where they outlive the cache. Raises StorageError."""
        path = self.places.verified_of(self.store_id, self.storage.place)
        write_private(path, _verified_encoder.encode(self.index.verification.results()))

    def _recall_verified(self) -> None:
        """Load which packs were verified from the state into a new index."""
        if self.index.verification.is_loaded():
            return
        found = {}
        try:
            with open(self.places.verified_of(self.store_id, self.storage.place), "rb") as file:
                found = _verified_decoder.decode(file.read())
        except (OSError, msgspec.MsgspecError):
            pass  # Never written, or unreadable: the packs then count as not verified.
        self.index.verification.load(found)

    @property
    def first_seen(self) -> FirstSeen:
        """How long this machine has seen objects in the store."""
        return FirstSeen(self.places.ages_of(self.store_id, self.storage.place))

    def live_revision(self, service: str) -> str | None:
        """Return the revision to which the service's state on this machine was last set; or None."""
        text = read_private(self._state_file("live", service))
        return None if text is None else text.removesuffix("\n")

    def set_live_revision(self, service: str, revision: str) -> None:
        """Remember the revision that the service's state on this machine belongs to."""
        path = self._state_file("live", service)
        write_private(path, revision.encode() + b"\n")

    def remember_rollback(self, service: str, journal: bytes) -> None:
        """Write the journal of a rollback of a service, durably. Raises StorageError."""
        write_private(self._state_file("rollbacks", service), journal)

    def known_origins(self, service: str) -> str | None:
        """Return where snapshots on this machine took the parts of a service from, as JSON; or None."""
        return read_private(self._state_file("programs", service))

    def set_known_origins(self, service: str, origins: str) -> None:
        """Remember where snapshots on this machine took parts from. Raises StorageError."""
        write_private(self._state_file("programs", service), origins.encode())

    def has_begun_rollback(self, service: str) -> bool:
        """Return whether a rollback of a service has not ended; its journal may be unreadable."""
        return os.path.lexists(self._state_file("rollbacks", service))

    def begun_rollback(self, service: str) -> bytes | None:
        """Return the journal of a rollback that has not ended, or None. Raises StorageError."""
        try:
            with open(self._state_file("rollbacks", service), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the journal of the rollback of {service!r}: {error}") from error

    def forget_rollback(self, service: str) -> None:
        """Delete the journal of a rollback that has ended. Raises StorageError."""
        remove_private(self._state_file("rollbacks", service))

    def undo_number(self, service: str) -> int | None:
        """Return the number of the generation that the last rollback of a service kept; None if none."""
        text = read_private(self._state_file("undo", service)) or ""
        return int(text) if text.strip().isdecimal() else None

    def set_undo(self, service: str, number: int | None) -> None:
        """Remember the number of the generation that a rollback kept."""
        write_private(self._state_file("undo", service), f"{number or ''}\n".encode())

    def _state_file(self, folder: str, service: str) -> str:
        state = self.places.state_of(self.store_id)
        return os.path.join(state, folder, self.writer_key.oldest.tag(service).hex())
