"""Objects of a header and an encrypted part, which is bound to their name and holds a signed record.

Eras are not signed: the configuration names the hash of their bytes.
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
    """Why an object that opens is not accepted: its maker lacked the right. Nothing depends on it."""

    __slots__ = ()


class Opened(NamedTuple):
    """The content of a signed object."""

    plain: bytes
    opener: WriterKey
    """The key that opened it: the present or a former one."""
    signer: bytes
    """The public key that signed it, which has the right to."""


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

    more: cleartext after the header. signer: by default the writer's. Raises IdentityError.
    """
    start = header(kind) + more
    about = name.encode() + writer.store_id + start
    return start + writer.objects.seal(about, sign(signer or writer.signer, about, plain))


def open_object(kind: bytes, name: str, data: bytes, writer: WriterKey, *, more: int = 0) -> Opened:
    """Return the content of the object `name`. more: number of cleartext bytes after the header.

    Raises DamageError, RevokedKeyError, SignerError, FormatError; their messages name the object.
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
    """Return the record in the box of the object `name`, which must be of this version.

    Raises DamageError, FormatError; their messages name the object.
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
