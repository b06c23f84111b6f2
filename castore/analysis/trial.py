"""Trial stores: real stores and sessions, whose packs are counted and discarded.

Everything that affects the size of a store is the code that snapshots run: cutting, deltas, compression,
encryption, packs, index, scan and base cache. Only the bytes of packs are dropped. Nodes are kept in a file,
because a snapshot is compared with the one before it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from typing import TYPE_CHECKING, Final

from castore.analysis.counting_storage import CountingStorage
from castore.crypto import Identity
from castore.kernel import Cutter
from castore.model.refs import encode_node
from castore.state.paths import MachinePaths
from castore.store import NewStore, Session, Store, StoreOptions
from castore.store.read.content_reader import ContentReader

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from mmap import mmap

    from castore.analysis.census import Census
    from castore.analysis.settings import Setting
    from castore.model.refs import RecordId, Ref
    from castore.store import NewChunk, SealedRecord
    from castore.store.index import Index
    from castore.store.keys.key_manager import KeyManager
    from castore.store.write.base_cache import BaseCache

_CACHE_PAGES: Final = 2000
"""Pages of 4 KiB that SQLite keeps in memory."""


class NodeFile:
    """The nodes of a trial store, in a temporary file; safe to share between threads."""

    def __init__(self, path: str) -> None:
        self._lock = threading.Lock()
        self._rows = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA journal_mode = OFF")
        self._rows.execute("PRAGMA synchronous = OFF")
        self._rows.execute(f"PRAGMA cache_size = {_CACHE_PAGES}")
        self._rows.execute("CREATE TABLE nodes (id BLOB PRIMARY KEY, refs BLOB)")
        self._rows.execute("BEGIN")

    def add(self, node: RecordId, refs: list[Ref]) -> None:
        """Keep a node."""
        with self._lock:
            self._rows.execute("INSERT OR IGNORE INTO nodes VALUES (?, ?)", (node, encode_node(refs)))

    def get(self, node: RecordId) -> bytes | None:
        """Return the plaintext of a node; None if it was never added."""
        with self._lock:
            row = self._rows.execute("SELECT refs FROM nodes WHERE id = ?", (node,)).fetchone()
        return None if row is None else bytes(row[0])

    def close(self) -> None:
        """Close the file."""
        self._rows.close()


class _NodeReader(ContentReader):
    """Reads nodes from a node file; chunks cannot be read."""

    def __init__(self, store: Store, nodes: NodeFile) -> None:
        super().__init__(store.keys, store.updater)
        self._nodes = nodes

    def read_node_bytes(self, node: RecordId) -> bytes:
        found = self._nodes.get(node)
        return super().read_node_bytes(node) if found is None else found

    def read_nodes_bytes(self, nodes: Sequence[RecordId]) -> list[bytes]:
        return [self.read_node_bytes(node) for node in nodes]


class _TrialSession(Session):
    """A session that also counts what it seals, and keeps its nodes."""

    def __init__(
        self,
        storage: CountingStorage,
        index: Index,
        keys: KeyManager,
        base_cache: BaseCache,
        nodes: NodeFile,
        census: Census,
    ) -> None:
        super().__init__(storage, index, keys, base_cache)
        self._nodes = nodes
        self._census = census

    def put_node(self, refs: list[Ref]) -> tuple[RecordId, int]:
        record_id, stored = super().put_node(refs)
        if stored:
            self._nodes.add(record_id, refs)
        return record_id, stored

    def seal(self, buffer: bytearray | mmap, chunks: Sequence[NewChunk]) -> list[SealedRecord]:
        records = super().seal(buffer, chunks)
        self._census.offer(buffer, chunks, records)
        return records

    def append(self, sealed: SealedRecord) -> bool:
        added = super().append(sealed)
        if added:
            self._census.count(sealed)
        return added


class TrialStore(Store):
    """A store whose packs are counted and discarded; use `trial_store`."""

    storage: CountingStorage
    nodes: NodeFile
    census: Census

    def session(self) -> Session:
        """Return a session that adds to this store. Raises StorageError."""
        return _TrialSession(self.storage, self.index, self.keys, self.base_cache, self.nodes, self.census)

    def attach(self, nodes: NodeFile, census: Census) -> None:
        """Set where sessions keep their nodes, and what they count in."""
        self.nodes, self.census = nodes, census
        self.reader = _NodeReader(self, nodes)


@contextlib.contextmanager
def trial_store(folder: str, setting: Setting, census: Census) -> Iterator[TrialStore]:
    """Yield an empty trial store with a setting, whose index and caches are in `folder`."""
    paths = MachinePaths(os.path.join(folder, "state"), os.path.join(folder, "cache"))
    identity = Identity.generate()
    options = StoreOptions(base_cache=None if setting.deltas else 0)
    store = TrialStore.create(
        CountingStorage(),
        paths,
        [(identity.recipient, "")],
        lambda: identity,
        NewStore(average_chunk_size=setting.average, options=options),
    )
    nodes = NodeFile(os.path.join(folder, "nodes"))
    with store, contextlib.closing(nodes):
        store.attach(nodes, census)
        if setting.peer is not None:
            gear = store.keys.writer_key.gear
            store.keys.use_cutter(Cutter(gear, setting.average, setting.peer.limits))
        yield store
