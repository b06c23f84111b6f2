"""`packs/P`: sealed records one after the other, and a sealed footer that describes them."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.crypto import ObjectSealer
from castore.errors import DamageError
from castore.kernel import MAX_GROUP, padme
from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.header import HEADER_BYTES, PACK, check_header, header
from castore.store.format.names import pack_name
from castore.store.format.signed import ENVELOPE_BYTES, open_signed, sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.crypto import WriterKey
    from castore.storage import Storage, Writer

PACK_BYTES: Final = 64 << 20
"""The length of a full pack."""

CHUNK: Final = 0
NODE: Final = 1
RAW: Final = 0
ZSTD: Final = 1
DELTA: Final = 2
"""A delta from one base, in a record that holds a group of deltas; DELTA + n: from n more bases."""
BASES: Final = (0, 0, 1, 2, 3, 4)
"""Number of bases of a chunk, by its codec."""
MAX_BASES: Final = 4
MAX_CHAIN: Final = 8
"""The longest chain of bases below a delta."""
MAX_PLAIN: Final = 32 << 20
"""No chunk is longer, in bytes: eight times the largest average."""
_NO_ID: Final = RecordId(bytes(32))

RECORDS: Final = HEADER_BYTES + 16
"""Offset of the first record in a pack."""
_ENTRY: Final = struct.Struct("<32sIIIHBB")
_SESSIONS: Final = struct.Struct("<H")
_MAX_SESSIONS: Final = 0xFFFF
_TRAILER: Final = struct.Struct("<II")
_TRAILER_BYTES: Final = _TRAILER.size + ObjectSealer.OVERHEAD
_BUFFER: Final = 1 << 20
_TAIL: Final = 128 << 10
"""Bytes read at once from a pack's end: they include the footer of a pack of 64 KiB chunks."""


class PackEntry(NamedTuple):
    """A chunk or node in a pack, without its bytes. The deltas of a group share a record."""

    id: RecordId
    kind: int
    codec: int
    plain_length: int
    sealed_length: int
    counter: int
    session: SessionId
    offset: int = 0
    """Offset of the record's first byte in the pack."""
    bases: tuple[RecordId, ...] = ()
    """The chunks from which a delta is made: BASES[codec] ids."""
    group_index: int = 0
    """Its position in the group of deltas that the record holds."""


def record_names(
    record_id: RecordId, plain_length: int, kind: int, codec: int
) -> tuple[bytes, int, int, int]:
    """Return what a record is bound to when it is sealed: id, plain length, kind, codec.

    A group has no values of its own, and its members' values would cost a look-up each. The record's counter
    identifies the group, and a chunk decoded from it is checked against its id.
    """
    if codec >= DELTA:
        return _NO_ID, 0, kind, DELTA
    return record_id, plain_length, kind, codec


class PackWriter:
    """A pack being written. After a failure it must be aborted, and never committed."""

    def __init__(self, storage: Storage, key: WriterKey) -> None:
        self.entries: list[PackEntry] = []
        self._key = key
        self._start = header(PACK) + os.urandom(16)
        self._sessions: dict[SessionId, int] = {}
        self._bases = 0
        self._offset = RECORDS
        self._hash = blake3()
        self._buffer = bytearray(self._start)
        self._writer: Writer = storage.create()

    def fits(self, entries: Sequence[PackEntry]) -> bool:
        """Return whether the pack stays within PACK_BYTES with a record of these entries."""
        added = sum(_ENTRY.size + 32 * len(entry.bases) for entry in entries)
        if entries[0].session not in self._sessions:
            if len(self._sessions) >= _MAX_SESSIONS:
                return False
            added += 16
        added += entries[0].sealed_length
        return self._offset + self._end_bytes() + added <= PACK_BYTES

    def _end_bytes(self) -> int:
        footer = (
            ENVELOPE_BYTES
            + _SESSIONS.size
            + 16 * len(self._sessions)
            + _ENTRY.size * len(self.entries)
            + 32 * self._bases
        )
        return footer + ObjectSealer.OVERHEAD + _TRAILER_BYTES

    def add(self, entries: Sequence[PackEntry], record: bytes | memoryview) -> int:
        """Append a record and the entries of what it holds; return its offset in the pack.

        The stored entries get that offset. Raises StorageError.
        """
        offset = self._offset
        for entry in entries:
            self._sessions.setdefault(entry.session, len(self._sessions))
            self._bases += len(entry.bases)
            self.entries.append(entry._replace(offset=offset))
        self._offset += len(record)
        self._buffer += record
        if len(self._buffer) >= _BUFFER:
            self._flush()
        return offset

    def commit(self, *, full: bool) -> tuple[PackId, int]:
        """Make the pack durable; return its name and length.

        full: pad to PACK_BYTES, because no further record fits. Raises StorageError.
        """
        about = self._associated(b"footer")
        footer = self._key.objects.seal(about, sign(self._key.signer, about, self._footer()))
        trailer = _TRAILER.pack(len(footer), len(self.entries))
        trailer = self._key.objects.seal(self._associated(b"trailer"), trailer)
        length = self._offset + len(footer) + len(trailer)
        padded = PACK_BYTES if full else padme(length)
        missing = padded - length
        while missing > 0:
            piece = os.urandom(min(missing, _BUFFER))
            self._buffer += piece
            missing -= len(piece)
            self._flush()
        self._buffer += footer + trailer
        self._flush()
        pack = PackId(self._hash.digest())
        self._writer.commit(pack_name(pack))
        return pack, padded

    def abort(self) -> None:
        """Discard the pack. Does nothing after a commit."""
        self._writer.abort()

    def _footer(self) -> bytes:
        return b"".join(
            [
                _SESSIONS.pack(len(self._sessions)),
                *self._sessions,
                *(
                    _ENTRY.pack(
                        entry.id,
                        0 if entry.group_index else entry.sealed_length,
                        entry.plain_length,
                        entry.counter,
                        self._sessions[entry.session],
                        entry.kind,
                        entry.codec,
                    )
                    for entry in self.entries
                ),
                *(base for entry in self.entries for base in entry.bases),
            ]
        )

    def _associated(self, what: bytes) -> bytes:
        return what + self._key.store_id + self._start

    def _flush(self) -> None:
        self._hash.update(self._buffer)
        self._writer.write(self._buffer)
        self._buffer.clear()


class Footer(NamedTuple):
    """The footer of a pack, opened."""

    plain: bytes
    entry_count: int
    """Number of entries, as given in the trailer."""
    end: int
    """Offset at which the records must have ended."""
    size: int
    """Length of the pack."""
    signer: bytes = b""
    """The public key that signed the pack, which has the right to."""

    @property
    def sessions(self) -> list[SessionId]:
        """The table of sessions, as far as it is complete."""
        end = _SESSIONS.size + 16 * int.from_bytes(self.plain[:2], "little")
        return [SessionId(self.plain[at : at + 16]) for at in range(_SESSIONS.size, end, 16)]

    def entries(self) -> list[PackEntry]:
        """Return the pack's entries, in order. Raises DamageError, which does not name the pack."""
        return _decode_footer(self.plain, self.entry_count, self.end)


def read_footer(storage: Storage, name: str, key: WriterKey) -> tuple[list[PackEntry], int]:
    """Return the entries of the pack `name`, in order, and the pack's length.

    Raises DamageError and FormatError, naming the pack; ObjectMissingError, StorageError.
    """
    footer = open_footer(storage, name, key)
    return entries_of(name, footer), footer.size


def entries_of(name: str, footer: Footer) -> list[PackEntry]:
    """Return the entries of the pack `name`, in order. Raises DamageError, naming the pack."""
    try:
        return footer.entries()
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None


def open_footer(storage: Storage, name: str, key: WriterKey) -> Footer:
    """Return the footer of the pack `name`. Raises the same errors as `read_footer`."""
    size = storage.size(name)
    if not RECORDS + _SESSIONS.size + ObjectSealer.OVERHEAD + _TRAILER_BYTES <= size <= PACK_BYTES:
        raise DamageError(f"{name} is damaged: {size} bytes is not a valid length of a pack")
    start = storage.get(name, 0, RECORDS)
    check_header(name, start, PACK)
    tail_at = max(size - _TAIL, RECORDS)
    tail = storage.get(name, tail_at, size - tail_at)
    if len(start) != RECORDS or len(tail) != size - tail_at:
        raise DamageError(f"{name} is damaged: it is cut off")
    try:
        associated = key.store_id + start
        box = tail[-_TRAILER_BYTES:]
        pack = PackId(bytes.fromhex(name.rpartition("/")[2]))  # a pack's name is its hash
        trailer, opener = key.open(pack_name(pack), b"trailer" + associated, box, lambda: pack)
        length, count = _TRAILER.unpack(trailer)
        footer_at = size - _TRAILER_BYTES - length
        if footer_at < RECORDS:
            raise DamageError("its footer is longer than the pack")  # noqa: TRY301 - reported like the others
        if footer_at >= tail_at:
            box = tail[footer_at - tail_at : -_TRAILER_BYTES]
        else:
            box = storage.get(name, footer_at, length)
        about = b"footer" + associated
        signer, footer = open_signed(about, opener.objects.open(about, box))
        key.check_signer(signer, opener)
        return Footer(footer, count, footer_at, size, signer)
    except DamageError as error:
        raise type(error)(f"{name} is damaged: {error}") from None


def _decode_footer(footer: bytes, count: int, end: int) -> list[PackEntry]:
    """Return the entries of a footer; `end` is the offset at which the records must have ended."""
    table = int.from_bytes(footer[:2], "little")
    begin = _SESSIONS.size + 16 * table
    base = begin + _ENTRY.size * count
    if base > len(footer):
        raise DamageError("its footer is too short for its number of entries")
    sessions = [SessionId(footer[at : at + 16]) for at in range(_SESSIONS.size, begin, 16)]
    entries: list[PackEntry] = []
    offset = RECORDS
    of: tuple[RecordId, ...]
    for record_id, sealed, plain, counter, session, kind, codec in _ENTRY.iter_unpack(
        footer[begin:base]
    ):
        if session >= table or kind > NODE or codec >= (len(BASES) if kind == CHUNK else DELTA):
            raise DamageError(
                f"an entry of its footer has session {session}, kind {kind}, codec {codec}"
            )
        if plain > MAX_PLAIN:
            raise DamageError(f"an entry of its footer has {plain} bytes, more than a chunk can have")
        of = ()
        if BASES[codec]:
            next_base = base + 32 * BASES[codec]
            of = tuple(RecordId(footer[at : at + 32]) for at in range(base, next_base, 32))
            base = next_base
        entry = PackEntry(record_id, kind, codec, plain, sealed, counter, sessions[session], offset, of)
        if not sealed:
            entry = _next_member(entries, entry)
        entries.append(entry)
        offset += sealed
    if base != len(footer):
        raise DamageError("its footer does not have the length that its entries give")
    if offset > end:
        raise DamageError("its records are longer than the pack")
    return entries


def _next_member(entries: list[PackEntry], entry: PackEntry) -> PackEntry:
    """Return an entry that shares the record of the previous entry. Raises DamageError."""
    first = entries[-1] if entries else None
    if (
        first is None
        or min(first.codec, entry.codec) < DELTA
        or first.counter != entry.counter
        or first.session != entry.session
        or first.group_index == MAX_GROUP - 1
    ):
        raise DamageError("an entry of its footer has no record")
    return entry._replace(
        sealed_length=first.sealed_length, offset=first.offset, group_index=first.group_index + 1
    )
