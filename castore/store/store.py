"""The store: create, open and close it, add to it through sessions, and reach its parts.

A `Store` is composed of parts; each has its own state and gets what it needs from others as arguments:

- `keys` (`keys.key_manager`): the accepted configuration, the writer key, the identity, session keys;
- `admin` (`keys.administration`): the changes that only an admin may make;
- `index` (`castore.store.index`): where records, packs and generations are, on this machine;
- `generations` (`generation_log`): find, commit and forget generations;
- `updater` (`index_updater`): brings the index up to date with the store;
- `reader` (`read.content_reader`): reads chunks and nodes;
- `state` (`castore.state.service_state`): what this machine keeps about services;
- `hosts` (`hosts`): which generations belong to this host.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Self

from castore.crypto import WriterKey
from castore.errors import (
    DamageError,
    KeyRotatedError,
    ObjectExistsError,
    StorageError,
    UntrustedError,
    UsageError,
)
from castore.state.freshness import seen_at
from castore.state.service_state import ServiceState
from castore.state.writer_key_file import keep_writer_key
from castore.store.format.config import MAX_AVERAGE, MIN_AVERAGE, config_numbers, encode_config, is_empty
from castore.store.format.names import CONFIGS, config_name
from castore.store.generation_log import GenerationLog
from castore.store.hosts import HostNames
from castore.store.index import Index
from castore.store.index_updater import IndexUpdater
from castore.store.keys import replicas
from castore.store.keys.administration import KeyAdministration
from castore.store.keys.key_manager import KeyManager
from castore.store.keys.keyring import IdentitySource
from castore.store.keys.new_config import first_config, labelled
from castore.store.keys.trust import Opener, choose, newest_numbers
from castore.store.options import NewStore, StoreOptions
from castore.store.read.content_reader import ContentReader
from castore.store.write.base_cache import BaseCache

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from castore.crypto import Identity, Recipient
    from castore.model.refs import RecordId
    from castore.progress import Progress
    from castore.state.paths import MachinePaths
    from castore.storage import Storage
    from castore.store.keys.trust import Accepted
    from castore.store.write.session import Session


class Store:
    """An open store. Methods that only read may be shared between threads."""

    def __init__(self, keys: KeyManager, index: Index, paths: MachinePaths, options: StoreOptions) -> None:
        """Compose a store of the keys that opened it, and an index; use `open` or `create`."""
        self.storage = keys.storage
        self.store_id = keys.store_id
        self.paths = paths
        self.options = options
        self.keys = keys
        self.index = index
        self.base_cache = BaseCache(paths.base_cache_of(self.store_id, self.storage.canonical_location))
        if options.base_cache is not None:
            self.base_cache.limit = options.base_cache
        self.state = ServiceState(paths, self.storage, self.store_id, keys.tag_of)
        self.hosts = HostNames(keys, self.state, options)
        self.generations = GenerationLog(index, keys, accept_older=options.accept_older)
        self.updater = IndexUpdater(
            index, keys, self.generations, self.state, isolate_writers=options.isolate_writers
        )
        self.reader = ContentReader(keys, self.updater)
        self.admin = KeyAdministration(keys, self.state, self.hosts, self.updater)

    # Opening and closing

    @classmethod
    def create(
        cls,
        storage: Storage,
        paths: MachinePaths,
        recipients: Sequence[tuple[Recipient, str]],
        identity: Callable[[], Identity] | None = None,
        new: NewStore | None = None,
    ) -> Self:
        """Create a store in `storage`, sealed to (recipient, label) pairs, and open it.

        Its writer key is kept on this machine, which is certified as a host of the store. The configuration
        is signed by the admin key of the identity. Without an identity, this machine signs it, and an admin
        must sign it later. Raises UsageError, StorageError.
        """
        new = new or NewStore()
        refusal = f"{storage.location} holds a castore store already"
        if config_numbers(storage):
            raise UsageError(refusal)
        if not is_empty(storage):
            raise UsageError(f"{refusal}, but its config/ is missing: restore that from a copy of the store")
        if not MIN_AVERAGE <= new.average_chunk_size <= MAX_AVERAGE:
            raise UsageError(
                f"chunks cannot have {new.average_chunk_size} bytes on average: "
                f"{MIN_AVERAGE} to {MAX_AVERAGE}"
            )
        writer, source = WriterKey.generate(), IdentitySource(identity)
        known = source.get() if source else None
        config, signer = first_config(writer, labelled(recipients), known, new)
        data = encode_config(1, config, writer, signer)
        path = paths.writer_key_of(writer.store_id)
        new.before_create(writer.store_id)
        signers = dict.fromkeys([*sorted(config.admin_keys), signer.public])
        keep_writer_key(path, writer.with_trusted_signers(signers), storage)
        try:
            storage.put(config_name(1), data)
        except ObjectExistsError:
            with contextlib.suppress(OSError):
                os.unlink(path)
                os.rmdir(os.path.dirname(path))
            raise UsageError(refusal) from None
        try:
            replicas.put_copy(storage, CONFIGS, 1, data)
        except StorageError as error:
            raise StorageError(f"{error}; the store was created nevertheless, and can be used") from error
        return cls._open(Opener(storage, paths, source), new.options)

    @classmethod
    def open(
        cls,
        storage: Storage,
        paths: MachinePaths,
        identity: Callable[[], Identity] | None = None,
        options: StoreOptions | None = None,
    ) -> Self:
        """Open the store in `storage`.

        The writer key comes from this machine's state. If it is missing there, or not wanted, it comes
        through the identity and is kept in memory only. `identity` is called once, when it is first needed.
        A store that is older than this machine has seen it is refused by default.
        Raises NotFoundError, IdentityError, KeyRotatedError, UntrustedError, StaleStoreError, DamageError,
        FormatError, UsageError.
        """
        options = options or StoreOptions()
        source = IdentitySource(identity)
        trusted = frozenset(options.trust)
        return cls._open(Opener(storage, paths, source, options.local_key, trusted, options.agree), options)

    @classmethod
    def _open(cls, opener: Opener, options: StoreOptions) -> Self:
        accepted = _choose(opener, accept_older=options.accept_older)
        keys = KeyManager(opener, accepted, accept_older=options.accept_older)
        index = Index(opener.paths.index_of(keys.store_id, opener.storage.canonical_location), keys.store_id)
        store = cls(keys, index, opener.paths, options)
        try:
            store.updater.drop_revoked()
        except BaseException:
            store.close()
            raise
        return store

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
        """Close the index, and drop all keys and the identity, which are wiped where nobody else has them."""
        self.reader.close()
        self.keys.close()
        self.base_cache.close()
        self.index.close()
        self.storage.close()

    def reopened(self) -> Store:
        """Return this store for reading in a newly forked process: LMDB needs an index handle of its own."""
        return Store(self.keys, Index(self.index.path, self.store_id), self.paths, self.options)

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

    @property
    def location(self) -> str:
        """The location of the store, as named in messages."""
        return self.storage.location

    # What most callers do

    @property
    def damaged(self) -> dict[str, str]:
        """Objects that the last synchronisation found damaged, by name, with the reasons."""
        return self.updater.damaged

    def sync(
        self, *, reread: bool = False, report_older: bool = False, progress: Progress | None = None
    ) -> None:
        """Bring the index up to date with the store: see `IndexUpdater.sync`."""
        self.updater.sync(reread=reread, report_older=report_older, progress=progress)

    def read_chunk(self, chunk: RecordId) -> bytes:
        """Return a chunk. Raises MissingError, DamageError, IdentityError."""
        return self.reader.read_chunk(chunk)

    def read_chunks(self, chunks: Sequence[RecordId]) -> list[bytes]:
        """Return chunks of one range of a stream: faster than one by one. Raises as `read_chunk`."""
        return self.reader.read_chunks(chunks)

    def check_settings(self) -> None:
        """Refuse to add if the store contradicts castore.toml. Raises ConfigError."""
        self.keys.check_recipients(self.options.recipients)
        self.hosts.check_configured()

    def session(self) -> Session:
        """Return a session that adds to this store; use it in a `with` block. Raises StorageError."""
        # Imported when needed: commands that list generations must start fast.
        from castore.store.write.session import Session  # noqa: PLC0415

        self.keys.refresh()
        self.check_settings()
        # After a killed `init`, the configuration may be visible but not durable: sync it before use.
        self.storage.sync_dir(CONFIGS)
        self.keys.keep_copies()
        return Session(self.storage, self.index, self.keys, self.base_cache)


def _choose(opener: Opener, *, accept_older: bool) -> Accepted:
    """Return the accepted configuration. It must not be older than one that was accepted before."""
    storage, paths = opener.storage, opener.paths
    try:
        accepted = choose(opener)
    except (KeyRotatedError, UntrustedError, DamageError):
        if not accept_older:
            # More likely, an older copy replaced the store; that error also says more.
            for store_id, number in newest_numbers(storage):
                seen_at(paths, store_id, storage).check_config(number)
        raise
    if not accept_older:
        seen = seen_at(paths, accepted.sealed.store_id, storage)
        seen.check_config(accepted.sealed.number, accepted.sealed.hash)
    return accepted
