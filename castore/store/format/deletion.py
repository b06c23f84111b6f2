"""`deletions/X`: packs that are about to be deleted, if no lock keeps other machines from referencing them.

A writer references no pack that is pending deletion, and checks again before it writes the generation. The
deleting process waits, then reads which generations exist, and deletes the packs that none of them needs.
"""

from __future__ import annotations

import os
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
from castore.store.format.header import DELETION
from castore.store.format.names import DELETIONS, deletion_name, full_name, is_deletion

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.crypto import WriterKey
    from castore.storage import Storage

_VERSION: Final = 1


class _Record(msgspec.Struct, frozen=True):
    version: int
    time: int
    packs: tuple[bytes, ...]


class PendingDeletion(msgspec.Struct, frozen=True):
    """One object in `deletions/`."""

    name: str
    time: int
    """When it was written: nanoseconds since 1970, by the clock of the writer."""
    packs: tuple[PackId, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Record)


def write_deletion(storage: Storage, writer: WriterKey, packs: Iterable[PackId]) -> PendingDeletion:
    """Condemn packs, durably. Raises StorageError."""
    deletion = PendingDeletion(deletion_name(os.urandom(16)), time.time_ns(), tuple(sorted(packs)))
    plain = _encoder.encode(_Record(_VERSION, deletion.time, deletion.packs))
    storage.put(deletion.name, seal_object(DELETION, deletion.name, plain, writer))
    return deletion


def pending_deletions(storage: Storage, writer: WriterKey) -> tuple[list[PendingDeletion], dict[str, str]]:
    """Return the pending deletions; and, by name, the objects that cannot be read, with the reasons.

    Raises StorageError.
    """
    deletions: list[PendingDeletion] = []
    damaged: dict[str, str] = {}
    for short in sorted(storage.list(DELETIONS)):
        name = full_name(DELETIONS, short)
        if not is_deletion(short):
            continue
        try:
            deletions.append(open_deletion(name, storage.get(name), writer))
        except (ObjectMissingError, RevokedKeyError):
            # A machine that has only a former key may not have anything deleted.
            continue
        except DamageError as error:
            # The deleting process reads it again first, and ignores it as well: it deletes nothing.
            damaged[name] = Refusal(error)
        except (FormatError, StorageError) as error:
            damaged[name] = str(error)
    return deletions, damaged


def open_deletion(name: str, data: bytes, writer: WriterKey) -> PendingDeletion:
    """Return the pending deletion in the object `name`. Raises DamageError, FormatError, which name it."""
    opened = open_object(DELETION, name, data, writer)
    if not writer.signers.may_maintain(opened.signer):
        raise SignerError(f"{name} is damaged: the machine that signed it may not remove packs")
    record = decode_record(name, opened.plain, _decoder, _VERSION)
    if any(len(pack) != 32 for pack in record.packs):
        raise DamageError(f"{name} is damaged: an id of a pack in it is not valid")
    return PendingDeletion(name, record.time, tuple(PackId(pack) for pack in record.packs))
