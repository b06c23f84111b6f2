"""A store sealed anew, for other recipients: keys are sealed again, data is not touched."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from castore.errors import BusyError, FormerKeyError, ObjectExistsError, ObjectMissingError
from castore.store import twice
from castore.store.config import CONFIGS, config_name, config_numbers, encode_config
from castore.store.sessions import (
    encode_session,
    read_session,
    sealed_to,
    session_name,
    session_numbers,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.refs import SessionId
    from castore.storage import Storage
    from castore.store.config import StoreConfig
    from castore.store.keyring import Keyring
    from castore.store.sessions import SessionRecord


def reseal(
    storage: Storage,
    keyring: Keyring,
    number: int,
    config: StoreConfig,
    look: Callable[[], None] = lambda: None,
) -> bool:
    """Seal the store to the recipients of `config`, which becomes config/`number`.

    Returns whether there was anything to do.

    That object is there already if this was begun before: what is done is not done again. New
    objects come before old ones go, so that at every moment each session has a key. look: raises an error
    if the writer key has been replaced, under which nothing that is written counts any more.
    Raises IdentityError, DamageError, StorageError, BusyError.
    """
    name = config_name(number)
    changed = False
    if number not in config_numbers(storage):
        # An identity that opens not all of it must not change whom the store says it is sealed to.
        for session, numbers in session_numbers(storage).items():
            _data_key(storage, keyring, session, numbers, config)
        data = encode_config(number, config, keyring.writer)
        try:
            storage.put(name, data)
        except ObjectExistsError:
            raise BusyError(f"another castore has just written {name}; try again") from None
        twice.put_copy(storage, CONFIGS, number, data)
        changed = True
    for session, numbers in sorted(session_numbers(storage).items()):
        changed |= _reseal_session(storage, keyring, session, numbers, config)
    # What takes their place may be from a castore that was killed before it had synced the names.
    for folder in ("config", "sessions"):
        storage.settle(folder)
    look()
    for session, numbers in session_numbers(storage).items():
        with contextlib.suppress(FormerKeyError):
            counts, _ = read_session(storage, session, numbers, keyring.writer)
            for old in numbers[: numbers.index(counts)]:
                _remove(storage, session_name(session, old))
                changed = True
    for name in twice.below(storage, CONFIGS, number):
        _remove(storage, name)
        changed = True
    return changed


def _reseal_session(
    storage: Storage, keyring: Keyring, session: SessionId, numbers: list[int], config: StoreConfig
) -> bool:
    found = _data_key(storage, keyring, session, numbers, config)
    if found is None:
        return False
    record, data_key = found
    number, writer = numbers[-1], keyring.writer
    seals = sealed_to((entry.recipient for entry in config.recipients), session, data_key)
    anew = msgspec.structs.replace(record, seals=seals)
    with contextlib.suppress(ObjectExistsError):
        storage.put(
            session_name(session, number + 1), encode_session(session, number + 1, anew, writer)
        )
    return True


def _data_key(
    storage: Storage, keyring: Keyring, session: SessionId, numbers: list[int], config: StoreConfig
) -> tuple[SessionRecord, bytes] | None:
    """Return what a session object holds; None if it is sealed to the recipients already."""
    try:
        number, record = read_session(storage, session, numbers, keyring.writer)
    except FormerKeyError:
        return None  # nothing that counts is in it
    name = session_name(session, number)
    if {key for key, _ in record.seals} == {entry.key for entry in config.recipients}:
        return None
    return record, keyring.data_key(name, session, record)


def _remove(storage: Storage, name: str) -> None:
    with contextlib.suppress(ObjectMissingError):
        storage.delete(name)
