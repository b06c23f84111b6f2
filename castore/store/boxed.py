"""Objects that are a header and one box, bound to their name; and the versioned records in boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from blake3 import blake3

from castore.errors import DamageError, FormatError
from castore.store.header import HEADER_BYTES, check_header, header

if TYPE_CHECKING:
    from castore.sealing import WriterKey


class _Versioned(Protocol):
    @property
    def version(self) -> int: ...


_Record = TypeVar("_Record", bound=_Versioned)


def seal_object(kind: bytes, name: str, plain: bytes, writer: WriterKey) -> bytes:
    """Return the bytes of the object `name` that holds `plain`."""
    start = header(kind)
    return start + writer.objects.seal(name.encode() + writer.store_id + start, plain)


def open_object(kind: bytes, name: str, data: bytes, writer: WriterKey) -> tuple[bytes, WriterKey]:
    """Return what the object `name` holds, and the key, this or a former one, that opened it.

    Raises DamageError, FormerKeyError, FormatError; they name the object.
    """
    check_header(name, data, kind)
    ad = name.encode() + writer.store_id + data[:HEADER_BYTES]
    try:
        return writer.open(name, ad, data[HEADER_BYTES:], lambda: blake3(data).digest())
    except DamageError as error:
        raise type(error)(f"{name} is damaged: {error}") from None


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
