"""`pins/T-N`: generations that are kept whatever the rules say."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import DamageError, ObjectExistsError, ObjectMissingError
from castore.store.generations import MAX_NUMBER, NAME, generation_name
from castore.store.header import HEADER_BYTES, PIN, check_header, header

if TYPE_CHECKING:
    from castore.sealing import WriterKey
    from castore.storage import Storage

_VERSION: Final = 1


class Pin(msgspec.Struct, frozen=True):
    """Why a generation is kept."""

    version: int
    time: int
    """When it was pinned: nanoseconds since 1970."""
    note: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Pin)


def _name(writer: WriterKey, service: str, number: int) -> str:
    return "pins/" + generation_name(writer, service, number).partition("/")[2]


def pin(storage: Storage, writer: WriterKey, service: str, number: int, note: str) -> bool:
    """Pin a generation; tell whether it was not yet. Raises StorageError."""
    name = _name(writer, service, number)
    start = header(PIN)
    plain = _encoder.encode(Pin(_VERSION, time.time_ns(), note))
    try:
        storage.put(name, start + writer.objects.seal(name.encode() + writer.store_id + start, plain))
    except ObjectExistsError:
        return False
    return True


def unpin(storage: Storage, writer: WriterKey, service: str, number: int) -> bool:
    """Let the rules decide about a generation again; tell whether it was pinned. Raises StorageError."""
    try:
        storage.delete(_name(writer, service, number))
    except ObjectMissingError:
        return False
    return True


def pins(storage: Storage, writer: WriterKey, service: str) -> dict[int, str]:
    """Return the numbers that are pinned of a service, with the notes. Raises StorageError.

    One whose object is damaged is pinned, with an empty note: rather keep too much.
    """
    tag = writer.tag(service).hex() + "-"
    found = {}
    for short in storage.list("pins"):
        if short.startswith(tag) and NAME.fullmatch(short) and 0 < int(short[len(tag) :]) <= MAX_NUMBER:
            found[int(short[len(tag) :])] = ""
            with contextlib.suppress(DamageError, ObjectMissingError):
                found[int(short[len(tag) :])] = _open(f"pins/{short}", storage, writer).note
    return found


def _open(name: str, storage: Storage, writer: WriterKey) -> Pin:
    data = storage.get(name)
    check_header(name, data, PIN)
    start = data[:HEADER_BYTES]
    plain = writer.objects.open(name.encode() + writer.store_id + start, data[HEADER_BYTES:])
    try:
        return _decoder.decode(plain)
    except msgspec.MsgspecError as error:
        raise DamageError(f"{name} is damaged: {error}") from None
