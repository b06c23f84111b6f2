"""`packs/P`: sealed records one behind the other, and a sealed footer that says what they are."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from blake3 import blake3

from castore.errors import DamageError
from castore.kernel import padme
from castore.model.refs import PackId, RecordId, SessionId
from castore.sealing import ObjectSealer
from castore.store.header import HEADER_BYTES, PACK, check_header, header

if TYPE_CHECKING:
    from castore.sealing import WriterKey
    from castore.storage import Storage, Writer

PACK_BYTES: Final = 64 << 20
"""The length of a full pack."""

CHUNK: Final = 0
NODE: Final = 1
RAW: Final = 0
ZSTD: Final = 1
DICTIONARY: Final = 2
"""zstd, with the base as raw-content dictionary; read, but no longer written."""
DELTA: Final = 3
"""A delta of the kernel's from the base, under zstd."""
DELTA_PAIR: Final = 4
"""The same, from two bases one behind the other."""
BASES: Final = (0, 0, 1, 1, 2)
"""How many bases a record has, by its codec."""
MAX_CHAIN: Final = 8
"""No delta rests on more bases below one another than this."""
NO_BASE: Final = RecordId(bytes(32))

_RECORDS: Final = HEADER_BYTES + 16
_ENTRY: Final = struct.Struct("<32sIIIHBB")
_SESSIONS: Final = struct.Struct("<H")
_TRAILER: Final = struct.Struct("<II")
_TRAILER_BYTES: Final = _TRAILER.size + ObjectSealer.OVERHEAD
_BUFFER: Final = 1 << 20
_TAIL: Final = 128 << 10
"""What is read of a pack's end at once: the footer of a pack of 64 KiB chunks is in it."""


class PackEntry(NamedTuple):
    """A record in a pack, all but its bytes."""

    id: RecordId
    kind: int
    codec: int
    plain_length: int
    sealed_length: int
    counter: int
    session: SessionId
    offset: int = 0
    """Of its first byte in the pack."""
    bases: tuple[RecordId, ...] = ()
    """What it is the difference from: BASES[codec] ids."""


def associated_base(bases: tuple[RecordId, ...]) -> bytes:
    """Return the 32 bytes by which a record's associated data names its bases."""
    if len(bases) < 2:
        return bases[0] if bases else NO_BASE
    return blake3(b"".join(bases)).digest()


def pack_name(pack: PackId) -> str:
    """Return the name of the object."""
    return f"packs/{pack.hex()}"


class PackWriter:
    """A pack being written. A failed one is to be aborted, and never committed."""

    def __init__(self, storage: Storage, key: WriterKey) -> None:
        self.entries: list[PackEntry] = []
        self._key = key
        self._start = header(PACK) + os.urandom(16)
        self._sessions: dict[SessionId, int] = {}
        self._bases = 0
        self._offset = _RECORDS
        self._hash = blake3()
        self._buffer = bytearray(self._start)
        self._writer: Writer = storage.create()

    def fits(self, sealed_length: int, session: SessionId, bases: int = 0) -> bool:
        """Whether such a record, and its entry, leave the pack at most PACK_BYTES long."""
        entry = _ENTRY.size + 32 * bases
        if session not in self._sessions:
            entry += 16
        return self._offset + sealed_length + self._end_bytes() + entry <= PACK_BYTES

    def _end_bytes(self) -> int:
        footer = (
            _SESSIONS.size
            + 16 * len(self._sessions)
            + _ENTRY.size * len(self.entries)
            + 32 * self._bases
        )
        return footer + ObjectSealer.OVERHEAD + _TRAILER_BYTES

    def add(self, entry: PackEntry, record: bytes | memoryview) -> int:
        """Append a record; return its offset, which is also put into its entry.

        Raises StorageError.
        """
        self._sessions.setdefault(entry.session, len(self._sessions))
        self._bases += len(entry.bases)
        self.entries.append(entry._replace(offset=self._offset))
        offset = self._offset
        self._offset += len(record)
        self._buffer += record
        if len(self._buffer) >= _BUFFER:
            self._flush()
        return offset

    def commit(self, *, full: bool) -> tuple[PackId, int]:
        """Make the pack durable; return its name and length.

        full: pad to PACK_BYTES, since no further record fits. Raises StorageError.
        """
        footer = self._key.objects.seal(self._associated(b"footer"), self._footer())
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
        """Throw the pack away; does nothing after a commit."""
        self._writer.abort()

    def _footer(self) -> bytes:
        return b"".join(
            [
                _SESSIONS.pack(len(self._sessions)),
                *self._sessions,
                *(
                    _ENTRY.pack(
                        entry.id,
                        entry.sealed_length,
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


def read_footer(storage: Storage, name: str, key: WriterKey) -> tuple[list[PackEntry], int]:
    """Return what lies in the pack `name`, in order, and the pack's length.

    Raises DamageError and FormatError, naming the pack; ObjectMissingError, StorageError.
    """
    size = storage.size(name)
    if not _RECORDS + _SESSIONS.size + ObjectSealer.OVERHEAD + _TRAILER_BYTES <= size < 1 << 32:
        raise DamageError(f"{name} is damaged: no pack has {size} bytes")
    start = storage.get(name, 0, _RECORDS)
    check_header(name, start, PACK)
    tail_at = max(size - _TAIL, _RECORDS)
    tail = storage.get(name, tail_at, size - tail_at)
    if len(start) != _RECORDS or len(tail) != size - tail_at:
        raise DamageError(f"{name} is damaged: it is cut")
    try:
        associated = key.store_id + start
        trailer = key.objects.open(b"trailer" + associated, tail[-_TRAILER_BYTES:])
        length, count = _TRAILER.unpack(trailer)
        footer_at = size - _TRAILER_BYTES - length
        if footer_at >= tail_at:
            box = tail[footer_at - tail_at : -_TRAILER_BYTES]
        else:
            box = storage.get(name, max(footer_at, _RECORDS), length)
        footer = key.objects.open(b"footer" + associated, box)
        return _decode_footer(footer, count, footer_at), size
    except DamageError as error:
        raise DamageError(f"{name} is damaged: {error}") from None


def _decode_footer(footer: bytes, count: int, end: int) -> list[PackEntry]:
    """Return the entries of a footer; `end` is where the records must have ended."""
    table = int.from_bytes(footer[:2], "little")
    begin = _SESSIONS.size + 16 * table
    base = begin + _ENTRY.size * count
    if base > len(footer):
        raise DamageError("its footer is too short for what it counts")
    sessions = [SessionId(footer[at : at + 16]) for at in range(_SESSIONS.size, begin, 16)]
    entries = []
    offset = _RECORDS
    of: tuple[RecordId, ...]
    for record_id, sealed, plain, counter, session, kind, codec in _ENTRY.iter_unpack(
        footer[begin:base]
    ):
        if session >= table or kind > NODE or codec >= len(BASES):
            raise DamageError(
                f"an entry of its footer has session {session}, kind {kind}, codec {codec}"
            )
        of = ()
        if BASES[codec]:
            behind = base + 32 * BASES[codec]
            of = tuple(RecordId(footer[at : at + 32]) for at in range(base, behind, 32))
            base = behind
        entries.append(
            PackEntry(record_id, kind, codec, plain, sealed, counter, sessions[session], offset, of)
        )
        offset += sealed
    if base != len(footer):
        raise DamageError("its footer has not the length that it counts")
    if offset > end:
        raise DamageError("its records are longer than the pack")
    return entries
