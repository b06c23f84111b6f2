"""Rotation of the writer key, after a machine that had it was lost or stolen.

The order of the steps makes an interruption harmless at each of them. The new key is kept next to the old
one. `rotations/N` lists what exists, which has no effect until a configuration names it. `config/N`, under
the new key, is the one step that replaces the old key. Then the file of the old key is replaced. A snapshot
that another machine finishes meanwhile checks the configuration after its generation is written, and is not
committed if that has changed. What it wrote before that step is listed, if needed, by an `rotations/N+1` and
`config/N+1` after the first.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.errors import BusyError, DamageError, FormatError, ObjectExistsError, ObjectMissingError
from castore.model.refs import SessionId
from castore.store.format.config import config_numbers, encode_config
from castore.store.format.deletion import open_deletion
from castore.store.format.generation import open_generation
from castore.store.format.names import (
    CONFIGS,
    DELETIONS,
    GENERATIONS,
    PACKS,
    PINS,
    REMOVALS,
    ROTATIONS,
    SESSIONS,
    config_name,
    full_name,
    is_generation,
    pack_name,
    rotation_name,
    session_name,
)
from castore.store.format.pin import open_pin
from castore.store.format.removal import open_removal
from castore.store.format.rotation import encode_rotation, rotation_numbers
from castore.store.format.session_key import decode_session, session_numbers
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.crypto import SigningKey, WriterKey
    from castore.model.refs import PackId
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig

_ROUNDS: Final = 5
"""How often the list is rebuilt if other machines add objects meanwhile."""

_FOLDERS: Final = (GENERATIONS, SESSIONS, PACKS)
"""Listed in this order, every object that a listed one needs is listed, too: it was written before."""


class Rotation(msgspec.Struct, frozen=True, kw_only=True):
    """A replacement of the writer key."""

    writer: WriterKey
    successor: WriterKey
    """The key that replaces it."""
    config: StoreConfig
    """The present configuration, with the new certificates."""
    number: int
    """The number of the present configuration."""
    known: frozenset[int]
    """The numbers of the configurations that existed when it was accepted."""
    signer: SigningKey
    """The admin's key."""
    new_ids: bool
    """Give new ids to chunks: later snapshots share no content with what is stored now."""
    accepted_packs: Callable[[], Iterable[PackId]]
    """Brings the index of packs up to date, and returns the ids of the accepted packs."""
    is_rival: Callable[[int], bool]
    """Returns whether the configuration of a number is another admin's.

    Without this, anybody who can add objects could prevent the rotation.
    """


def rotate(storage: Storage, rotation: Rotation) -> int:
    """Replace the writer key; return the number of the new configuration. Raises BusyError, StorageError."""
    writer, successor = rotation.writer, rotation.successor
    config = msgspec.structs.replace(
        rotation.config,
        previous_secrets=(*rotation.config.previous_secrets, writer.secret),
        id_secret=b"" if rotation.new_ids else writer.id_secret,
    )
    before, number, known, rounds = rotation.number, rotation.number, rotation.known, 0
    while True:
        names = _names(storage)
        listed = _listed(storage, writer, rotation.accepted_packs())
        at = replicas.free_above(number, {*known, *rotation_numbers(storage)})
        try:
            data = encode_rotation(at, listed, successor)
            storage.put(rotation_name(at), data)
            replicas.put_copy(storage, ROTATIONS, at, data)
            config = msgspec.structs.replace(config, rotation=at, rotation_hash=blake3(data).digest())
            data = encode_config(at, config, successor, rotation.signer)
            storage.put(config_name(at), data)
        except ObjectExistsError:
            raise BusyError("another castore has just changed the keys of this store; try again") from None
        fresh = {number for number in config_numbers(storage) if number > before} - {at} - known
        if any(map(rotation.is_rival, fresh)):
            # Another castore was first; its configuration does not include this one.
            storage.delete_all(replicas.names(storage, CONFIGS, at))
            raise BusyError("another castore has just changed the keys of this store; try again")
        replicas.put_copy(storage, CONFIGS, at, data)
        rounds += 1
        late = _names(storage) - names - listed.keys()
        if not late or rounds == _ROUNDS:
            return at
        before, number, known = at, at, known | {at}


def clean(storage: Storage, number: int) -> None:
    """Remove the configurations and lists that the configuration with this number replaced."""
    for folder in (CONFIGS, ROTATIONS):
        storage.delete_all(replicas.older_than(storage, folder, number))


def _names(storage: Storage) -> set[str]:
    return {full_name(folder, short) for folder in _FOLDERS for short in storage.list(folder)}


def _listed(storage: Storage, writer: WriterKey, packs: Iterable[PackId]) -> dict[str, bytes]:
    """Return the hash of each accepted object of the store, by name.

    Objects that do not open, forged or damaged, are not listed: they would not open later, either.
    """
    names = [full_name(GENERATIONS, short) for short in storage.list(GENERATIONS) if is_generation(short)]
    listed = {}
    for name in names:
        with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
            data = storage.get(name)
            open_generation(name, data, writer)
            listed[name] = blake3(data).digest()
    for session, numbers in session_numbers(storage).items():
        for number in numbers:
            name = session_name(SessionId(session), number)
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                data = storage.get(name)
                decode_session(session, number, data, writer)
                listed[name] = blake3(data).digest()
    openers = {DELETIONS: open_deletion, PINS: open_pin, REMOVALS: open_removal}
    for folder, opener in openers.items():
        for short in storage.list(folder):
            name = full_name(folder, short)
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                data = storage.get(name)
                opener(name, data, writer)
                listed[name] = blake3(data).digest()
    return {**listed, **{pack_name(pack): pack for pack in packs}}
