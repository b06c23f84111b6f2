"""`config/N`: a store's parameters, its admins, recipients and writers, and its writer secret, signed."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.crypto import Admin, Recipient, Signers
from castore.errors import (
    DamageError,
    FormatError,
    IdentityError,
)
from castore.store.format.header import CONFIG, HEADER_BYTES, check_header, header
from castore.store.format.names import CONFIGS, GENERATIONS, PACKS, SESSIONS, config_name
from castore.store.format.signed import open_signed, sign
from castore.store.keys import replicas

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.crypto import Identity, SigningKey, WriterKey
    from castore.storage import Storage

MIN_AVERAGE: Final = 1 << 10
MAX_AVERAGE: Final = 4 << 20
"""The longest chunk, eight times this, must fit into a pack."""
DEFAULT_AVERAGE: Final = 1 << 18
"""With deltas, larger chunks take no more bytes per night, and half the time of 64 KiB chunks: five nights of
a dump of 450 MB took 16.9 MB at 64 KiB, 15.5 MB at 128 KiB, 13.4 MB at 256 KiB.
"""

"""The folder of configurations."""

_VERSION: Final = 1
_SEAL_BYTES: Final = 96
_SEALS: Final = HEADER_BYTES + 16 + 2
_COUNT: Final = struct.Struct("<H")


class LabelledRecipient(msgspec.Struct, frozen=True, array_like=True):
    """A recipient with its label."""

    key: bytes
    label: str

    @property
    def recipient(self) -> Recipient:
        """The key, to seal to."""
        return Recipient(self.key)


class LabelledAdmin(msgspec.Struct, frozen=True, array_like=True):
    """An admin key that may sign configurations."""

    key: bytes
    label: str = ""
    recipient: bytes = b""
    """The recipient of the same identity, used to remove the admin; empty if none is known."""

    @property
    def text(self) -> str:
        """The key in the form that people copy."""
        return Admin(self.key).text


class Certificate(msgspec.Struct, frozen=True, array_like=True):
    """An admin's statement about a machine that adds: its keys, and the host name they are for."""

    key: bytes
    """Its Ed25519 public key."""
    recipient: bytes
    """Its X25519 public key: the writer secret is sealed to it."""
    host: str
    since: int
    """Nanoseconds since 1970."""
    roles: tuple[str, ...] = ()
    revoked: int = 0
    """When it was revoked: nanoseconds since 1970; 0 if it is valid."""
    replaced: bool = False
    """Whether it was revoked because the machine got other keys, and not because they were stolen."""
    names: tuple[str, ...] = ()
    """Earlier host names of the machine."""


MAINTAIN: Final = "maintain"
"""The role of a machine that may remove what other machines added."""


class StoreConfig(msgspec.Struct, frozen=True):
    """The settings of a whole store: the one document that says who may do what."""

    version: int
    created: int
    """Nanoseconds since 1970."""
    average_chunk_size: int
    """The mean length of a chunk, in bytes."""
    recipients: tuple[LabelledRecipient, ...]
    previous_secrets: tuple[bytes, ...] = ()
    """The writer secrets that the present one replaced, the oldest first."""
    id_secret: bytes = b""
    """The one of them from which ids, cuts and sketches are derived; empty for the present one."""
    rotation: int = 0
    """N of the `rotations/N` that lists the objects that existed when the last of them was replaced."""
    rotation_hash: bytes = b""
    """BLAKE3 of the bytes of that object."""
    admins: tuple[LabelledAdmin, ...] = ()
    writers: tuple[Certificate, ...] = ()
    previous_admins: tuple[bytes, ...] = ()
    """The public keys of removed admins: what they signed before stays accepted."""

    def __repr__(self) -> str:
        return f"StoreConfig(of {len(self.recipients)} recipients)"

    @property
    def admin_keys(self) -> frozenset[bytes]:
        """The public keys of the present admins."""
        return frozenset(admin.key for admin in self.admins)

    def certificate(self, key: bytes) -> Certificate | None:
        """Return the certificate for a machine's public key, or None."""
        return next((writer for writer in self.writers if writer.key == key), None)

    def live(self, host: str) -> Certificate | None:
        """Return the valid certificate of a host, or None."""
        return next((writer for writer in self.writers if writer.host == host and not writer.revoked), None)

    def holder(self, host: str) -> Certificate | None:
        """Return the valid certificate of the machine that has or had this name, or None."""
        valid = [writer for writer in self.writers if not writer.revoked]
        return self.live(host) or next((writer for writer in valid if host in writer.names), None)

    @property
    def signers(self) -> Signers:
        """The keys that may sign added objects."""
        names = {writer.key: frozenset([writer.host, *writer.names]) for writer in self.writers}
        valid = {writer.key for writer in self.writers if not writer.revoked}
        former: dict[bytes, frozenset[str]] = {key: frozenset() for key in self.previous_admins}
        return Signers(
            self.admin_keys,
            {key: names[key] for key in valid},
            former | {key: names_of for key, names_of in names.items() if key not in valid},
            frozenset(
                [*self.previous_admins, *(writer.key for writer in self.writers if MAINTAIN in writer.roles)]
            ),
        )

    def _writer_recipients(self) -> list[Recipient]:
        return [Recipient(writer.recipient) for writer in self.writers if not writer.revoked]

    @property
    def sealed_to(self) -> list[Recipient]:
        """All keys that the writer secret is sealed to: recipients, and the machines that add."""
        return [*(entry.recipient for entry in self.recipients), *self._writer_recipients()]


class _Versioned(msgspec.Struct):
    version: int


class NewerConfigError(FormatError):
    """A configuration opens and is signed, but its format is one that this castore does not know."""

    def __init__(self, message: str, signer: bytes = b"") -> None:
        super().__init__(message)
        self.signer = signer
        """The public key that signed it."""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StoreConfig)
_versions = msgspec.msgpack.Decoder(_Versioned)


def config_numbers(storage: Storage) -> list[int]:
    """Return the numbers of all configurations in `storage`, in ascending order."""
    return replicas.numbers(storage, CONFIGS)


def is_empty(storage: Storage) -> bool:
    """Return whether `storage` holds nothing of a store."""
    return not any(True for folder in (PACKS, GENERATIONS, SESSIONS) for _ in storage.list(folder))


def encode_config(number: int, config: StoreConfig, writer: WriterKey, signer: SigningKey) -> bytes:
    """Return the bytes of `config/number`. Raises UsageError for an invalid recipient."""
    secret = writer.store_id + writer.secret
    seals = [recipient.seal(secret) for recipient in config.sealed_to]
    start = b"".join([header(CONFIG), writer.store_id, _COUNT.pack(len(seals)), *seals])
    about = config_name(number).encode() + start
    return start + writer.objects.seal(about, sign(signer, about, _encoder.encode(config)))


class SealedConfig:
    """A `config/N` before it is opened: a store id, sealed secrets, and the encrypted rest."""

    def __init__(self, number: int, data: bytes) -> None:
        self.number = number
        self.name = config_name(number)
        check_header(self.name, data, CONFIG)
        if len(data) < _SEALS:
            raise DamageError(f"{self.name} is damaged: it is cut off")
        self.store_id = data[HEADER_BYTES : HEADER_BYTES + 16]
        (self._count,) = _COUNT.unpack_from(data, HEADER_BYTES + 16)
        self._body = _SEALS + self._count * _SEAL_BYTES
        if len(data) <= self._body:
            raise DamageError(f"{self.name} is damaged: it is cut off")
        self.data = data

    @property
    def hash(self) -> bytes:
        """BLAKE3 of its bytes."""
        return blake3(self.data).digest()

    def secret(self, identity: Identity) -> bytes | None:
        """Return the writer secret, opened by an identity or a machine's key; None if no seal is for it.

        Raises DamageError.
        """
        for at in range(_SEALS, self._body, _SEAL_BYTES):
            try:
                secret = identity.open(self.data[at : at + _SEAL_BYTES])
            except IdentityError:
                continue
            if secret[:16] != self.store_id or len(secret) != 48:
                raise DamageError(f"{self.name} is damaged: a seal in it is of another store")
            return secret[16:]
        return None

    def open(self, writer: WriterKey) -> tuple[StoreConfig, bytes]:
        """Return the configuration, and the public key that signed it.

        The caller decides whether that key may sign it. Raises DamageError, NewerConfigError.
        """
        about = self.name.encode() + self.data[: self._body]
        try:
            signer, plain = open_signed(about, writer.objects.open(about, self.data[self._body :]))
            version = _versions.decode(plain).version
            if version != _VERSION:
                known = f"{self.name} is of format {version}, and this castore knows {_VERSION}"
                raise NewerConfigError(f"{known}: update castore", signer)
            config = _decoder.decode(plain)
        except (DamageError, msgspec.MsgspecError) as error:
            raise DamageError(
                f"{self.name} is damaged: {error}; restore config/ from a copy of the store"
            ) from None
        if problem := _problem(config, signer):
            raise DamageError(f"{self.name} is damaged: {problem}")
        return config, signer


def _problem(config: StoreConfig, signer: bytes) -> str:
    """Return what is wrong with a configuration that opens; empty if nothing."""
    if any(len(secret) != 32 for secret in config.previous_secrets) or len(config.id_secret) not in {0, 32}:
        return "a former writer secret in it is not valid"
    if len(config.rotation_hash) not in {0, 32} or (config.rotation and not config.rotation_hash):
        return "it does not name the list of objects under former writer keys"
    if any(len(entry.key) != 32 for entry in config.recipients) or not config.recipients:
        return "a recipient in it is not valid, or it has none"
    if any(len(admin.key) != 32 or len(admin.recipient) not in {0, 32} for admin in config.admins):
        return "an admin key in it is not valid"
    if any(len(writer.key) != 32 or len(writer.recipient) != 32 for writer in config.writers):
        return "the certificate of a machine in it is not valid"
    if signer not in config.admin_keys and config.certificate(signer) is None:
        return "it is signed by a key that it does not list"
    if not MIN_AVERAGE <= config.average_chunk_size <= MAX_AVERAGE:
        average = config.average_chunk_size
        return f"its mean chunk length is {average}, and not {MIN_AVERAGE} to {MAX_AVERAGE} bytes"
    return ""


def named(recipients: Iterable[LabelledRecipient]) -> str:
    """Return the recipients as listed in messages."""
    return ", ".join(
        f"{entry.recipient.text} ({entry.label})" if entry.label else entry.recipient.text
        for entry in recipients
    )
