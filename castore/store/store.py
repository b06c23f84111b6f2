"""The store: create, open, add to it through sessions, read it, seal it for other recipients.

The class is composed of layers. `state.service_state` keeps what this machine remembers about services,
`keys.key_manager` the keys, `generation_log` the index and the generations, and `keys.authority` what only an
admin may change.
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
    """An open store. Methods that only read may be shared between threads."""

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
        self._settled = set()
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
        """Create a store in `storage`, sealed to (recipient, label) pairs, and open it.

        Its writer key is kept on this machine, which is certified as `host`; by default under its host name.
        The configuration is signed by the admin key of the identity. Without an identity, this machine signs
        it, and an admin must sign it later. average: mean length of a chunk, in bytes. keep: is called with
        the store's id before the store exists, to keep what must exist by then: an identity. admins: further
        keys whose configurations are accepted. Raises UsageError, StorageError.
        """
        taken = f"{storage.location} holds a castore store already"
        if config_numbers(storage):
            raise UsageError(taken)
        if not is_empty(storage):
            raise UsageError(f"{taken}, but its config/ is missing: restore that from a copy of the store")
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
            raise StorageError(f"{error}; the store was created nevertheless, and can be used") from error
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

        The writer key comes from this machine's state. If it is missing there, or not wanted (`local_key` is
        false), it comes through the identity and is kept in memory only. `identity` is called once, when it
        is first needed. A store that is older than this machine has seen it is refused; with `accept_older`
        it is accepted, and remembered as it is. trust: keys of admins that are accepted in addition to those
        that this machine pins. agree: if this machine has no writer key, asks the user whether to accept a
        configuration that no trusted admin signed.
        Raises NotFoundError, IdentityError, KeyRotatedError, UntrustedError, StaleStoreError, DamageError,
        FormatError, UsageError.
        """
        source = IdentitySource(identity)
        opener = Opener(storage, places, source, local_key, frozenset(trust), agree)
        return cls(opener, accept_older=accept_older)

    @staticmethod
    def read_id(storage: Storage) -> bytes:
        """Return the 16 bytes that identify the store in `storage`, unverified.

        Raises NotFoundError, DamageError, FormatError.
        """
        return newest_numbers(storage)[0][0]

    @staticmethod
    def read_ids(storage: Storage) -> list[bytes]:
        """Return the ids that configurations in `storage` name, unverified; an intact store has one.

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
        """Return this store for reading in a newly forked process: LMDB needs an index handle of its own."""
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
        yield from self.index.packs.lengths()

    def stored_bytes(self) -> int:
        """Return the length of all indexed packs."""
        return sum(length for _, length in self.index.packs.lengths())

    def count_chunks(self) -> int:
        """Return how many different chunks are indexed."""
        return self.index.count("chunks")

    def has_chunk(self, chunk: RecordId) -> bool:
        """Return whether a chunk is indexed."""
        return self.index.locations.has_chunk(chunk)

    # Records

    def session(self) -> Session:
        """Return a session that adds to this store; use it in a `with` block. Raises StorageError."""
        # Imported when needed, like RecordReader: commands that list generations must start fast.
        from castore.store.write.session import Session  # noqa: PLC0415

        self.refresh_config()
        self.check_settings()
        # After a killed `init`, the configuration may be visible but not durable: sync it before use.
        self.storage.sync_dir(CONFIGS)
        self._keep_copies()
        sketcher = Sketcher(self.writer_key.gear, self.writer_key.sketch)
        return Session(
            self.storage, self.index, self.writer_key, self.config, self.references, sketcher
        )

    def chunk_id(self, data: bytes | memoryview) -> RecordId:
        """Return the id that bytes have as a chunk."""
        return self._records.chunk_id(data)

    def is_chunk(self, chunk: RecordId, data: bytes | memoryview) -> bool:
        """Return whether bytes have this id as a chunk, under the present id key or a former one."""
        return self._records.is_chunk(chunk, data)

    def read_chunk(self, chunk: RecordId) -> bytes:
        """Return a chunk. Raises MissingError, DamageError, IdentityError."""
        return self._read(CHUNK, chunk)

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes]:
        """Return chunks of one range of a stream: faster than one by one. Raises as `read_chunk`."""
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
        """Return the plaintexts of nodes, read in one batch. Raises MissingError, DamageError."""
        found = self._records.read_nodes(nodes)
        return found if found is not None else [self.read_node_bytes(node) for node in nodes]

    def _read(self, kind: int, record_id: RecordId) -> bytes:
        why = ""
        for tries_left in (2, 1, 0):
            try:
                plain, missing = self._records.read(kind, record_id), ""
            except ObjectMissingError as error:
                plain, missing = None, str(error)
                why = f": {error}"
            if plain is not None:
                return plain
            # Another machine may have added it, or moved it to another pack. But if a sync changed nothing
            # in the index, it found nothing for the next missing record either.
            state = self._index_state()
            if not tries_left or (state, missing) in self._settled:
                break
            self.sync()
            if self._index_state() == state:
                self._settled.add((state, missing))
        what = "chunk" if kind == CHUNK else "node"
        message = f"{what} {record_id.hex()} is not in the store at {self.location}{why}"
        packs = sorted(name for name in self.damaged if name.startswith("packs/"))
        if packs:
            message += f"; it may have been in a damaged pack: {', '.join(packs)}"
        raise MissingError(message)

    def _index_state(self) -> tuple[bytes, int, int]:
        """Return a value that changes if packs or generations are added to the index, or packs removed."""
        return self.index.epoch(), self.index.count("packs"), self.index.count("generations")

    @cached_property
    def _records(self) -> RecordReader:
        from castore.store.read.record_reader import RecordReader  # noqa: PLC0415

        return RecordReader(self.storage, self.index, self.writer_key, self._keyring, self.cutter.max)

    def pack_entries(self, pack: PackId) -> list[PackEntry]:
        """Return the entries in a pack's footer. Raises DamageError, FormatError, StorageError."""
        return read_footer(self.storage, pack_name(pack), self.writer_key)[0]

    def read_entry(self, pack: PackId, entry: PackEntry) -> bytes:
        """Return the record at this place of this pack, verified.

        Raises DamageError, IdentityError for a chunk, ObjectMissingError.
        """
        return self._records.open(entry.kind, entry.id, RecordLocation.of(pack, entry))

    def broken_entries(
        self, pack: PackId, entries: Sequence[PackEntry]
    ) -> Iterator[tuple[PackEntry, DamageError]]:
        """Yield the entries of a pack that do not open at their place, and why. Raises IdentityError."""
        return self._records.broken(pack, entries)

    def is_intact(self, pack: PackId, entry: PackEntry, sealed: bytes | memoryview) -> bool:
        """Return whether `sealed` is the unchanged record of this entry; its bases are not checked.

        Raises IdentityError for a chunk.
        """
        return self._records.is_intact(RecordLocation.of(pack, entry), entry, sealed)


def _choose(opener: Opener, *, accept_older: bool) -> Accepted:
    """Return the accepted configuration. It must not be older than one that was accepted before."""
    storage, places = opener.storage, opener.places
    try:
        accepted = choose(opener)
    except (KeyRotatedError, UntrustedError, DamageError):
        if not accept_older:
            # More likely, an older copy replaced the store; that error also says more.
            for store_id, number in newest_numbers(storage):
                seen_at(places, store_id, storage).check_config(number)
        raise
    if not accept_older:
        seen = seen_at(places, accepted.sealed.store_id, storage)
        seen.check_config(accepted.sealed.number, accepted.sealed.hash)
    return accepted
