"""Objects that are a header and one box, bound to their name, with a signed record in it.

Eras are not signed: the configuration names their bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

import msgspec
from blake3 import blake3

from castore.errors import DamageError, FormatError
from castore.store.format.header import HEADER_BYTES, check_header, header
from castore.store.format.signed import open_signed, sign

if TYPE_CHECKING:
    from castore.crypto import SigningKey, WriterKey


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


_Record = TypeVar("_Record", bound=_Versioned)


class Refusal(str):
    """Why an object that opens is not accepted: somebody who may not made it, and nothing depends on it."""

    __slots__ = ()


class Opened(NamedTuple):
    """What a signed object holds."""

    plain: bytes
    opener: WriterKey
    """The key, the present or a former one, that opened it."""
    signer: bytes
    """The public key that signed it, and may."""


def seal_object(
    kind: bytes,
    name: str,
    plain: bytes,
    writer: WriterKey,
    *,
    more: bytes = b"",
    signer: SigningKey | None = None,
) -> bytes:
    """Return the bytes of the object `name` that holds `plain`, signed.

    more: what stands in the clear after the header. signer: else the writer's. Raises IdentityError.
    """
    start = header(kind) + more
    about = name.encode() + writer.store_id + start
    return start + writer.objects.seal(about, sign(signer or writer.signer, about, plain))


def open_object(kind: bytes, name: str, data: bytes, writer: WriterKey, *, more: int = 0) -> Opened:
    """Return what the object `name` holds. more: how many bytes stand in the clear after the header.

    Raises DamageError, RevokedKeyError, SignerError, FormatError; they name the object.
    """
    check_header(name, data, kind)
    box = HEADER_BYTES + more
    about = name.encode() + writer.store_id + data[:box]
    try:
        envelope, opener = writer.open(name, about, data[box:], lambda: blake3(data).digest())
        signer, plain = open_signed(about, envelope)
        writer.check_signer(signer, opener)
    except DamageError as error:
        raise type(error)(f"{name} is damaged: {error}") from None
    return Opened(plain, opener, signer)


def decode_record(
    name: str, plain: bytes, decoder: msgspec.msgpack.Decoder[_Record], version: int
) -> _Record:
    """Return the record in the box of the object `name`, which is of this version.

    Raises DamageError, FormatError; they name the object.
    """
    try:
        record = decoder.decode(plain)
    except msgspec.MsgspecError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
    if record.version != version:
        raise FormatError(
            f"{name} is of format {record.version}, and this castore knows {version}: update castore"
        )
    return record
