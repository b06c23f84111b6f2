"""`rotations/N`: what was in a store when the writer key of `config/N` replaced the previous one.

What is sealed under a former key stays readable, but only if it existed when the key was replaced: a thief
of the key could seal anything with it. So the object lists all packs, which are named by the hash of their
bytes, and all other objects with the hash of their bytes; it is sealed under the new key. Each list includes
what earlier ones listed, so that only the latest one is used.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.crypto import KeyHistory, WriterKey
from castore.errors import (
    DamageError,
    MissingError,
    ObjectMissingError,
)
from castore.model.refs import PackId
from castore.store.format.envelope import decode_record
from castore.store.format.header import HEADER_BYTES, ROTATION, check_header, header
from castore.store.format.names import PACKS, ROTATIONS, is_in, pack_name, rotation_name
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Mapping

    from castore.crypto import SigningKey
    from castore.storage import Storage
    from castore.store.format.config import StoreConfig

_VERSION: Final = 1


class RotationRecord(msgspec.Struct, frozen=True):
    """The content of such an object."""

    version: int
    packs: bytes
    """The ids of the packs, 32 bytes each, concatenated."""
    objects: dict[str, bytes]
    """BLAKE3 of the bytes of each session, generation, pin, removal and pending deletion, by its name."""


_encoder = msgspec.msgpack.Encoder(order="sorted")
_decoder = msgspec.msgpack.Decoder(RotationRecord)


def rotation_numbers(storage: Storage) -> list[int]:
    """Return the numbers of all such objects, in ascending order."""
    return replicas.numbers(storage, ROTATIONS)


def encode_rotation(number: int, listed: Mapping[str, bytes], writer: WriterKey) -> bytes:
    """Return the bytes of `rotations/number`. listed: the hash of each object, by name."""
    packs = b"".join(sorted(one for name, one in listed.items() if is_in(PACKS, name)))
    objects = {name: one for name, one in listed.items() if not is_in(PACKS, name)}
    plain = _encoder.encode(RotationRecord(_VERSION, packs, objects))
    start, name = header(ROTATION), rotation_name(number)
    return start + writer.objects.seal(name.encode() + writer.store_id + start, plain)


def decode_rotation(number: int, data: bytes, writer: WriterKey) -> dict[str, bytes]:
    """Return the hashes, by name, in the bytes of `rotations/number`. Raises DamageError, FormatError."""
    name = rotation_name(number)
    check_header(name, data, ROTATION)
    try:
        ad = name.encode() + writer.store_id + data[:HEADER_BYTES]
        plain = writer.objects.open(ad, data[HEADER_BYTES:])
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
    record = decode_record(name, plain, _decoder, _VERSION)
    packs = [PackId(record.packs[at : at + 32]) for at in range(0, len(record.packs), 32)]
    return {**{pack_name(pack): pack for pack in packs}, **record.objects}


def read_rotation(storage: Storage, config: StoreConfig) -> bytes:
    """Return the bytes of the list that a configuration names.

    Raises MissingError, DamageError; their messages say what to do. Raises StorageError.
    """
    name = rotation_name(config.rotation)
    for data in replicas.variants(storage, ROTATIONS, config.rotation):
        if blake3(data).digest() == config.rotation_hash:
            return data
    try:
        storage.get(name)
    except ObjectMissingError:
        raise MissingError(
            f"{name} is missing, which lists what was stored under former writer keys; restore it from a "
            "copy of the store (tools/rescue.py does without it)"
        ) from None
    raise DamageError(
        f"{name} is damaged: it is not the list that the configuration names; restore it from a copy of the "
        "store"
    )


class _Listed:
    """The content of a rotation's object, read once, when it is first needed."""

    def __init__(self, storage: Storage, writer: WriterKey, config: StoreConfig) -> None:
        self._storage = storage
        self._writer = writer
        self._config = config
        self._lock = threading.Lock()
        self._found: dict[str, bytes] | None = None

    def __call__(self) -> dict[str, bytes]:
        with self._lock:
            if self._found is None:
                data = read_rotation(self._storage, self._config)
                self._found = decode_rotation(self._config.rotation, data, self._writer)
            return self._found


def with_config(
    writer: WriterKey, config: StoreConfig, storage: Storage, signer: SigningKey | None
) -> WriterKey:
    """Return a store's writer key, with the keys that it replaced, and with the keys that may sign.

    signer: signs what is added.
    """
    past = None
    if config.previous_secrets:
        listed = _Listed(storage, writer, config)
        past = KeyHistory(config.previous_secrets, config.id_secret or writer.secret, listed)
    return WriterKey(
        writer.store_id,
        writer.secret,
        past,
        machine=writer.machine,
        trusted_signers=writer.trusted_signers,
        signer=signer,
        signers=config.signers,
    )
