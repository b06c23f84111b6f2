"""The keys of sessions, opened as far as this process can."""

from __future__ import annotations

import copy
import threading
from typing import TYPE_CHECKING

from castore.crypto import RecordSealer
from castore.errors import (
    CastoreError,
    DamageError,
    FormatError,
    IdentityError,
    MissingError,
    ObjectMissingError,
)
from castore.store.format.config import named
from castore.store.format.names import any_session_name, session_name
from castore.store.format.session_key import read_session, session_numbers

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.crypto import Identity, WriterKey
    from castore.model.refs import SessionId
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig
    from castore.store.format.session_key import SessionRecord


class IdentitySource:
    """Asks for the identity once, when it is first needed: it may ask the user for a passphrase."""

    def __init__(self, provider: Callable[[], Identity] | None) -> None:
        self._provider = provider
        self._lock = threading.Lock()
        self._found: Identity | CastoreError | None = None

    def __bool__(self) -> bool:
        return self._provider is not None

    def get(self) -> Identity:
        """Return the identity. Raises IdentityError, or the error with which asking failed."""
        with self._lock:
            if self._found is None:
                if self._provider is None:
                    raise IdentityError(
                        "reading content needs an identity, and none was given: use --identity FILE or "
                        "CASTORE_IDENTITY"
                    )
                try:
                    self._found = self._provider()
                except CastoreError as error:
                    # A copy has no traceback: its frames could hold a passphrase or a key.
                    self._found = copy.copy(error)
                    raise
            if isinstance(self._found, CastoreError):
                raise copy.copy(self._found)
            return self._found

    def known(self) -> Identity | None:
        """Return the identity if it was asked for before, else None; never asks."""
        with self._lock:
            return None if isinstance(self._found, CastoreError) else self._found

    def close(self) -> None:
        """Drop the identity, and never ask for it again."""
        with self._lock:
            self._found = None
            self._provider = None


class Keyring:
    """Opens the keys of sessions; safe to share between threads."""

    def __init__(
        self,
        storage: Storage,
        writer: WriterKey,
        identity: IdentitySource,
        config: StoreConfig,
    ) -> None:
        # No reference to the store itself: a cycle would keep the keys until the cyclic collector runs.
        self.config = config
        self._storage = storage
        self.writer = writer
        self._identity = identity
        self._lock = threading.Lock()
        self._numbers: dict[SessionId, list[int]] = {}
        self._records: dict[SessionId, tuple[str, SessionRecord]] = {}
        self._node_sealers: dict[SessionId, RecordSealer] = {}
        self._chunk_sealers: dict[SessionId, RecordSealer] = {}

    def close(self) -> None:
        """Drop the keys and the identity."""
        self._identity.close()
        with self._lock:
            for cache in (self._numbers, self._records, self._node_sealers, self._chunk_sealers):
                cache.clear()

    def node_sealer(self, session: SessionId) -> RecordSealer:
        """Return the sealer that opens a session's nodes. Raises DamageError, naming the session."""
        sealer = self._node_sealers.get(session)
        if sealer is None:
            _, record = self._record(session)
            key = record.node_key or self.writer.node_key(session)
            sealer = RecordSealer(record.cipher, key, self.writer.store_id)
            self._node_sealers[session] = sealer
        return sealer

    def chunk_sealer(self, session: SessionId) -> RecordSealer:
        """Return the sealer that opens a session's chunks. Raises IdentityError, DamageError."""
        sealer = self._chunk_sealers.get(session)
        if sealer is None:
            name, record = self._record(session)
            key = self.data_key(name, session, record)
            sealer = RecordSealer(record.cipher, key, self.writer.store_id)
            self._chunk_sealers[session] = sealer
        return sealer

    def writer_of(self, session: SessionId) -> bytes | None:
        """Return the public key that added to a session; None if no object of it is accepted."""
        try:
            return self._record(session)[1].writer
        except (DamageError, FormatError):
            return None

    def data_key(self, name: str, session: SessionId, record: SessionRecord) -> bytes:
        """Return the key that a session object holds for the identity at hand.

        Raises DamageError, IdentityError.
        """
        identity = self._identity.get()
        try:
            key = record.data_key(name, session, identity)
        except IdentityError:
            raise DamageError(f"{name} is damaged: its seal does not open") from None
        if key is not None:
            return key
        recipients = self.config.recipients
        if any(entry.key == identity.recipient.key for entry in recipients):
            raise DamageError(
                f"{name} is damaged: it is not sealed to this identity, although the store is: adding its "
                "recipient was interrupted, or a writer left it out; repeat 'castore key add' with an "
                "identity that opens it"
            )
        raise IdentityError(wrong_identity(self._storage, identity, self.config))

    def _record(self, session: SessionId) -> tuple[str, SessionRecord]:
        with self._lock:
            record = self._records.get(session)
            if record is None:
                try:
                    record = self._read(session)
                except ObjectMissingError:
                    # It was sealed again for other recipients after the names were listed.
                    self._numbers.clear()
                    record = self._read(session)
                self._records[session] = record
            return record

    def _read(self, session: SessionId) -> tuple[str, SessionRecord]:
        if session not in self._numbers:
            self._numbers = session_numbers(self._storage)
        if session not in self._numbers:
            raise MissingError(
                f"the session object {any_session_name(session)} is missing, and with it the session's key"
            )
        number, record = read_session(self._storage, session, self._numbers[session], self.writer)
        return session_name(session, number), record


def wrong_identity(storage: Storage, identity: Identity, config: StoreConfig | None) -> str:
    """Return the message for an identity to which the store is not sealed."""
    message = f"the identity of {identity.recipient.text} opens nothing in the store at "
    message += storage.location
    if config is not None:
        message += f"; it is sealed to {named(config.recipients)}"
    return message
