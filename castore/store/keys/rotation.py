"""A writer key that takes the place of another, after a machine that had it was lost.

The order of the steps makes every one of them a place where it may be cut off. The new key is kept
next to the old one; `eras/N` lists what is there, which harms nothing as long as no configuration names
it; `config/N`, under the new key, is the one step in which it takes the other's place; then the file of the
old key is replaced. A snapshot that another machine ends meanwhile looks at the configuration once its
generation is written, and is not taken for committed if that has changed; what it wrote before that step is
listed, if need be, by an `eras/N+1` and `config/N+1` behind the first.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.errors import BusyError, DamageError, FormatError, ObjectExistsError, ObjectMissingError
from castore.model.refs import SessionId
from castore.store.format.config import CONFIGS, config_name, config_numbers, encode_config
from castore.store.format.deletion import open_condemned
from castore.store.format.generation import NAME, open_generation
from castore.store.format.pin import open_pin
from castore.store.format.removal import REMOVALS, open_removal
from castore.store.format.rotation import ERAS, encode_era, era_name, era_numbers
from castore.store.format.session_key import decode_session, session_name, session_numbers
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.crypto import SigningKey, WriterKey
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig

_ROUNDS: Final = 5
"""How often what other machines add meanwhile is listed anew."""

_FOLDERS: Final = ("generations", "sessions", "packs")
"""In this order whatever a name that was listed needs is listed, too: it was written before."""


def rotate(
    storage: Storage,
    writer: WriterKey,
    successor: WriterKey,
    config: StoreConfig,
    number: int,
    known: frozenset[int],
    packs: Callable[[], Iterable[bytes]],
    signer: SigningKey,
    is_rival: Callable[[int], bool],
    *,
    new_ids: bool,
) -> int:
    """Let `successor` take the place of `writer`; return the number of the new configuration.

    config, number: the present one, with the certificates that are to be. known: the numbers of the
    configurations that there were when it was accepted. packs: brings what is known of
    packs up to date, and returns the ids of those that are the store's. signer: the admin's key.
    is_rival: whether what is there under a number is another admin's configuration: anybody who can add
    objects could else keep this from ending. Raises BusyError, StorageError.
    """
    ids = b"" if new_ids else writer.ids
    config = msgspec.structs.replace(config, former=(*config.former, writer.secret), ids=ids)
    before, rounds = number, 0
    while True:
        names = _names(storage)
        listed = _listed(storage, writer, packs())
        era = replicas.free_above(number, {*known, *era_numbers(storage)})
        try:
            data = encode_era(era, listed, successor)
            storage.put(era_name(era), data)
            replicas.put_copy(storage, ERAS, era, data)
            config = msgspec.structs.replace(config, era=era, era_hash=blake3(data).digest())
            data = encode_config(era, config, successor, signer)
            storage.put(config_name(era), data)
        except ObjectExistsError:
            raise BusyError("another castore has just changed the keys of this store; try again") from None
        fresh = {one for one in config_numbers(storage) if one > before} - {era} - known
        if any(map(is_rival, fresh)):
            # Another castore was first: its configuration knows nothing of this one.
            for name in replicas.names(storage, CONFIGS, era):
                _remove(storage, name)
            raise BusyError("another castore has just changed the keys of this store; try again")
        replicas.put_copy(storage, CONFIGS, era, data)
        rounds += 1
        late = _names(storage) - names - listed.keys()
        if not late or rounds == _ROUNDS:
            return era
        before, number, known = era, era, known | {era}


def clean(storage: Storage, number: int) -> None:
    """Remove what the configuration with this number, a new key's first, took the place of."""
    for folder in (CONFIGS, ERAS):
        for name in replicas.below(storage, folder, number):
            _remove(storage, name)


def _names(storage: Storage) -> set[str]:
    return {f"{folder}/{short}" for folder in _FOLDERS for short in storage.list(folder)}


def _listed(storage: Storage, writer: WriterKey, packs: Iterable[bytes]) -> dict[str, bytes]:
    """Return the hash of each object that is the store's, by its name.

    What does not open is not listed, be it forged or damaged: it would not open later, either.
    """
    names = [f"generations/{short}" for short in storage.list("generations") if NAME.fullmatch(short)]
    found = {}
    for name in names:
        with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
            data = storage.get(name)
            open_generation(name, data, writer)
            found[name] = blake3(data).digest()
    for session, numbers in session_numbers(storage).items():
        for number in numbers:
            name = session_name(SessionId(session), number)
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                data = storage.get(name)
                decode_session(session, number, data, writer)
                found[name] = blake3(data).digest()
    openers = {"condemned": open_condemned, "pins": open_pin, REMOVALS: open_removal}
    for folder, opener in openers.items():
        for short in storage.list(folder):
            name = f"{folder}/{short}"
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                data = storage.get(name)
                opener(name, data, writer)
                found[name] = blake3(data).digest()
    return {**found, **{f"packs/{pack.hex()}": pack for pack in packs}}


def _remove(storage: Storage, name: str) -> None:
    with contextlib.suppress(ObjectMissingError):
        storage.delete(name)
