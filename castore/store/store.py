"""A store: made, opened, added to through sessions, read, sealed to others.

What it remembers of services on this machine is in `remembered`, its keys are in `keyed`, its index and its
generations in `history`, what only an admin may change in `authority`.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Self

from castore.crypto import WriterKey
from castore.errors import (
    DamageError,
    KeyRotatedError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    UntrustedError,
    UsageError,
)
from castore.kernel import Sketcher
from castore.model.refs import decode_node
from castore.state.freshness import seen_at
from castore.state.writer_key_file import keep_writer_key
from castore.store.format.config import (
    CONFIGS,
    DEFAULT_AVERAGE,
    MAX_AVERAGE,
    MIN_AVERAGE,
    config_name,
    config_numbers,
    encode_config,
    is_empty,
)
from castore.store.format.pack import CHUNK, NODE, pack_name, read_footer
from castore.store.index import Index, RecordLocation
from castore.store.keys import replicas
from castore.store.keys.authority import Authority, first_config, labelled
from castore.store.keys.keyring import IdentitySource
from castore.store.keys.trust import Opener, choose, newest_numbers
from castore.store.write.base_cache import ReferenceCache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from castore.crypto import Identity, Recipient
    from castore.model.refs import PackId, RecordId, Ref
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.format.pack import PackEntry
    from castore.store.keys.trust import Accepted, Agree
    from castore.store.read.record_reader import RecordReader
    from castore.store.write.session import Session


class Store(Authority):
    """An open store. What reads is safe to share between threads."""

    def __init__(self, opener: Opener, *, accept_older: bool = False) -> None:
        self.storage = opener.storage
        self.places = opener.places
        self.damaged = {}
        self.older = ""
        self._opener = opener
        self._identity = opener.identity
        self._accept_older = accept_older
        accepted = _choose(opener, accept_older=accept_older)
        self.store_id = accepted.sealed.store_id
        self._seen = seen_at(self.places, self.store_id, self.storage)
        self._remember(accepted, accept_older=accept_older)
        place = self.storage.place
        self.index = Index(self.places.index_of(self.store_id, place), self.store_id)
        self.references = ReferenceCache(self.places.references_of(self.store_id, place))
        self._syncing = threading.Lock()
        try:
            self._hold(accepted)
        except BaseException:
            self.close()
            raise

    # Opening and closing

    @classmethod
    def create(
        cls,
        storage: Storage,
        places: MachinePaths,
        recipients: Sequence[tuple[Recipient, str]],
        *,
        average: int = DEFAULT_AVERAGE,
        identity: Callable[[], Identity] | None = None,
        keep: Callable[[bytes], None] = lambda _store_id: None,
        host: str = "",
        admins: Sequence[bytes] = (),
    ) -> Store:
        """Make a store in `storage`, sealed to (recipient, label) pairs, and open it.

        Its writer key is kept on this machine, which is certified as `host`, else under its host name. The
        configuration is signed by the admin key of the identity; where none is given, by this machine, and an
        admin is to sign it later. keep: is called with the store's id before the store is there, to keep what
        must not be missing then: an identity. admins: keys whose configurations are accepted besides.
        Raises UsageError, StorageError.
        """
        taken = f"{storage.location} holds a castore store already"
        if config_numbers(storage):
            raise UsageError(taken)
        if not is_empty(storage):
            raise UsageError(f"{taken}, which has lost its config/: restore that from a copy of the store")
        if not MIN_AVERAGE <= average <= MAX_AVERAGE:
            raise UsageError(
                f"chunks cannot have {average} bytes on average: {MIN_AVERAGE} to {MAX_AVERAGE}"
            )
        writer, source = WriterKey.generate(), IdentitySource(identity)
        known = source.get() if source else None
        config, signer = first_config(writer, labelled(recipients), average, host, known, admins)
        data = encode_config(1, config, writer, signer)
        path = places.writer_key_of(writer.store_id)
        keep(writer.store_id)
        pins = dict.fromkeys([*sorted(config.admin_keys), signer.public])
        keep_writer_key(path, writer.with_pins(pins), storage)
        try:
            storage.put(config_name(1), data)
        except ObjectExistsError:
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
            raise UsageError(taken) from None
        try:
            replicas.put_copy(storage, CONFIGS, 1, data)
        except StorageError as error:
            raise StorageError(f"{error}; the store is made all the same, and can be used") from error
        return cls(Opener(storage, places, source))

    @classmethod
    def open(
        cls,
        storage: Storage,
        places: MachinePaths,
        identity: Callable[[], Identity] | None = None,
        *,
        local_key: bool = True,
        accept_older: bool = False,
        trust: Iterable[bytes] = (),
        agree: Agree | None = None,
    ) -> Store:
        """Open the store in `storage`.

        The writer key comes from this machine's state, or, where it is not there or not wanted
        (`local_key`), through the identity, into memory only. `identity` is called when it is first
        needed, and once. A store that is older than this machine has seen it is refused, unless that is
        right (`accept_older`), and then remembered as it is. trust: keys of admins that are accepted besides
        those that this machine pins. agree: asks whether a configuration that no trusted admin has signed is
        right, if there is no writer key.
        Raises NotFoundError, IdentityError, KeyRotatedError, UntrustedError, StaleStoreError, DamageError,
        FormatError, UsageError.
        """
        source = IdentitySource(identity)
        opener = Opener(storage, places, source, local_key, frozenset(trust), agree)
        return cls(opener, accept_older=accept_older)

    @staticmethod
    def read_id(storage: Storage) -> bytes:
        """Return the 16 bytes that name the store in `storage`, unverified.

        Raises NotFoundError, DamageError, FormatError.
        """
        return newest_numbers(storage)[0][0]

    @staticmethod
    def read_ids(storage: Storage) -> list[bytes]:
        """Return the ids that configurations in `storage` name, unverified: of a sound store it is one.

        Raises NotFoundError, DamageError, FormatError.
        """
        return [store_id for store_id, _ in newest_numbers(storage)]

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
        from castore.store.write.session import Session  # noqa: PLC0415

        self.refresh_config()
        self.check_settings()
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
        from castore.store.read.record_reader import RecordReader  # noqa: PLC0415

        return RecordReader(self.storage, self.index, self.writer_key, self._keyring, self.cutter.max)

    def pack_entries(self, pack: PackId) -> list[PackEntry]:
        """Return what a pack says that it holds. Raises DamageError, FormatError, StorageError."""
        return read_footer(self.storage, pack_name(pack), self.writer_key)[0]

    def read_entry(self, pack: PackId, entry: PackEntry) -> bytes:
        """Return the record that lies at this place of this pack, verified.

        Raises DamageError, IdentityError for a chunk, ObjectMissingError.
        """
        return self._records.open(entry.kind, entry.id, RecordLocation.of(pack, entry))

    def broken_entries(
        self, pack: PackId, entries: Sequence[PackEntry]
    ) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open where they lie, and why. Raises IdentityError."""
        return self._records.broken(pack, entries)

    def is_intact(self, pack: PackId, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Whether `sealed` is the record of this entry, as it was sealed; what it rests on is not looked at.

        Raises IdentityError for a chunk.
        """
        return self._records.is_intact(RecordLocation.of(pack, entry), entry, sealed)


def _choose(opener: Opener, *, accept_older: bool) -> Accepted:
    """Return the configuration that is accepted, which must not be older than one that was."""
    storage, places = opener.storage, opener.places
    try:
        accepted = choose(opener)
    except (KeyRotatedError, UntrustedError, DamageError):
        if not accept_older:
            # An older copy in the place of a store is the likelier reason, and says more.
            for store_id, number in newest_numbers(storage):
                seen_at(places, store_id, storage).check_config(number)
        raise
    if not accept_older:
        seen = seen_at(places, accepted.sealed.store_id, storage)
        seen.check_config(accepted.sealed.number, accepted.sealed.hash)
    return accepted
