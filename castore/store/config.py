"""`config/N`: a store's parameters, its recipients, and its writer secret sealed to them."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import (
    DamageError,
    FormatError,
    IdentityError,
    NotFoundError,
    ObjectMissingError,
)
from castore.sealing import Recipient, WriterKey
from castore.store import twice
from castore.store.header import CONFIG, HEADER_BYTES, check_header, header

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.sealing import Identity
    from castore.storage import Storage

MIN_AVERAGE: Final = 1 << 10
MAX_AVERAGE: Final = 4 << 20
DEFAULT_AVERAGE: Final = 1 << 18
"""With deltas, larger chunks cost a night no more bytes, and half the time of 64 KiB: five nights of a
dump of 450 MB took 16.9 MB at 64 KiB, 15.5 at 128, 13.4 at 256.
"""
"""The longest chunk, eight times this, has to fit into a pack."""

CONFIGS: Final = "config"
"""The folder."""

_WITHOUT_CONFIG: Final = (
    "without it nothing in the store can be opened; put config/ back from the newest copy of the store that "
    "there is (nothing was changed)"
)
_VERSION: Final = 1
_SEAL_BYTES: Final = 96
_SEALS: Final = HEADER_BYTES + 16 + 2
_COUNT: Final = struct.Struct("<H")


class LabelledRecipient(msgspec.Struct, frozen=True, array_like=True):
    """A recipient, and what people call it."""

    key: bytes
    label: str

    @property
    def recipient(self) -> Recipient:
        """The key, to seal to."""
        return Recipient(self.key)


class StoreConfig(msgspec.Struct, frozen=True, omit_defaults=True):
    """What holds for a whole store."""

    version: int
    created: int
    """Nanoseconds since 1970."""
    average: int
    """The mean length of a chunk."""
    recipients: tuple[LabelledRecipient, ...]
    former: tuple[bytes, ...] = ()
    """The writer secrets that this one's took the place of, the oldest first."""
    ids: bytes = b""
    """The one of them that ids, cuts and sketches come from; empty: the present one."""
    era: int = 0
    """N of the `eras/N` that lists what was there when the last of them was replaced."""

    def __repr__(self) -> str:
        return f"StoreConfig(of {len(self.recipients)} recipients)"


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoreConfig)


def config_name(number: int) -> str:
    """Return the name of the object."""
    return f"{CONFIGS}/{number}"


def config_numbers(storage: Storage) -> list[int]:
    """Return the numbers of the configurations there are, in ascending order."""
    return twice.numbers(storage, CONFIGS)


def is_empty(storage: Storage) -> bool:
    """Whether a place holds nothing of a store."""
    return not any(True for folder in ("packs", "generations", "sessions") for _ in storage.list(folder))


def encode_config(number: int, config: StoreConfig, writer: WriterKey) -> bytes:
    """Return the bytes of `config/number`. Raises UsageError for a recipient that is none."""
    secret = writer.store_id + writer.secret
    seals = [entry.recipient.seal(secret) for entry in config.recipients]
    start = b"".join([header(CONFIG), writer.store_id, _COUNT.pack(len(seals)), *seals])
    ad = config_name(number).encode() + start
    return start + writer.objects.seal(ad, _encoder.encode(config))


class SealedConfig:
    """The highest `config/N` as it is read: a store id, seals, and a box."""

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.name = config_name(number)
        check_header(self.name, data, CONFIG)
        if len(data) < _SEALS:
            raise DamageError(f"{self.name} is damaged: it is cut")
        self.store_id = data[HEADER_BYTES : HEADER_BYTES + 16]
        (self._count,) = _COUNT.unpack_from(data, HEADER_BYTES + 16)
        self._box = _SEALS + self._count * _SEAL_BYTES
        if len(data) <= self._box:
            raise DamageError(f"{self.name} is damaged: it is cut")
        self.data = data

    @classmethod
    def read(cls, storage: Storage) -> SealedConfig:
        """Return a store's configuration. Raises NotFoundError, DamageError, FormatError."""
        for _attempt in range(3):
            numbers = config_numbers(storage)
            if not numbers:
                break
            try:
                return cls(numbers[-1], twice.read(storage, CONFIGS, numbers[-1]))
            except ObjectMissingError:
                continue  # another castore has just replaced it
        if numbers:
            raise DamageError(
                f"{config_name(numbers[-1])} is gone, and its copy is damaged: {_WITHOUT_CONFIG}"
            )
        if not is_empty(storage):
            raise DamageError(f"{storage.location} has no config/ any more: {_WITHOUT_CONFIG}")
        raise NotFoundError(
            f"no store at {storage.location}: the directory holds no castore store"
        )

    def writer_key(self, identity: Identity) -> WriterKey | None:
        """Return the writer key through an identity; None if no seal is for it."""
        for at in range(_SEALS, self._box, _SEAL_BYTES):
            try:
                secret = identity.open(self.data[at : at + _SEAL_BYTES])
            except IdentityError:
                continue
            if secret[:16] != self.store_id:
                raise DamageError(f"{self.name} is damaged: a seal in it is of another store")
            return WriterKey(secret[:16], secret[16:])
        return None

    def open(self, writer: WriterKey) -> StoreConfig:
        """Return the configuration, authentic. Raises DamageError, FormatError."""
        ad = self.name.encode() + self.data[: self._box]
        try:
            config = _decoder.decode(writer.objects.open(ad, self.data[self._box :]))
        except (DamageError, msgspec.MsgspecError) as error:
            raise DamageError(
                f"{self.name} is damaged: {error}; put config/ back from a copy of the store"
            ) from None
        if config.version != _VERSION:
            raise FormatError(
                f"{self.name} is of format {config.version}, and this castore knows {_VERSION}: "
                "update castore"
            )
        if any(len(secret) != 32 for secret in config.former) or len(config.ids) not in {0, 32}:
            raise DamageError(f"{self.name} is damaged: a former writer secret in it is none")
        if any(len(entry.key) != 32 for entry in config.recipients):
            raise DamageError(f"{self.name} is damaged: a recipient in it is none")
        if not MIN_AVERAGE <= config.average <= MAX_AVERAGE:
            raise DamageError(f"{self.name} is damaged: no chunks have {config.average} bytes")
        return config


def named(recipients: Iterable[LabelledRecipient]) -> str:
    """Return the recipients as a message names them."""
    return ", ".join(
        f"{entry.recipient.text} ({entry.label})" if entry.label else entry.recipient.text
        for entry in recipients
    )
