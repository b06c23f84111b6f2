"""`pins/T-N`: generations that are kept whatever the retention rules say."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import DamageError, FormatError, ObjectExistsError, ObjectMissingError, RevokedKeyError
from castore.store.format.envelope import decode_record, open_object, seal_object
from castore.store.format.header import PIN
from castore.store.format.names import PINS, full_name, pin_name, split_pin

if TYPE_CHECKING:
    from castore.crypto import WriterKey
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


def pin(storage: Storage, writer: WriterKey, service: str, number: int, note: str) -> bool:
    """Pin a generation; return whether it was not pinned yet. Raises StorageError."""
    if number in pins(storage, writer, service):
        return False
    name = pin_name(writer.tag(service), number)
    plain = _encoder.encode(Pin(_VERSION, time.time_ns(), note))
    try:
        storage.put(name, seal_object(PIN, name, plain, writer))
    except ObjectExistsError:
        if number in pins(storage, writer, service):
            return False
        # An object without a valid signer has the name, to prevent the pin: replace it.
        storage.delete_all([name])
        storage.put(name, seal_object(PIN, name, plain, writer))
    return True


def unpin(storage: Storage, writer: WriterKey, service: str, number: int) -> bool:
    """Let retention rules decide about a generation; return whether it was pinned. Raises StorageError."""
    pinned = number in pins(storage, writer, service)
    storage.delete_all(pin_name(tag, number) for tag in writer.tags(service))
    return pinned


def pins(storage: Storage, writer: WriterKey, service: str) -> dict[int, str]:
    """Return the pinned numbers of a service, with the notes. Raises StorageError.

    A generation whose pin is damaged counts as pinned, with an empty note: rather keep too much.
    """
    tags = writer.tags(service)
    notes: dict[int, str] = {}
    for short in storage.list(PINS):
        tag, number = split_pin(short)
        if number and tag in tags:
            note = ""
            try:
                name = full_name(PINS, short)
                note = open_pin(name, storage.get(name), writer).note
            except RevokedKeyError:
                continue  # its signer may not pin
            except (DamageError, FormatError, ObjectMissingError):
                pass
            notes[number] = note or notes.get(number, "")
    return notes


def open_pin(name: str, data: bytes, writer: WriterKey) -> Pin:
    """Return the pin in the object `name`. Raises DamageError, FormatError."""
    opened = open_object(PIN, name, data, writer)
    return decode_record(name, opened.plain, _decoder, _VERSION)
