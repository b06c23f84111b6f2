"""What this machine keeps of the services of a store, outside of it: locks, the live revision, journals."""

from __future__ import annotations

import contextlib
import os
from functools import cached_property
from typing import TYPE_CHECKING

import msgspec

from castore.errors import StorageError
from castore.model.hosts import Host, begins_id
from castore.model.names import host_name
from castore.model.odd_text import escaped
from castore.state.event_log import EventLog
from castore.state.first_seen import FirstSeen
from castore.state.locks import named_lock
from castore.state.paths import read_private, write_private
from castore.storage.os_files import sync_if_supported

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
    """The part of a store that lies in this machine's state, a file for each thing and service."""

    storage: Storage
    places: MachinePaths
    store_id: bytes
    writer_key: WriterKey
    config: StoreConfig
    index: Index
    configured_host: str = ""
    """`host` of castore.toml."""
    former_hosts: Collection[str] = ()
    """`former-hosts` of castore.toml: names, or beginnings of ids, that this host had before."""
    configured_recipients: Collection[str] = ()
    """`recipients` of castore.toml, as text; empty: it does not say."""
    isolate_writers: bool = False
    """`isolate-writers` of castore.toml: new snapshots share nothing that another machine has added."""
    chosen_host: str | None = None
    """The host whose generations are selected, and ALL_HOSTS for every one; None: this one."""
    say: Callable[[str], None] = staticmethod(lambda _text: None)
    """Receives what the user should know of a selection."""

    @property
    def host(self) -> Host:
        """This host, as generations record it. Raises IdentityError if this machine may add nothing."""
        return Host(self.host_name, self.writer_key.signer.public.hex())

    @property
    def host_name(self) -> str:
        """The certified name of this machine; else the one that castore.toml or the system gives it."""
        return self.certified_host or self.configured_host or host_name(escaped(os.uname().nodename))

    @property
    def certified_host(self) -> str:
        """The name under which this machine is certified; empty: it is not."""
        machine = self.writer_key.machine
        found = self.config.certificate(machine.signing.public) if machine is not None else None
        return "" if found is None or found.revoked else found.host

    def is_own(self, generation: Generation) -> bool:
        """Whether a generation belongs to this host, or to one that it took over from."""
        return self.is_of_this_host(generation) or generation.number <= self._taken_over(
            generation.service
        ).get(self.host_key(generation), 0)

    def is_of_this_host(self, generation: Generation) -> bool:
        """Whether a generation was taken on this host."""
        if self.former_hosts and self._is_former(generation):
            return True
        return self.host_key(generation) == self.host_name

    def _is_former(self, generation: Generation) -> bool:
        return generation.host in self.former_hosts or any(
            begins_id(generation.host_id, one) for one in self.former_hosts
        )

    def host_key(self, generation: Generation) -> str:
        """Return the present name of a generation's host: that of the key that signed it."""
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
        """Return the last generation that this machine took of a service; 0: none is known."""
        text = read_private(self._state_file("taken", service)) or ""
        return int(text) if text.strip().isdecimal() else 0

    def note_taken(self, service: str, number: int) -> None:
        """Note that this machine takes a generation. Raises StorageError."""
        write_private(self._state_file("taken", service), f"{number}\n".encode())

    def _taken_over(self, service: str) -> dict[str, int]:
        """Return the last generation that counts as this host's own, by the key of its former host."""
        if service not in self._overtaken:
            text = read_private(self._state_file("taken-over", service)) or ""
            lines = (line.partition(" ") for line in text.splitlines())
            self._overtaken[service] = {key: int(number) for number, _, key in lines if number.isdecimal()}
        return self._overtaken[service]

    @cached_property
    def _overtaken(self) -> dict[str, dict[str, int]]:
        return {}

    def take_over(self, service: str, keys: Collection[str], number: int) -> None:
        """Let other hosts' generations, up to a number, count as this host's own. Raises StorageError."""
        lines = "".join(f"{number} {key}\n" for key in sorted(keys))
        write_private(self._state_file("taken-over", service), lines.encode("utf-8", "surrogateescape"))
        self._overtaken.pop(service, None)

    def lock(self, service: str) -> AbstractContextManager[None]:
        """Hold the lock of a service on this machine. Raises BusyError."""
        return named_lock(self._state_file("locks", service), repr(service))

    def upkeep_lock(self) -> AbstractContextManager[None]:
        """Hold the lock of what removes from the store, on this machine. Raises BusyError."""
        path = os.path.join(self.places.state_of(self.store_id), "locks", "upkeep")
        return named_lock(path, f"the upkeep of {self.storage.location}")

    def guard_lock(self, service: str) -> AbstractContextManager[None]:
        """Hold what one deployment of a service has at a time; snapshots go on. Raises BusyError."""
        path = self._state_file("guards", service)
        return named_lock(path, repr(service), "guarding a deployment of")

    @property
    def event_log(self) -> EventLog:
        """The log of what was done to services of the store, on this machine."""
        return EventLog(self.places.events_of(self.store_id))

    def keep_verified(self) -> None:
        """Keep what verification found of packs in the state, where no cache is lost. Raises StorageError."""
        path = self.places.verified_of(self.store_id, self.storage.place)
        write_private(path, _verified_encoder.encode(self.index.verification()))

    def _recall_verified(self) -> None:
        """Fill an index that is new with what verification found of packs, from the state."""
        if self.index.is_recalled():
            return
        found = {}
        try:
            with open(self.places.verified_of(self.store_id, self.storage.place), "rb") as file:
                found = _verified_decoder.decode(file.read())
        except (OSError, msgspec.MsgspecError):
            pass  # Never written, or unreadable: the packs have not been verified, then.
        self.index.recall_verification(found)

    @property
    def ages(self) -> FirstSeen:
        """For how long this machine has seen things in the store."""
        return FirstSeen(self.places.ages_of(self.store_id, self.storage.place))

    def live_revision(self, service: str) -> str | None:
        """Return the revision that the service's state on this machine was last put to."""
        text = read_private(self._state_file("live", service))
        return None if text is None else text.removesuffix("\n")

    def set_live_revision(self, service: str, revision: str) -> None:
        """Remember the revision that the service's state on this machine belongs to."""
        path = self._state_file("live", service)
        write_private(path, revision.encode() + b"\n")

    def remember_rollback(self, service: str, journal: bytes) -> None:
        """Keep, durably, how far a roll-back of a service has got. Raises StorageError."""
        write_private(self._state_file("rollbacks", service), journal)

    def known_origins(self, service: str) -> str | None:
        """Return where snapshots on this machine took the parts of a service from, as JSON."""
        return read_private(self._state_file("programs", service))

    def set_known_origins(self, service: str, origins: str) -> None:
        """Remember where snapshots on this machine took parts from. Raises StorageError."""
        write_private(self._state_file("programs", service), origins.encode())

    def has_begun_rollback(self, service: str) -> bool:
        """Whether a rollback of a service has not ended; its journal may be unreadable."""
        return os.path.lexists(self._state_file("rollbacks", service))

    def begun_rollback(self, service: str) -> bytes | None:
        """Return the journal of a rollback that has not ended. Raises StorageError."""
        try:
            with open(self._state_file("rollbacks", service), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read the journal: {error}") from error

    def forget_rollback(self, service: str) -> None:
        """A roll-back has ended."""
        path = self._state_file("rollbacks", service)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
            sync_if_supported(os.path.dirname(path))

    def undo_number(self, service: str) -> int | None:
        """Return the generation that the last roll-back of a service kept; None if it kept none."""
        text = read_private(self._state_file("undo", service)) or ""
        return int(text) if text.strip().isdecimal() else None

    def set_undo(self, service: str, number: int | None) -> None:
        """Remember the generation that a roll-back kept."""
        write_private(self._state_file("undo", service), f"{number or ''}\n".encode())

    def _state_file(self, folder: str, service: str) -> str:
        state = self.places.state_of(self.store_id)
        return os.path.join(state, folder, self.writer_key.oldest.tag(service).hex())
