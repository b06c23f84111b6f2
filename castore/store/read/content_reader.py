"""Read chunks and nodes of a store by id. If one is not indexed, bring the index up to date and try again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import DamageError, MissingError, ObjectMissingError
from castore.model.refs import decode_node
from castore.store.format.names import PACKS, is_in, pack_name
from castore.store.format.pack import CHUNK, NODE, read_footer
from castore.store.index import RecordLocation

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.model.refs import PackId, RecordId, Ref
    from castore.store.format.pack import PackEntry
    from castore.store.index_updater import IndexUpdater
    from castore.store.keys.key_manager import KeyManager
    from castore.store.keys.keyring import Keyring
    from castore.store.read.record_reader import RecordReader


class ContentReader:
    """Reads the records of a store, under the keys that are in use. Safe to share between threads."""

    def __init__(self, keys: KeyManager, updater: IndexUpdater) -> None:
        self._keys = keys
        self._updater = updater
        self._records: tuple[Keyring, RecordReader] | None = None
        self._settled: tuple[int, tuple[bytes, int, int], str] | None = None
        """The sync that left the index as it was, its state, and the missing object that was the reason."""

    def close(self) -> None:
        """Drop the keys of records."""
        self._records = None

    def chunk_id(self, data: bytes | memoryview) -> RecordId:
        """Return the id that bytes have as a chunk."""
        return self._reader.chunk_id(data)

    def is_chunk(self, chunk: RecordId, data: bytes | memoryview) -> bool:
        """Return whether bytes have this id as a chunk, under the present id key or a former one."""
        return self._reader.is_chunk(chunk, data)

    def read_chunk(self, chunk: RecordId) -> bytes:
        """Return a chunk. Raises MissingError, DamageError, IdentityError."""
        return self._read(CHUNK, chunk)

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes]:
        """Return chunks of one range of a stream: faster than one by one. Raises as `read_chunk`."""
        contents = self._reader.read_chunks(chunks)
        return contents if contents is not None else [self.read_chunk(chunk) for chunk in chunks]

    def read_node(self, node: RecordId) -> list[Ref]:
        """Return the references of a node. Raises MissingError, DamageError."""
        plain = self.read_node_bytes(node)
        try:
            return decode_node(plain)
        except DamageError as error:
            raise DamageError(f"node {node.hex()}: {error}") from None

    def read_node_bytes(self, node: RecordId) -> bytes:
        """Return the plaintext of a node. Raises MissingError, DamageError."""
        return self._read(NODE, node)

    def read_nodes_bytes(self, nodes: Sequence[RecordId]) -> list[bytes]:
        """Return the plaintexts of nodes, read in one batch. Raises MissingError, DamageError."""
        contents = self._reader.read_nodes(nodes)
        return contents if contents is not None else [self.read_node_bytes(node) for node in nodes]

    def pack_entries(self, pack: PackId) -> list[PackEntry]:
        """Return the entries in a pack's footer. Raises DamageError, FormatError, StorageError."""
        return read_footer(self._keys.storage, pack_name(pack), self._keys.writer_key)[0]

    def broken_entries(
        self, pack: PackId, entries: Sequence[PackEntry]
    ) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open at their location, and why. Raises IdentityError."""
        return self._reader.broken(pack, entries)

    def is_intact(self, pack: PackId, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Return whether `sealed` is the unchanged record of this entry; its bases are not checked.

        Raises IdentityError for a chunk.
        """
        return self._reader.is_intact(RecordLocation.of(pack, entry), entry, sealed)

    @property
    def _reader(self) -> RecordReader:
        """The reader under the keys in use: a changed configuration brings other keys."""
        ring, found = self._keys.ring, self._records
        if found is not None and found[0] is ring:
            return found[1]
        # Imported when needed: commands that list generations must start fast.
        from castore.store.read.record_reader import RecordReader  # noqa: PLC0415

        reader = RecordReader(self._keys.storage, self._updater.index, ring, longest=self._keys.cutter.max)
        self._records = ring, reader
        return reader

    def _read(self, kind: int, record_id: RecordId) -> bytes:
        why = ""
        for tries_left in (2, 1, 0):
            try:
                plain, missing = self._reader.read(kind, record_id), ""
            except ObjectMissingError as error:
                plain, missing = None, str(error)
                why = f": {error}"
            if plain is not None:
                return plain
            # Another machine may have added it, or moved it to another pack. But if a sync changed nothing
            # in the index, it found nothing for the next missing record either.
            # A later sync starts again: what a new generation references may have been missing before.
            state, generations = self._index_state(), self._updater.generations
            if not tries_left or self._settled == (generations.sync_count, state, missing):
                break
            self._updater.sync()
            if self._index_state() == state:
                self._settled = generations.sync_count, state, missing
        what = "chunk" if kind == CHUNK else "node"
        message = f"{what} {record_id.hex()} is not in the store at {self._keys.location}{why}"
        packs = sorted(name for name in self._updater.damaged if is_in(PACKS, name))
        if packs:
            message += f"; it may have been in a damaged pack: {', '.join(packs)}"
        raise MissingError(message)

    def _index_state(self) -> tuple[bytes, int, int]:
        """Return a value that changes if packs or generations are added to the index, or packs removed."""
        index = self._updater.index
        return index.epoch(), index.count("packs"), index.count("generations")
