"""The recipients of a store, the machines that may add to it, and the writer key that it is written with."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from castore.crypto import Recipient
from castore.errors import (
    ConfigError,
    DamageError,
    FormatError,
    KeyRotatedError,
    ObjectMissingError,
    UsageError,
)
from castore.kernel import Cutter
from castore.state.locks import named_lock
from castore.state.service_state import Remembered
from castore.state.writer_key_file import keep_accepted
from castore.store.format.config import CONFIGS, config_numbers
from castore.store.format.rotation import ROTATIONS, decode_rotation, read_rotation, with_config
from castore.store.format.session_key import session_name, session_numbers
from castore.store.keys import replicas
from castore.store.keys.keyring import Keyring
from castore.store.keys.trust import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from castore.crypto import Identity, SigningKey
    from castore.model.refs import SessionId
    from castore.state.freshness import FreshnessGuard
    from castore.store.format.config import SealedConfig, StoreConfig
    from castore.store.format.session_key import SessionRecord
    from castore.store.index import Index
    from castore.store.keys.keyring import IdentitySource
    from castore.store.keys.trust import Accepted, Opener


class Keyed(Remembered):
    """A store's keys and recipients, as of the last check of the configuration."""

    config: StoreConfig
    cutter: Cutter
    index: Index
    passed_over: dict[str, str]
    """Configurations with higher numbers that are not accepted, by name, with the reasons."""
    _sealed: SealedConfig
    _numbers: frozenset[int]
    """The numbers of the configurations that existed at the last check."""
    _opener: Opener
    _seen: FreshnessGuard
    _identity: IdentitySource
    _keyring: Keyring

    @property
    def location(self) -> str:
        """The place that holds the store, as named in messages."""
        return self.storage.location

    @property
    def recipients(self) -> list[tuple[Recipient, str]]:
        """The recipients that the store is sealed to, with their labels."""
        return [(entry.recipient, entry.label) for entry in self.config.recipients]

    def identity(self) -> Identity:
        """Return the identity that opens content. Raises IdentityError."""
        return self._identity.get()

    def known_identity(self) -> Identity | None:
        """Return the identity if it was asked for before, else None; never asks."""
        return self._identity.known()

    def check_seal(self, session: SessionId, number: int, record: SessionRecord) -> None:
        """Open the seal of a session with the identity at hand. Raises DamageError, IdentityError."""
        self._keyring.data_key(session_name(session, number), session, record)

    def check_may_maintain(self, doing: str) -> None:
        """Refuse to remove what other machines added if this one lacks that role. Raises UsageError."""
        if not self.writer_key.may_maintain:
            raise UsageError(
                f"this machine may not {doing} the store {self.location}, to which others add: run it on "
                "the machine that created the store, or give this one the role with 'castore key adopt "
                "--maintain' and the identity of an admin"
            )

    def session_writers(self) -> Iterator[bytes]:
        """Yield the public key that added to each session whose object is accepted."""
        for session in session_numbers(self.storage):
            if writer := self._keyring.writer_of(session):
                yield writer

    def check_settings(self) -> None:
        """Refuse to add if the store's recipients or this machine's host name contradict castore.toml.

        Raises ConfigError.
        """
        wanted = {Recipient.parse(one).text for one in self.configured_recipients}
        actual = {recipient.text for recipient, _ in self.recipients}
        if wanted and wanted != actual:
            raise ConfigError(
                f"castore.toml: recipients: they differ from those of the store {self.location} "
                f"({', '.join(sorted(wanted ^ actual))}); change the file, or the store with "
                "'castore key add' and 'castore key remove'"
            )
        name = self.configured_host
        if name and self.certified_host not in {"", name}:
            raise ConfigError(
                f"castore.toml: host: this machine is {self.certified_host} in the store {self.location}, "
                f"and not {name}; change the file, or the store with 'castore key adopt --host {name}'"
            )

    def _hold(self, accepted: Accepted) -> None:
        """Use this configuration, and the writer key that opens it, from now on."""
        config = accepted.config
        self.config = config
        self._sealed, self._numbers = accepted.sealed, accepted.names
        self.passed_over = accepted.passed_over
        writer = accepted.writer.with_pins(accepted.pins)
        self.writer_key = with_config(writer, config, self.storage, self._signer(accepted))
        self.cutter = Cutter(self.writer_key.gear, config.average_chunk_size)
        self._keyring = Keyring(self.storage, self.writer_key, self._identity, config)
        self.__dict__.pop("_records", None)
        if self.index.rotation() != config.rotation:
            self._enter_era()

    def _signer(self, accepted: Accepted) -> SigningKey | None:
        """Return the key that signs added objects: this machine's or, if it has none, the admin's."""
        machine, config = accepted.writer.machine, accepted.config
        if machine is not None:
            certificate = config.certificate(machine.signing.public)
            return None if certificate is None or certificate.revoked else machine.signing
        admin = self._identity.get().admin
        return admin if admin.public in config.admin_keys else None

    def _enter_era(self) -> None:
        """Drop from the index what was added under a former writer key after it was replaced."""
        try:
            listed = self.writer_key.listed()
        except (DamageError, FormatError):
            # Without the list nothing under a former key is accepted: a sync reports that for each object.
            self.index.clear()
            return
            # Packs under the present key are indexed again by the next sync.
        self.index.packs.remove(self.index.packs.ids().difference(listed.values()))
        short = {name.removeprefix("generations/") for name in listed}
        self.index.generations.remove(self.index.generations.compare(short)[1])
        self.index.set_rotation(self.config.rotation, new_ids=not self.config.id_secret)

    def refresh_config(self) -> None:
        """Use the newest configuration that an admin signed. Raises KeyRotatedError."""
        if frozenset(config_numbers(self.storage)) != self._numbers:
            accepted = choose(self._opener)
            if accepted.writer.secret != self.writer_key.secret:
                raise KeyRotatedError(
                    f"the writer key of the store at {self.location} has been replaced; repeat the command"
                )
            if accepted.sealed.hash == self._sealed.hash:
                self._numbers, self.passed_over = accepted.names, accepted.passed_over
                return
            self._remember(accepted)
            self._hold(accepted)

    def stray_configurations(self) -> list[str]:
        """Return the names of configurations above the accepted number, and of their copies."""
        numbers = (one for one in config_numbers(self.storage) if one > self._sealed.number)
        return [name for number in numbers for name in replicas.names(self.storage, CONFIGS, number)]

    def _remember(self, accepted: Accepted, *, accept_older: bool = False) -> None:
        """Record on this machine what was accepted: the number, the admins, and the key that opens it."""
        self._seen.config(accepted.sealed, accepted.pins, accept=accept_older)
        for kept in self._opener.keys(self.store_id)[:1]:
            path = self.places.writer_key_of(self.store_id)
            keep_accepted(path, kept, accepted.writer.with_pins(accepted.pins), self.storage)

    def kept_twice(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """Yield folder and number of each object that is stored twice, and a function that reads it.

        The function returns authentic bytes. It raises DamageError, FormatError, StorageError.
        """
        yield CONFIGS, self._sealed.number, lambda: self._sealed.data
        if self.config.rotation:
            yield ROTATIONS, self.config.rotation, self._read_rotation

    def _read_rotation(self) -> bytes:
        data = read_rotation(self.storage, self.config)
        decode_rotation(self.config.rotation, data, self.writer_key)
        return data

    def _keep_copies(self) -> None:
        """Write copies that are missing: an older castore wrote none, or castore was killed before it."""
        for folder, number, read in self.kept_twice():
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                replicas.keep_copy(self.storage, folder, number, read)

    def repair_copies(self) -> None:
        """Write the objects that are stored twice again where one of the two is damaged.

        Raises DamageError, FormatError, StorageError, BusyError.
        """
        with self._writer_key_lock():
            self.refresh_config()
            for folder, number, read in self.kept_twice():
                replicas.repair(self.storage, folder, number, read())

    def _writer_key_lock(self) -> AbstractContextManager[None]:
        path = os.path.join(self.places.state_of(self.store_id), "locks", "writer-key")
        return named_lock(path, f"the keys of {self.location}")
