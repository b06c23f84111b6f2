"""`removals/T-X`: which generations of a service were removed on purpose.

Another machine that has seen a removed generation finds it missing. The record is signed, so that machine
knows that the removal was intended, and whether the signer may remove that generation: a machine may remove
generations of its own host, and with the role `maintain` those of all hosts. Numbers are never used again, so
an old record that is restored explains no other removal.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import DamageError, FormatError, ObjectMissingError, StorageError
from castore.model.removals import Removals
from castore.model.spans import Spans
from castore.store.format.envelope import decode_record, open_object, seal_object
from castore.store.format.header import REMOVAL
from castore.store.format.names import REMOVALS, full_name, removal_name, tag_of_removal

if TYPE_CHECKING:
    from collections.abc import Collection

    from castore.crypto import WriterKey
    from castore.storage import Storage

_VERSION: Final = 1


class Removal(msgspec.Struct, frozen=True):
    """The generations of one service that were removed."""

    version: int
    time: int
    """When it was written: nanoseconds since 1970, by the clock of the writer."""
    spans: tuple[tuple[int, int], ...]
    """First and last number of each run of removed generations, ascending."""

    @property
    def numbers(self) -> Spans:
        """The numbers of the removed generations."""
        return Spans(self.spans)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Removal)


def record_removal(storage: Storage, writer: WriterKey, service: str, numbers: Collection[int]) -> None:
    """Record that generations are removed on purpose, durably; replace earlier records of this signer.

    Raises StorageError, IdentityError.
    """
    own = writer.signer.public
    earlier = {
        name: found for name, (found, signer) in _read(storage, writer, service).items() if signer == own
    }
    known = Spans().union(*(removal.numbers for removal in earlier.values()))
    if all(number in known for number in numbers):
        return
    name = removal_name(writer.tag(service), os.urandom(16))
    record = Removal(_VERSION, time.time_ns(), known.union(Spans.of(numbers)).spans)
    storage.put(name, seal_object(REMOVAL, name, _encoder.encode(record), writer))
    # The new record includes the earlier ones. Two processes that write at the same time leave two records.
    with contextlib.suppress(StorageError):
        storage.delete_all(earlier)


def removals(storage: Storage, writer: WriterKey, service: str) -> Removals:
    """Return the generations of a service that were removed on purpose. Raises StorageError."""
    maintained: list[Spans] = []
    hosts: dict[str, list[Spans]] = {}
    for record, signer in _read(storage, writer, service).values():
        if writer.signers.may_maintain(signer):
            maintained.append(record.numbers)
        for host in writer.signers.names(signer):
            hosts.setdefault(host, []).append(record.numbers)
    by_hosts = {host: Spans().union(*numbers) for host, numbers in hosts.items()}
    return Removals(Spans().union(*maintained), by_hosts)


def open_removal(name: str, data: bytes, writer: WriterKey) -> tuple[Removal, bytes]:
    """Return the record in the object `name`, and the key that signed it. Raises DamageError, FormatError."""
    opened = open_object(REMOVAL, name, data, writer)
    record = decode_record(name, opened.plain, _decoder, _VERSION)
    if any(not 0 < first <= last <= 0xFFFFFFFF for first, last in record.spans):
        raise DamageError(f"{name} is damaged: a run of generations in it is not a valid one")
    return record, opened.signer


def damaged_removals(storage: Storage, writer: WriterKey) -> dict[str, str]:
    """Return what is wrong with the records of all services, by name. Raises StorageError."""
    reasons = {}
    for short in storage.list(REMOVALS):
        if tag_of_removal(short) is None:
            continue
        name = full_name(REMOVALS, short)
        try:
            open_removal(name, storage.get(name), writer)
        except ObjectMissingError:
            continue  # replaced by a newer record meanwhile
        except (DamageError, FormatError, StorageError) as error:
            reasons[name] = str(error)
    return reasons


def _read(storage: Storage, writer: WriterKey, service: str) -> dict[str, tuple[Removal, bytes]]:
    """Return the accepted records of a service, each with its signer, by name."""
    tags = writer.tags(service)
    records = {}
    for short in storage.list(REMOVALS):
        if tag_of_removal(short) not in tags:
            continue
        name = full_name(REMOVALS, short)
        with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
            records[name] = open_removal(name, storage.get(name), writer)
    return records
