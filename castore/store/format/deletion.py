"""`condemned/X`: packs that are about to be removed, where no lock keeps others from counting on them.

Who adds counts on no pack that is condemned, and looks again before the generation is written. Who removes
waits, then looks which generations there are, and removes what none of them needs.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import (
    DamageError,
    FormatError,
    ObjectMissingError,
    RevokedKeyError,
    SignerError,
    StorageError,
)
from castore.model.refs import PackId
from castore.store.format.envelope import Refusal, decode_record, open_object, seal_object
from castore.store.format.header import CONDEMNED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.crypto import WriterKey
    from castore.storage import Storage

FOLDER: Final = "condemned/"
_VERSION: Final = 1


class _Record(msgspec.Struct, frozen=True):
    version: int
    time: int
    packs: tuple[bytes, ...]


class Condemned(msgspec.Struct, frozen=True):
    """One such object."""

    name: str
    time: int
    """When it was written: nanoseconds since 1970, by the clock of who wrote it."""
    packs: tuple[PackId, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Record)


def condemn(storage: Storage, writer: WriterKey, packs: Iterable[PackId]) -> Condemned:
    """Condemn packs, durably. Raises StorageError."""
    found = Condemned(f"{FOLDER}{os.urandom(16).hex()}", time.time_ns(), tuple(sorted(packs)))
    plain = _encoder.encode(_Record(_VERSION, found.time, found.packs))
    storage.put(found.name, seal_object(CONDEMNED, found.name, plain, writer))
    return found


def read_condemned(storage: Storage, writer: WriterKey) -> tuple[list[Condemned], dict[str, str]]:
    """Return what is condemned; and, by their names, the objects that cannot be read, and why."""
    found: list[Condemned] = []
    damaged: dict[str, str] = {}
    for short in sorted(storage.list(FOLDER.rstrip("/"))):
        name = FOLDER + short
        if not re.fullmatch(r"[0-9a-f]{32}", short):
            continue
        try:
            found.append(open_condemned(name, storage.get(name), writer))
        except (ObjectMissingError, RevokedKeyError):
            # Who is left with a former key removes nothing that counts.
            continue
        except DamageError as error:
            # Who removes packs reads it again before, and then uses it as little: it condemns nothing.
            damaged[name] = Refusal(error)
        except (FormatError, StorageError) as error:
            damaged[name] = str(error)
    return found, damaged


def open_condemned(name: str, data: bytes, writer: WriterKey) -> Condemned:
    """Return what the object `name` condemns. Raises DamageError, FormatError, which name it."""
    opened = open_object(CONDEMNED, name, data, writer)
    if not writer.signers.may_maintain(opened.signer):
        raise SignerError(f"{name} is damaged: the machine that signed it may not remove packs")
    record = decode_record(name, opened.plain, _decoder, _VERSION)
    if any(len(pack) != 32 for pack in record.packs):
        raise DamageError(f"{name} is damaged: it names a pack that is none")
    return Condemned(name, record.time, tuple(PackId(pack) for pack in record.packs))
