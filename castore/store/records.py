"""Records of a store, opened and verified."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import DamageError, FormatError, MissingError, ObjectMissingError
from castore.store.codecs import Codecs
from castore.store.pack import CHUNK, RAW, associated_base, pack_name

if TYPE_CHECKING:
    from castore.model.refs import RecordId
    from castore.sealing import WriterKey
    from castore.storage import Storage
    from castore.store.index import Index, Place
    from castore.store.keyring import Keyring

MAX_CHAIN: Final = 8
"""No delta rests on more bases below one another than this."""


class RecordReader:
    """Reads chunks and nodes; safe to share between threads."""

    def __init__(self, storage: Storage, index: Index, writer: WriterKey, keyring: Keyring) -> None:
        self._storage = storage
        self._index = index
        self._id_keys = (writer.chunk_id_key, writer.node_id_key)
        self._keyring = keyring
        self._codecs = Codecs()

    def read(self, kind: int, record_id: RecordId, depth: int = 0) -> bytes | None:
        """Return the plaintext of a record; None if it is not indexed.

        Of several copies, one that is whole is returned. Raises DamageError if there is none,
        naming record and pack; ObjectMissingError if its pack is gone; IdentityError for a chunk.
        """
        place = self._index.locate(kind, record_id)
        if place is None:
            return None
        try:
            return self.open(kind, record_id, place, depth)
        except (DamageError, ObjectMissingError) as error:
            failure = error
        for copy in self._index.copies(record_id):
            with contextlib.suppress(DamageError, ObjectMissingError):
                return self.open(kind, record_id, copy, depth)
        raise failure

    def open(self, kind: int, record_id: RecordId, place: Place, depth: int = 0) -> bytes:
        """Return the record at a place, verified. Raises as `read` does, or ObjectMissingError."""
        name = pack_name(place.pack)
        try:
            sealer = (self._keyring.chunks if kind == CHUNK else self._keyring.nodes)(place.session)
            sealed = self._storage.get(name, place.offset, place.sealed_length)
            if len(sealed) != place.sealed_length:
                raise DamageError("the pack is cut")  # noqa: TRY301 - it is told like the others
            data = sealer.open(
                place.counter,
                record_id,
                associated_base(place.bases),
                place.plain_length,
                kind,
                place.codec,
                sealed,
            )
            if place.codec != RAW:
                data = self._decompress(data, place, depth)
            if len(data) != place.plain_length:
                raise DamageError(  # noqa: TRY301
                    f"it has {len(data)} bytes instead of {place.plain_length}"
                )
            if blake3(data, key=self._id_keys[kind]).digest() != record_id:
                raise DamageError("its bytes are not those that its id names")  # noqa: TRY301
        except MissingError as error:
            raise MissingError(f"{_where(kind, record_id, place)}: {error}") from None
        except (DamageError, FormatError) as error:
            raise DamageError(f"{_where(kind, record_id, place)}: {error}") from None
        return data

    def _decompress(self, data: bytes, place: Place, depth: int) -> bytes:
        if place.bases and depth >= MAX_CHAIN:
            raise DamageError(f"it rests on more than {MAX_CHAIN} bases")
        bases = []
        for base in place.bases:
            found = self.read(CHUNK, base, depth + 1)
            if found is None:
                raise MissingError(f"its base, chunk {base.hex()}, is not in the store")
            bases.append(found)
        return self._codecs.decompress(place.codec, data, place.plain_length, bases)


def _where(kind: int, record_id: RecordId, place: Place) -> str:
    what = "chunk" if kind == CHUNK else "node"
    return f"{what} {record_id.hex()} in {pack_name(place.pack)} at byte {place.offset} is damaged"
