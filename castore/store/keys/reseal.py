"""Seal a store for other recipients: only keys are sealed again, data is not touched."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from castore.errors import (
    BusyError,
    FormatError,
    MissingError,
    ObjectExistsError,
    RevokedKeyError,
)
from castore.store.format.config import config_numbers, encode_config
from castore.store.format.names import CONFIGS, SESSIONS, config_name, session_name
from castore.store.format.session_key import encode_session, read_session, sealed_to, session_numbers
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.crypto import SigningKey
    from castore.model.refs import SessionId
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig
    from castore.store.format.session_key import SessionRecord
    from castore.store.keys.keyring import Keyring


class Resealing(msgspec.Struct, frozen=True, kw_only=True):
    """A change of the recipients."""

    keyring: Keyring
    number: int
    """The number of the configuration that names the new recipients."""
    config: StoreConfig
    signer: SigningKey
    """The admin's key."""
    check_key: Callable[[], None]
    """Raises an error if the writer key has been replaced: what is written under it is not accepted."""


def reseal(storage: Storage, request: Resealing) -> bool:
    """Seal the store to the recipients of a configuration, and write that.

    Returns whether there was anything to do. If the configuration exists, an earlier call was interrupted,
    and only the missing steps are done. New objects are written before old ones are removed, so each session
    has a key at all times.
    Raises IdentityError, DamageError, StorageError, BusyError.
    """
    keyring, config, number = request.keyring, request.config, request.number
    name = config_name(number)
    changed = False
    if number not in config_numbers(storage):
        check_opens(storage, keyring, config)
        data = encode_config(number, config, keyring.writer, request.signer)
        try:
            storage.put(name, data)
        except ObjectExistsError:
            raise BusyError(f"another castore has just written {name}; try again") from None
        replicas.put_copy(storage, CONFIGS, number, data)
        changed = True
    for session, numbers in sorted(session_numbers(storage).items()):
        changed |= _reseal_session(storage, request, session, numbers)
    # A killed castore may have written the replacing objects without syncing their names: sync them first.
    for folder in (CONFIGS, SESSIONS):
        storage.sync_dir(folder)
    request.check_key()
    for session, numbers in session_numbers(storage).items():
        with contextlib.suppress(RevokedKeyError, FormatError, MissingError):
            accepted, _ = read_session(storage, session, numbers, keyring.writer)
            replaced = [session_name(session, old) for old in numbers[: numbers.index(accepted)]]
            storage.delete_all(replaced)
            changed |= bool(replaced)
    older = list(replicas.older_than(storage, CONFIGS, number))
    storage.delete_all(older)
    return changed or bool(older)


def check_opens(storage: Storage, keyring: Keyring, config: StoreConfig) -> None:
    """Refuse to seal to the recipients of `config` if the identity does not open all sessions.

    Raises IdentityError, DamageError, StorageError.
    """
    for session, numbers in session_numbers(storage).items():
        _data_key(storage, keyring, session, numbers, config)


def _reseal_session(storage: Storage, request: Resealing, session: SessionId, numbers: list[int]) -> bool:
    found = _data_key(storage, request.keyring, session, numbers, request.config)
    if found is None:
        return False
    record, data_key, number = found
    writer = request.keyring.writer
    number = replicas.free_above(number, numbers)
    seals = sealed_to((entry.recipient for entry in request.config.recipients), session, data_key)
    resealed = msgspec.structs.replace(record, sealed_keys=seals)
    with contextlib.suppress(ObjectExistsError):
        storage.put(
            session_name(session, number), encode_session(session, number, resealed, writer, request.signer)
        )
    return True


def _data_key(
    storage: Storage, keyring: Keyring, session: SessionId, numbers: list[int], config: StoreConfig
) -> tuple[SessionRecord, bytes, int] | None:
    """Return a session's record, its key and its number; None if it is sealed to these recipients already."""
    try:
        number, record = read_session(storage, session, numbers, keyring.writer)
    except (RevokedKeyError, FormatError, MissingError):
        return None  # no object of it is accepted
    name = session_name(session, number)
    if {key for key, _ in record.sealed_keys} == {entry.key for entry in config.recipients}:
        return None
    return record, keyring.data_key(name, session, record), number
