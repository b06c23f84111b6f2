"""A store: made, opened, added to through sessions, read, sealed to others.

What it remembers of services on this machine is in `remembered`, its keys are in `keyed`, its index and its
generations in `history`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING, Self

import msgspec

from castore.errors import (
    DamageError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    UsageError,
)
from castore.kernel import Sketcher
from castore.model.refs import decode_node
from castore.sealing import WriterKey
from castore.store import twice
from castore.store.config import (
    CONFIGS,
    DEFAULT_AVERAGE,
    MAX_AVERAGE,
    MIN_AVERAGE,
    LabelledRecipient,
    SealedConfig,
    StoreConfig,
    config_name,
    config_numbers,
    encode_config,
    is_empty,
)
from castore.store.eras import open_config
from castore.store.history import History
from castore.store.index import Index, Place
from castore.store.keyring import IdentitySource
from castore.store.pack import CHUNK, NODE, pack_name, read_footer
from castore.store.reference import ReferenceCache
from castore.store.reseal import reseal
from castore.store.rotation import clean, rotate
from castore.store.seen import seen_at
from castore.store.writers import (
    drop_next,
    keep_writer_key,
    local_writer_key,
    next_of,
    writer_key_through,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from castore.model.refs import PackId, RecordId, Ref
    from castore.sealing import Identity, Recipient
    from castore.storage import Storage
    from castore.store.pack import PackEntry
    from castore.store.places import Places
    from castore.store.records import RecordReader
    from castore.store.session import Session


class Store(History):
    """An open store. What reads is safe to share between threads."""

    def __init__(
        self,
        storage: Storage,
        places: Places,
        sealed: SealedConfig,
        writer: WriterKey,
        identity: IdentitySource,
        *,
        accept_older: bool = False,
    ) -> None:
        self.storage = storage
        self.places = places
        self.store_id = writer.store_id
        self.damaged = {}
        self.older = ""
        self._identity = identity
        self._seen = seen_at(places, self.store_id, storage)
        self._accept_older = accept_older
        config = open_config(sealed, writer, storage)
        self._seen.config(sealed.number, accept=accept_older)
        self.index = Index(places.index_of(self.store_id, storage.place), self.store_id)
        self.references = ReferenceCache(places.references_of(self.store_id, storage.place))
        self._syncing = threading.Lock()
        try:
            self._hold(writer, config, sealed)
        except BaseException:
            self.close()
            raise

    # Opening and closing

    @classmethod
    def create(
        cls,
        storage: Storage,
        places: Places,
        recipients: Sequence[tuple[Recipient, str]],
        *,
        average: int = DEFAULT_AVERAGE,
        identity: Callable[[], Identity] | None = None,
        keep: Callable[[bytes], None] = lambda _store_id: None,
    ) -> Store:
        """Make a store in `storage`, sealed to (recipient, label) pairs, and open it.

        Its writer key is kept on this machine. keep: is called with the store's id before the store is
        there, to keep what must not be missing then: an identity. Raises UsageError, StorageError.
        """
        taken = f"{storage.location} holds a castore store already"
        if config_numbers(storage):
            raise UsageError(taken)
        if not is_empty(storage):
            raise UsageError(f"{taken}, which has lost its config/: put that back from a copy of the store")
        if not MIN_AVERAGE <= average <= MAX_AVERAGE:
            raise UsageError(
                f"chunks cannot have {average} bytes on average: {MIN_AVERAGE} to {MAX_AVERAGE}"
            )
        config = StoreConfig(1, time.time_ns(), average, _labelled(recipients))
        writer = WriterKey.generate()
        data = encode_config(1, config, writer)
        path = places.writer_key_of(writer.store_id)
        keep(writer.store_id)
        keep_writer_key(path, writer, storage)
        try:
            storage.put(config_name(1), data)
        except ObjectExistsError:
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
            raise UsageError(taken) from None
        try:
            twice.put_copy(storage, CONFIGS, 1, data)
        except StorageError as error:
            raise StorageError(f"{error}; the store is made all the same, and can be used") from error
        return cls(storage, places, SealedConfig(1, data), writer, IdentitySource(identity))

    @classmethod
    def open(
        cls,
        storage: Storage,
        places: Places,
        identity: Callable[[], Identity] | None = None,
        *,
        local_key: bool = True,
        accept_older: bool = False,
    ) -> Store:
        """Open the store in `storage`.

        The writer key comes from this machine's state, or, where it is not there or not wanted
        (`local_key`), through the identity, into memory only. `identity` is called when it is first
        needed, and once. A store that is older than this machine has seen it is refused, unless that is
        right (`accept_older`), and then remembered as it is.
        Raises NotFoundError, IdentityError, RotatedError, OlderError, DamageError, FormatError, UsageError.
        """
        sealed = SealedConfig.read(storage)
        source = IdentitySource(identity)
        if not accept_older:
            seen_at(places, sealed.store_id, storage).check_config(sealed.number)
        writer = None
        if local_key:
            writer = local_writer_key(places.writer_key_of(sealed.store_id), sealed, storage)
        if writer is None:
            writer = writer_key_through(sealed, source, storage)
        return cls(storage, places, sealed, writer, source, accept_older=accept_older)

    @staticmethod
    def read_id(storage: Storage) -> bytes:
        """Return the 16 bytes that name the store in `storage`, unverified.

        Raises NotFoundError, DamageError, FormatError.
        """
        return SealedConfig.read(storage).store_id

    def close(self) -> None:
        """Close the index, and wipe the identity and the keys of sessions."""
        self.__dict__.pop("_records", None)
        keyring = self.__dict__.pop("_keyring", None)
        if keyring is not None:
            keyring.close()
        self._identity.close()
        self.references.close()
        self.index.close()

    def reopened(self) -> Store:
        """Return this store, to be read by a process just forked: LMDB wants an index of its own."""
        store = copy.copy(self)
        store.index = Index(self.index.path, self.store_id)
        store.__dict__.pop("_records", None)
        return store

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.location!r})"

    # The index

    def packs(self) -> Iterator[tuple[PackId, int]]:
        """Yield the name and length of each indexed pack."""
        yield from self.index.packs()

    def stored_bytes(self) -> int:
        """Return the length of all indexed packs."""
        return sum(length for _, length in self.index.packs())

    def count_chunks(self) -> int:
        """Return how many different chunks are indexed."""
        return self.index.count("chunks")

    def has_chunk(self, chunk: RecordId) -> bool:
        """Whether a chunk is indexed."""
        return self.index.has_chunk(chunk)

    # Records

    def session(self) -> Session:
        """Return a session that adds to this store; use it in a `with` block. Raises StorageError."""
        # Imported when needed, like RecordReader: what lists generations shall start fast.
        from castore.store.session import Session  # noqa: PLC0415

        self.refresh_config()
        # Of an `init` that was killed it may be seen, and yet be lost: before all that needs it.
        self.storage.settle(CONFIGS)
        self._keep_copies()
        sketcher = Sketcher(self.writer_key.gear, self.writer_key.sketch)
        return Session(
            self.storage, self.index, self.writer_key, self.config, self.references, sketcher
        )

    def chunk_id(self, data: bytes | memoryview) -> RecordId:
        """Return the id that bytes have as a chunk."""
        return self._records.chunk_id(data)

    def is_chunk(self, chunk: RecordId, data: bytes | memoryview) -> bool:
        """Whether bytes have this id as a chunk, by the present id key or a former one."""
        return self._records.is_chunk(chunk, data)

    def read_chunk(self, chunk: RecordId) -> bytes:
        """Return a chunk. Raises MissingError, DamageError, IdentityError."""
        return self._read(CHUNK, chunk)

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes]:
        """Return chunks of one stretch of a stream: faster than one by one. Raises as read_chunk."""
        found = self._records.read_chunks(chunks)
        if found is not None:
            return found
        return [self.read_chunk(chunk) for chunk in chunks]

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
        """Return the plaintexts of nodes, read together. Raises MissingError, DamageError."""
        found = self._records.read_nodes(nodes)
        return found if found is not None else [self.read_node_bytes(node) for node in nodes]

    def _read(self, kind: int, record_id: RecordId) -> bytes:
        gone = ""
        for _attempt in range(2):
            try:
                plain = self._records.read(kind, record_id)
            except ObjectMissingError as error:
                plain, gone = None, f": {error}"
            if plain is not None:
                return plain
            # Another machine may have added it, or moved it to another pack.
            self.sync()
        what = "chunk" if kind == CHUNK else "node"
        message = f"{what} {record_id.hex()} is not in the store at {self.location}{gone}"
        packs = sorted(name for name in self.damaged if name.startswith("packs/"))
        if packs:
            message += f"; it may have been in a damaged pack: {', '.join(packs)}"
        raise MissingError(message)

    @cached_property
    def _records(self) -> RecordReader:
        from castore.store.records import RecordReader  # noqa: PLC0415

        return RecordReader(self.storage, self.index, self.writer_key, self._keyring, self.cutter.max)

    def pack_entries(self, pack: PackId) -> list[PackEntry]:
        """Return what a pack says that it holds. Raises DamageError, FormatError, StorageError."""
        return read_footer(self.storage, pack_name(pack), self.writer_key)[0]

    def read_entry(self, pack: PackId, entry: PackEntry) -> bytes:
        """Return the record that lies at this place of this pack, verified.

        Raises DamageError, IdentityError for a chunk, ObjectMissingError.
        """
        return self._records.open(entry.kind, entry.id, Place.of(pack, entry))

    def broken_entries(
        self, pack: PackId, entries: Sequence[PackEntry]
    ) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open where they lie, and why. Raises IdentityError."""
        return self._records.broken(pack, entries)

    def is_intact(self, pack: PackId, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Whether `sealed` is the record of this entry, as it was sealed; what it rests on is not looked at.

        Raises IdentityError for a chunk.
        """
        return self._records.is_intact(Place.of(pack, entry), entry, sealed)

    # Recipients

    def reseal(self, recipients: Sequence[tuple[Recipient, str]]) -> bool:
        """Seal the store to exactly these (recipient, label) pairs; tell whether it was not yet.

        Interrupted, it is finished by being called again. Raises UsageError, IdentityError,
        DamageError, StorageError, BusyError.
        """
        labelled = _labelled(recipients)
        # Sealed anew under a writer key that is replaced meanwhile, sessions would not count.
        with self._writer_key_lock(), self.upkeep_lock(), self.storage.hold():
            self.refresh_config()
            config, number = self.config, self._sealed.number
            if config.recipients != labelled:
                config, number = msgspec.structs.replace(config, recipients=labelled), number + 1
            changed = reseal(self.storage, self._keyring, number, config, self.refresh_config)
            self.refresh_config()
        return changed

    def rotate_writer(self, *, new_ids: bool = False) -> None:
        """Draw a new writer key: what is added with the present one from now on does not count.

        No identity is needed: the new one is sealed to the recipients. With `new_ids` chunks get other
        names, and nothing that is stored now is found again by what is added later. Raises BusyError,
        StorageError.
        """
        path = self.places.writer_key_of(self.store_id)
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._writer_key_lock())
            stack.enter_context(self.upkeep_lock())
            self.sync()
            for service in self.services():
                stack.enter_context(self.lock(service))
            # What is committed or moved while packs are listed would not count.
            stack.enter_context(self.storage.hold(alone=True))
            self.refresh_config()
            if self.writer_key.former:
                # Without what it lists, what is under former keys would be listed no more, for good.
                self.writer_key.listed()
            successor = self.writer_key.successor()
            keep = os.path.exists(path)
            if keep:
                keep_writer_key(next_of(path), successor, self.storage)
            number = rotate(
                *(self.storage, self.writer_key, successor, self.config, self._sealed.number),
                self._accepted_packs,
                new_ids=new_ids,
            )
            if keep:
                keep_writer_key(path, successor, self.storage)
                drop_next(path)
            clean(self.storage, number)
            sealed = SealedConfig.read(self.storage)
            self._hold(successor, open_config(sealed, successor, self.storage), sealed)
            self._seen.config(sealed.number, accept=False)

    def _accepted_packs(self) -> set[PackId]:
        self.sync()
        return self.index.pack_ids()


def _labelled(recipients: Sequence[tuple[Recipient, str]]) -> tuple[LabelledRecipient, ...]:
    if not recipients:
        raise UsageError("a store needs a recipient: nobody could read what is sealed to none")
    found = dict(recipients)
    if len(found) > 1000:
        raise UsageError(f"a store has at most 1000 recipients, not {len(found)}")
    return tuple(LabelledRecipient(recipient.key, label) for recipient, label in found.items())
