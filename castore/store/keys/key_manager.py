"""The keys of an open store: the accepted configuration, the writer key, the identity, and session keys."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from castore.crypto import Recipient
from castore.crypto.writer_key import how_to_adopt
from castore.errors import (
    ConfigError,
    DamageError,
    FormatError,
    IdentityError,
    KeyRotatedError,
    ObjectMissingError,
    UsageError,
)
from castore.kernel import Cutter
from castore.state.freshness import seen_at
from castore.state.writer_key_file import keep_accepted
from castore.store.format.config import config_numbers
from castore.store.format.names import CONFIGS, ROTATIONS, session_name
from castore.store.format.rotation import decode_rotation, read_rotation, with_config
from castore.store.format.session_key import session_numbers
from castore.store.keys import replicas
from castore.store.keys.keyring import Keyring, wrong_identity
from castore.store.keys.trust import choose

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from castore.crypto import Identity, SigningKey, WriterKey
    from castore.model.refs import SessionId
    from castore.store.format.config import SealedConfig, StoreConfig
    from castore.store.format.session_key import SessionRecord
    from castore.store.keys.trust import Accepted, Opener


class _Current(msgspec.Struct, frozen=True):
    """The keys under one accepted configuration. It is replaced as one, so that readers see no mixture."""

    accepted: Accepted
    writer_key: WriterKey
    ring: Keyring
    cutter: Cutter


class KeyManager:
    """A store's keys and recipients, as of the last check of the configuration.

    It holds no reference to the store: a cycle would keep secrets in memory after the store is dropped.
    """

    def __init__(self, opener: Opener, accepted: Accepted, *, accept_older: bool = False) -> None:
        self.storage = opener.storage
        self.store_id = accepted.sealed.store_id
        self._opener = opener
        self.freshness = seen_at(opener.paths, self.store_id, opener.storage)
        """The newest state of the store that this machine has seen."""
        self._record(accepted, accept_older=accept_older)
        self._current: _Current | None = self._keys_of(accepted)
        self._numbers = accepted.names

    def close(self) -> None:
        """Drop all keys and the identity. Every later use of a key raises UsageError."""
        current, self._current = self._current, None
        if current is not None:
            current.ring.close()
        self._opener.identity.close()

    @property
    def location(self) -> str:
        """The location of the store, as named in messages."""
        return self.storage.location

    @property
    def key_file(self) -> str:
        """The path at which this machine keeps the writer key, if it has one."""
        return self._opener.paths.writer_key_of(self.store_id)

    # The accepted configuration

    @property
    def config(self) -> StoreConfig:
        """The accepted configuration."""
        return self._in_use.accepted.config

    @property
    def sealed(self) -> SealedConfig:
        """The object that holds the accepted configuration."""
        return self._in_use.accepted.sealed

    @property
    def numbers(self) -> frozenset[int]:
        """The numbers of the configurations that existed at the last check."""
        return self._numbers

    @property
    def passed_over(self) -> dict[str, str]:
        """Configurations with higher numbers that are not accepted, by name, with the reasons."""
        return self._in_use.accepted.passed_over

    @property
    def recipients(self) -> list[tuple[Recipient, str]]:
        """The recipients that the store is sealed to, with their labels."""
        return [(entry.recipient, entry.label) for entry in self.config.recipients]

    @property
    def signer(self) -> bytes:
        """The public key that signed the configuration."""
        return self._in_use.accepted.signer

    @property
    def is_signed_by_admin(self) -> bool:
        """Whether an admin signed the configuration, and not only the machine that created the store."""
        return self.signer in self.config.admin_keys

    @property
    def certified_host(self) -> str:
        """The name under which this machine is certified; empty if it is not."""
        machine = self.writer_key.machine
        certificate = self.config.certificate(machine.signing.public) if machine is not None else None
        return "" if certificate is None or certificate.revoked else certificate.host

    # Keys

    @property
    def writer_key(self) -> WriterKey:
        """The writer key, with the keys that it replaced and the keys that may sign."""
        return self._in_use.writer_key

    @property
    def ring(self) -> Keyring:
        """The keys of sessions."""
        return self._in_use.ring

    @property
    def cutter(self) -> Cutter:
        """Cuts content into chunks as the configuration says."""
        return self._in_use.cutter

    def use_cutter(self, cutter: Cutter) -> None:
        """Cut with another cutter, to measure what it gives. Chunks of the store are then not found again."""
        self._current = msgspec.structs.replace(self._in_use, cutter=cutter)

    def identity(self) -> Identity:
        """Return the identity that opens content. Raises IdentityError."""
        return self._opener.identity.get()

    def check_identity(self) -> None:
        """Get the identity, and raise IdentityError unless the store is encrypted to it."""
        identity = self.identity()
        if all(entry.key != identity.recipient.key for entry in self.config.recipients):
            raise IdentityError(wrong_identity(self.storage, identity, self.config))

    def known_identity(self) -> Identity | None:
        """Return the identity if it was asked for before, else None; never asks."""
        return self._opener.identity.known()

    def tag_of(self, service: str) -> bytes:
        """Return the tag of a service in this machine's state; it never changes."""
        return self.writer_key.oldest.tag(service)

    def check_seal(self, session: SessionId, number: int, record: SessionRecord) -> None:
        """Open the seal of a session with the identity at hand. Raises DamageError, IdentityError."""
        self.ring.data_key(session_name(session, number), session, record)

    def session_writers(self) -> Iterator[bytes]:
        """Yield the public key that added to each session whose object is accepted."""
        for session in session_numbers(self.storage):
            if writer := self.ring.writer_of(session):
                yield writer

    # Checks

    def check_may_maintain(self, doing: str) -> None:
        """Refuse to remove what other machines added if this one lacks that role.

        Raises UsageError, or IdentityError if this machine is not a writer of the store.
        """
        if not self.writer_key.may_add:
            raise IdentityError(
                f"this machine may not {doing} the store {self.location}, of which it is not a writer: "
                + how_to_adopt(self.location)
            )
        if not self.writer_key.may_maintain:
            raise UsageError(
                f"this machine may not {doing} the store {self.location}, to which others add: run it on "
                "the machine that created the store, or give this one the role with 'castore key adopt "
                "--maintain' and the identity of an admin"
            )

    def check_recipients(self, configured: Collection[str]) -> None:
        """Refuse to add if the store's recipients are not those of castore.toml. Raises ConfigError."""
        wanted = {Recipient.parse(recipient).text for recipient in configured}
        actual = {recipient.text for recipient, _ in self.recipients}
        if wanted and wanted != actual:
            raise ConfigError(
                f"castore.toml: recipients: they differ from those of the store {self.location} "
                f"({', '.join(sorted(wanted ^ actual))}); change the file, or the store with "
                "'castore key add' and 'castore key remove'"
            )

    # Changes of the configuration

    def refresh(self) -> None:
        """Use the newest configuration that an admin signed. Raises KeyRotatedError."""
        if frozenset(config_numbers(self.storage)) == self._numbers:
            return
        accepted = choose(self._opener)
        if accepted.writer.secret != self.writer_key.secret:
            raise KeyRotatedError(
                f"the writer key of the store at {self.location} has been replaced; repeat the command"
            )
        if accepted.sealed.hash == self.sealed.hash:
            self._current = msgspec.structs.replace(self._in_use, accepted=accepted)
            self._numbers = accepted.names
        else:
            self._use(accepted)

    def reload(self, *, local_key: bool = False) -> None:
        """Use the newest configuration, and its writer key, also if that was replaced.

        local_key: use the writer key that this machine now keeps.
        """
        if local_key:
            self._opener = msgspec.structs.replace(self._opener, local_key=True)
        self._use(choose(self._opener))

    def trust(self, signer: bytes) -> None:
        """Accept configurations that this admin signs, in addition to the trusted ones."""
        self._opener = msgspec.structs.replace(self._opener, trusted=self._opener.trusted | {signer})

    def stray_configurations(self) -> list[str]:
        """Return the names of configurations above the accepted number, and of their copies."""
        numbers = (number for number in config_numbers(self.storage) if number > self.sealed.number)
        return [name for number in numbers for name in replicas.names(self.storage, CONFIGS, number)]

    # Copies of the essential objects

    def replicated(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """Yield folder and number of each object that is stored twice, and a function that reads it.

        The function returns authentic bytes. It raises DamageError, FormatError, StorageError.
        """
        data = self.sealed.data
        yield CONFIGS, self.sealed.number, lambda: data
        if self.config.rotation:
            yield ROTATIONS, self.config.rotation, self._read_rotation

    def keep_copies(self) -> None:
        """Write copies that are missing: castore was killed before it wrote them."""
        for folder, number, read in self.replicated():
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                replicas.keep_copy(self.storage, folder, number, read)

    def _read_rotation(self) -> bytes:
        data = read_rotation(self.storage, self.config)
        decode_rotation(self.config.rotation, data, self.writer_key)
        return data

    # Internal

    @property
    def _in_use(self) -> _Current:
        if self._current is None:
            raise UsageError(f"the store at {self.location} is closed")
        return self._current

    def _use(self, accepted: Accepted) -> None:
        self._record(accepted)
        self._current = self._keys_of(accepted)
        self._numbers = accepted.names

    def _keys_of(self, accepted: Accepted) -> _Current:
        config = accepted.config
        trusting = accepted.writer.with_trusted_signers(accepted.trusted_signers)
        writer = with_config(trusting, config, self.storage, self._signing_key(accepted))
        ring = Keyring(self.storage, writer, self._opener.identity, config)
        return _Current(accepted, writer, ring, Cutter(writer.gear, config.average_chunk_size))

    def _signing_key(self, accepted: Accepted) -> SigningKey | None:
        """Return the key that signs added objects: this machine's or, if it has none, the admin's."""
        machine, config = accepted.writer.machine, accepted.config
        if machine is not None:
            certificate = config.certificate(machine.signing.public)
            return None if certificate is None or certificate.revoked else machine.signing
        admin = self._opener.identity.get().admin
        return admin if admin.public in config.admin_keys else None

    def _record(self, accepted: Accepted, *, accept_older: bool = False) -> None:
        """Record on this machine what was accepted: the number, the admins, and the key that opens it."""
        self.freshness.remember_config(accepted.sealed, accepted.trusted_signers, accept=accept_older)
        for key in self._opener.keys(self.store_id)[:1]:
            keep_accepted(
                self.key_file,
                key,
                accepted.writer.with_trusted_signers(accepted.trusted_signers),
                self.storage,
            )
