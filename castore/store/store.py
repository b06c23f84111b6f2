"""A store: open it, add to it through sessions, read what it holds, keep its index up to date."""

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
    BusyError,
    CastoreError,
    DamageError,
    FormatError,
    MissingError,
    ObjectExistsError,
    ObjectMissingError,
    OlderError,
    RotatedError,
    StorageError,
    UsageError,
)
from castore.kernel import Cutter, Sketcher
from castore.model.generation import decode_generation
from castore.model.refs import decode_node
from castore.sealing import WriterKey
from castore.store import twice
from castore.store.condemned import FOLDER as CONDEMNED
from castore.store.condemned import read_condemned
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
)
from castore.store.eras import ERAS, decode_era, open_config, with_past
from castore.store.generations import MAX_NUMBER, encode_generation, generation_name, split_name
from castore.store.index import Index, Place
from castore.store.keyring import IdentitySource, Keyring
from castore.store.locks import named_lock
from castore.store.pack import CHUNK, NODE, pack_name, read_footer
from castore.store.pins import pin, pins, unpin
from castore.store.reference import ReferenceCache
from castore.store.remembered import Remembered
from castore.store.reseal import reseal
from castore.store.rotation import clean, rotate
from castore.store.seen import Seen
from castore.store.sessions import session_numbers
from castore.store.sync import sync_generations, sync_packs
from castore.store.writers import (
    drop_next,
    keep_writer_key,
    local_writer_key,
    next_of,
    writer_key_through,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from types import TracebackType

    from castore.model.generation import Generation
    from castore.model.refs import PackId, RecordId, Ref
    from castore.sealing import Identity, Recipient
    from castore.storage import Storage
    from castore.store.pack import PackEntry
    from castore.store.places import Places
    from castore.store.records import RecordReader
    from castore.store.session import Session


class Store(Remembered):
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
        self.damaged: dict[str, str] = {}
        """Objects that were found damaged, by name, with the reasons; they are not indexed."""
        self._identity = identity
        self._seen = Seen(places.seen_of(self.store_id), storage.location)
        self._accept_older = accept_older
        config = open_config(sealed, writer, storage)
        self._seen.config(sealed.number, accept=accept_older)
        self.index = Index(places.index_of(self.store_id), self.store_id)
        self.references = ReferenceCache(places.references_of(self.store_id))
        self._syncing = threading.Lock()
        try:
            self._hold(writer, config, sealed)
        except BaseException:
            self.close()
            raise

    def _hold(self, writer: WriterKey, config: StoreConfig, sealed: SealedConfig) -> None:
        """Use this writer key, and the configuration under it, from now on."""
        self.config = config
        self._sealed = sealed
        self.writer_key = with_past(writer, config, self.storage)
        self.cutter = Cutter(self.writer_key.gear, config.average)
        self._keyring = Keyring(self.storage, self.writer_key, self._identity, lambda: self.config)
        self.__dict__.pop("_records", None)
        if self.index.era() != config.era:
            self._enter_era()

    def _enter_era(self) -> None:
        """Forget what the index took in under a former writer key after that was replaced."""
        try:
            listed = self.writer_key.listed()
        except (DamageError, FormatError):
            # Without the list nothing under a former key counts: synchronising says so of each object.
            self.index.clear()
            return
        # What is under the present key comes back when it is looked for.
        self.index.remove_packs(self.index.pack_ids().difference(listed.values()))
        short = {name.removeprefix("generations/") for name in listed}
        self.index.remove_generations(self.index.compare_records(short)[1])
        self.index.enter_era(self.config.era, new_ids=not self.config.ids)

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
        twice.put_copy(storage, CONFIGS, 1, data)
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
            Seen(places.seen_of(sealed.store_id), storage.location).check_config(sealed.number)
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

    def adopt(self) -> None:
        """Keep the writer key on this machine, which can then add without an identity."""
        path = self.places.writer_key_of(self.store_id)
        keep_writer_key(path, self.writer_key, self.storage)
        drop_next(path)

    def close(self) -> None:
        """Give the index up."""
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

    @property
    def location(self) -> str:
        """How a person names the place that holds the store."""
        return self.storage.location

    @property
    def recipients(self) -> list[tuple[Recipient, str]]:
        """Whom the store is sealed to, with what they are called."""
        return [(entry.recipient, entry.label) for entry in self.config.recipients]

    def identity(self) -> Identity:
        """Return the identity that contents are opened with. Raises IdentityError."""
        return self._identity.get()

    # The index

    def sync(self, *, reread: bool = False) -> None:
        """Bring the index up to date with the store; what is damaged is told in `damaged`.

        reread: the generations that are indexed, too: under the name of one may be another.
        """
        self.index.try_again()
        self.sync_generations(reread=reread)
        with self._syncing:
            # Packs are listed behind what condemns them: what is condemned no more is gone from that list.
            condemned, found = read_condemned(self.storage, self.writer_key)
            self._told(CONDEMNED, found)
            self._told("packs/", sync_packs(self.storage, self.index, self.writer_key))
            # Nor is what nobody has the key to counted on: it is stored again where it is still at hand.
            keyless = self.index.packs_without_key(lambda: session_numbers(self.storage).keys())
            self.index.condemn({*keyless, *(pack for one in condemned for pack in one.packs)})

    def sync_generations(self, *, reread: bool = False) -> None:
        """Bring the index's generations up to date with the store.

        Raises OlderError if what this machine has seen there is gone, or another one.
        """
        with self._syncing:
            while True:
                memory, known = self._seen.memory(), reread
                found = sync_generations(self.storage, self.index, self.writer_key, reread=reread)
                self._told("generations/", found)
                newest = (self.newest(service) for service in self.services())
                present = {one.service: one for one in newest if one is not None}
                try:
                    self._seen.compare(memory, present, self._session_of, accept=self._accept_older)
                    break
                except OlderError:
                    # Another process may have removed some on purpose while they were listed; and an
                    # index that a disk has changed may lack what is there.
                    if known and self._seen.memory() == memory:
                        raise
                    reread = True
            self._accept_older = False

    def _session_of(self, service: str, number: int) -> str | None:
        """Return the session of a generation, in hex; "" if it is damaged, None if it is not there."""
        found = self.generation(service, number)
        if found is not None:
            return found.session.hex()
        names = {(tag, number) for tag in self.writer_key.tags(service)}
        return "" if any(split_name(name) in names for name in self.damaged) else None

    def _told(self, folder: str, found: dict[str, str]) -> None:
        kept = {k: reason for k, reason in self.damaged.items() if not k.startswith(folder)}
        self.damaged = kept | found

    def reindex(self) -> None:
        """Build the index again from the store. Raises BusyError while something is removed from it."""
        with self.upkeep_lock():
            self.index.clear()
            self.sync()

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

        return RecordReader(self.storage, self.index, self.writer_key, self._keyring)

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

    # Generations

    def services(self) -> list[str]:
        """Return the names of the services that have generations, sorted."""
        return self.index.services()

    def generations(self, service: str | None = None) -> list[Generation]:
        """Return the generations of a service, or of all, newest first."""
        if service is not None:
            return list(self.newest_first(service))
        found = list(self.all_generations())
        # Of those of one time and number, the last service comes first.
        found.sort(key=lambda one: (one.time, one.number, one.service), reverse=True)
        return found

    def all_generations(self) -> Iterator[Generation]:
        """Yield all generations, service by service; each is read when it is asked for."""
        for service in self.services():
            yield from self.newest_first(service)

    def newest_first(self, service: str) -> Iterator[Generation]:
        """Yield the generations of a service, newest first; each is read when it is asked for."""
        return map(self._decode, self.index.generations(service))

    def generation(self, service: str, number: int) -> Generation | None:
        """Return a generation, or None."""
        if not 0 < number <= MAX_NUMBER:
            return None
        plain = self.index.generation(service, number)
        return None if plain is None else self._decode(plain)

    def by_revision(self, service: str, prefix: str) -> list[Generation]:
        """Return the generations whose revision begins with `prefix`, newest first.

        Safety generations, which roll-backs take, are found by number only.
        """
        numbers = self.index.numbers_by_revision(service, prefix)
        found = (self.generation(service, number) for number in numbers)
        return [generation for generation in found if generation is not None]

    def has_revision(self, service: str, revision: str) -> bool:
        """Whether there is a generation of exactly this revision."""
        return any(one.revision == revision for one in self.by_revision(service, revision))

    def next_number(self, service: str) -> int:
        """Return the number behind the highest in the store, those of damaged records included.

        And behind the highest that this machine has ever seen: a number is not given twice.
        """
        tag, *former = self.writer_key.tags(service)
        names = [split_name(short) for short in self.storage.list("generations")]
        numbers = [number for one, number in names if one == tag]
        if former and not numbers:
            # Of former keys only what counts: whoever has one could use all numbers up.
            with contextlib.suppress(DamageError, FormatError):
                names = [split_name(name) for name in self.writer_key.listed()]
            numbers = [number for one, number in names if one in former]
        return max([*numbers, self._seen.last(service)], default=0) + 1

    def newest(self, service: str) -> Generation | None:
        """Return the generation of a service with the highest number, or None."""
        return next(self.newest_first(service), None)

    def generation_objects(self, service: str, numbers: Iterable[int]) -> list[str]:
        """Return the names that these generations of a service have in the store.

        That is one of each that is there, whichever writer key it is under, and what was forged for one.
        """
        wanted = {(tag, number) for number in numbers for tag in self.writer_key.tags(service)}
        return [f"generations/{n}" for n in self.storage.list("generations") if split_name(n) in wanted]

    def forgotten(self, service: str, numbers: Iterable[int]) -> None:
        """Remember that generations are removed on purpose; to be called before their objects go.

        So this machine does not miss them, and never gives their numbers again. Raises StorageError.
        """
        gone = set(numbers)
        rest = (one for one in self.newest_first(service) if one.number not in gone)
        self._seen.forget(service, gone, next(rest, None))

    def commit(self, generation: Generation) -> None:
        """Write a generation's record: the last step, which makes it one.

        Raises BusyError if its number was taken, StorageError.
        """
        if not 0 < generation.number <= MAX_NUMBER:
            raise UsageError(f"a generation cannot have the number {generation.number}")
        name = generation_name(self.writer_key, generation.service, generation.number)
        data, plain = encode_generation(generation, self.writer_key)
        # The session has made its own objects durable. It may rest on others', which the index had
        # from a listing, and whose writer may have been killed before it had synced their names.
        for folder in ("sessions", "packs"):
            self.storage.settle(folder)
        try:
            self.storage.put(name, data)
        except ObjectExistsError:
            raise BusyError(
                f"another castore has just taken the number {generation.number} of "
                f"{generation.service!r}; nothing was committed, try again"
            ) from None
        except StorageError as error:
            self._take_back(generation, name, data, error)
            raise
        try:
            self.refresh_config()
        except RotatedError as error:
            raise RotatedError(
                f"{generation.service}@{generation.number} is not committed, since meanwhile {error}"
            ) from None
        except CastoreError as error:
            # Whether it counts is not known.
            self._take_back(generation, name, data, error)
            raise
        # It is committed; where the index fails, the next synchronisation takes it in.
        with contextlib.suppress(StorageError):
            self._seen.committed(generation)
            self.index.put_generations([(name.partition("/")[2], generation, plain)])

    def forget(self, service: str, numbers: Collection[int]) -> None:
        """Remove the records of generations, durably; what only they need is left to `compact`.

        Raises StorageError.
        """
        names = self.generation_objects(service, numbers)
        self.forgotten(service, numbers)
        self.storage.delete_all(names)
        self.index.remove_generations(name.partition("/")[2] for name in names)

    def drop(self, names: Collection[str]) -> None:
        """Remove objects that nobody can read, durably. Raises StorageError."""
        for name in names:
            tag, number = split_name(name)
            for service in self._seen.services() if number else ():
                if tag in self.writer_key.tags(service):
                    self.forgotten(service, [number])
        self.storage.delete_all(names)

    def pin(self, service: str, number: int, note: str) -> bool:
        """Keep a generation whatever the rules say; tell whether it was not pinned yet."""
        return pin(self.storage, self.writer_key, service, number, note)

    def unpin(self, service: str, number: int) -> bool:
        """Let the rules decide about a generation; tell whether it was pinned."""
        return unpin(self.storage, self.writer_key, service, number)

    def pins(self, service: str) -> dict[int, str]:
        """Return the numbers that are pinned of a service, with the reasons."""
        return pins(self.storage, self.writer_key, service)

    def _take_back(
        self, generation: Generation, name: str, data: bytes, error: CastoreError
    ) -> None:
        """Remove what was written and, after an error, not acknowledged; unless another has its name.

        Where that fails, raises the error with that added.
        """
        try:
            if self.storage.get(name) == data:
                # Others may have seen it: its number is not given again.
                self.drop([name])
        except ObjectMissingError:
            pass
        except StorageError:
            raise type(error)(
                f"{error}; {generation.service}@{generation.number} could not be taken back either: if it "
                "is listed, it is whole"
            ) from error

    def _decode(self, plain: bytes) -> Generation:
        try:
            return decode_generation(plain)
        except DamageError as error:
            raise self.index.refusal(error) from None

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

    def _writer_key_lock(self) -> AbstractContextManager[None]:
        path = os.path.join(self.places.state_of(self.store_id), "locks", "writer-key")
        return named_lock(path, f"the keys of {self.location}")

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

    def refresh_config(self) -> None:
        """Take in what another process has said since: who the recipients are. Raises RotatedError."""
        if max(config_numbers(self.storage), default=0) != self._sealed.number:
            sealed = SealedConfig.read(self.storage)
            if sealed.store_id != self.store_id:
                raise DamageError(f"{sealed.name} is damaged: it is of another store")
            self.config = open_config(sealed, self.writer_key, self.storage)
            self._sealed = sealed
            self._seen.config(sealed.number, accept=False)


    def kept_twice(self) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
        """Yield folder and number of each object that all else rests on, and what reads its bytes, authentic.

        That raises DamageError, FormatError, StorageError.
        """
        yield CONFIGS, self._sealed.number, lambda: self._sealed.data
        if self.config.era:
            yield ERAS, self.config.era, self._read_era

    def _read_era(self) -> bytes:
        data = twice.read(self.storage, ERAS, self.config.era)
        decode_era(self.config.era, data, self.writer_key)
        return data

    def _keep_copies(self) -> None:
        """Write the copies that are not there yet: of an older castore, or of one that was killed."""
        for folder, number, read in self.kept_twice():
            if not twice.has_copy(self.storage, folder, number):
                with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                    twice.put_copy(self.storage, folder, number, read())


def _labelled(recipients: Sequence[tuple[Recipient, str]]) -> tuple[LabelledRecipient, ...]:
    if not recipients:
        raise UsageError("a store needs a recipient: nobody could read what is sealed to none")
    found = dict(recipients)
    if len(found) > 1000:
        raise UsageError(f"a store has at most 1000 recipients, not {len(found)}")
    return tuple(LabelledRecipient(recipient.key, label) for recipient, label in found.items())
