"""The generations of a store: keep the index up to date with them, find, commit and forget them."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

from castore.errors import (
    BusyError,
    CastoreError,
    DamageError,
    FormatError,
    KeyRotatedError,
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    RevokedKeyError,
    StaleStoreError,
    StorageError,
    StorageFullError,
    UsageError,
)
from castore.model.generation import MAX_NUMBER, decode_generation, decode_order
from castore.state.freshness import PresentGenerations
from castore.store.format.generation import MAX_JUMP, encode_generation, last_in_sequence, open_generation
from castore.store.format.names import (
    GENERATIONS,
    PACKS,
    SESSIONS,
    full_name,
    generation_name,
    short_name,
    split_generation,
)
from castore.store.format.pin import pin, pins, unpin
from castore.store.format.removal import record_removal, removals
from castore.store.sync import sync_generations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from castore.model.generation import Generation
    from castore.model.removals import Removals
    from castore.storage import Storage
    from castore.store.index import Index
    from castore.store.keys.key_manager import KeyManager


class GenerationLog:
    """The generations of a store: find, commit and forget them, and keep the index of them up to date."""

    def __init__(self, index: Index, keys: KeyManager, *, accept_older: bool) -> None:
        """accept_older: with the first sync, accept a store that is older than this machine has seen it."""
        self.damaged: dict[str, str] = {}
        """Generations that were found damaged, by name, with the reasons; they are not indexed."""
        self.older = ""
        """What is wrong with a store that is older than seen before, if that is only reported; else empty."""
        self.sync_count = 0
        """Number of times that the generations were synchronised."""
        self._storage: Storage = keys.storage
        self._index = index
        self._keys = keys
        self._accept_older = accept_older
        self._lock = threading.Lock()

    # Synchronisation

    def sync(self, *, reread: bool = False, report_older: bool = False) -> None:
        """Bring the index's generations up to date with the store.

        report_older: if generations that this machine has seen disappeared, describe that in `older` and go
        on: a new snapshot must not be refused to protect old ones. Otherwise raises StaleStoreError.
        """
        self.older = ""
        self.sync_count += 1
        with self._lock:
            older: StaleStoreError | None = None
            # Another copy of the store may have replaced it, with other generations of the same names.
            reread = reread or self._accept_older or self._is_another_copy()
            while True:
                memory = self._keys.freshness.memory()
                try:
                    found = sync_generations(self._storage, self._index, self._keys.writer_key, reread=reread)
                except StorageError:
                    if older is not None:
                        raise older from None
                    raise
                self.damaged = found
                newest = (self._newest_in_sequence(service) for service in self.services())
                present = {generation.service: generation for generation in newest if generation is not None}
                try:
                    self._keys.freshness.compare(
                        memory,
                        PresentGenerations(present, self._session_of, self._removals),
                        accept=self._accept_older,
                        report=self._report_older if report_older and older is not None else None,
                    )
                    break
                except StaleStoreError as error:
                    # Another process may have removed generations on purpose during the listing; and an
                    # index that a failing disk has changed may lack existing ones.
                    if reread and not report_older and self._keys.freshness.memory() == memory:
                        raise
                    older, reread = error, True
            self._accept_older = False

    def _report_older(self, message: str) -> None:
        self.older = message

    def _removals(self, service: str) -> Removals:
        return removals(self._storage, self._keys.writer_key, service)

    def _is_another_copy(self) -> bool:
        """Return whether the newest indexed generation of a service differs from the stored one."""
        newest = (self.newest(service) for service in self.services())
        return any(self._is_stale(generation) for generation in newest if generation is not None)

    def _is_stale(self, generation: Generation) -> bool:
        """Return whether the store has another generation than the index under this one's name.

        A missing or damaged one does not count: a listing reports it.
        """
        plain = self._index.generations.get(generation.service, generation.number)
        for name in self._names_of(generation.service, generation.number):
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                return open_generation(name, self._storage.get(name), self._keys.writer_key)[1] != plain
        return False

    def _names_of(self, service: str, number: int) -> list[str]:
        tags = self._keys.writer_key.tags(service)
        return [generation_name(tag, number) for tag in tags]

    def confirmed(self, generation: Generation) -> Generation:
        """Return the generation of this number as the store has it, for reading.

        The index may describe another copy of the store, which this one has replaced since. Raises
        NotFoundError, DamageError, FormatError, StorageError.
        """
        service, number = generation.service, generation.number
        for name in self._names_of(service, number):
            try:
                found, plain = open_generation(name, self._storage.get(name), self._keys.writer_key)
            except (ObjectMissingError, RevokedKeyError):
                continue
            if plain != self._index.generations.get(service, number):
                self.sync(reread=True)
            return found
        self.sync(reread=True)
        raise NotFoundError(
            f"{service}@{number} is not in the store at {self._keys.location} any more; see "
            f"'castore log {service}'"
        )

    def _session_of(self, service: str, number: int) -> str | None:
        """Return the session of a generation, in hex; "" if it is damaged, None if it does not exist."""
        generation = self.get(service, number)
        if generation is not None:
            return generation.session.hex()
        names = {(tag, number) for tag in self._keys.writer_key.tags(service)}
        return "" if any(split_generation(name) in names for name in self.damaged) else None

    # Find

    def services(self) -> list[str]:
        """Return the names of the services that have generations, sorted."""
        return self._index.generations.services()

    def all(self, service: str | None = None) -> list[Generation]:
        """Return the generations of a service, or of all, newest first.

        Of generations with the same time and number, the one of the last service comes first.
        """
        if service is not None:
            return list(self.newest_first(service))
        generations = list(self.iterate())
        generations.sort(key=lambda one: (one.time, one.number, one.service), reverse=True)
        return generations

    def by_time(self) -> Iterator[Generation]:
        """Yield all generations, in the order of `all`; each is read when the caller asks for it."""
        keys = [(*order, service) for service in self.services() for order in self._orders(service)]
        keys.sort(reverse=True)
        for _, number, service in keys:
            # Another process may have deleted it meanwhile.
            if (generation := self.get(service, number)) is not None:
                yield generation

    def _orders(self, service: str) -> Iterator[tuple[int, int]]:
        """Yield the times and numbers of a service's generations."""
        try:
            yield from map(decode_order, self._index.generations.newest_first(service))
        except DamageError as error:
            raise self._index.refusal(error) from None

    def iterate(self) -> Iterator[Generation]:
        """Yield all generations, service by service; each is read when the caller asks for it."""
        for service in self.services():
            yield from self.newest_first(service)

    def newest_first(self, service: str) -> Iterator[Generation]:
        """Yield the generations of a service, newest first; each is read when the caller asks for it."""
        return map(self._decode, self._index.generations.newest_first(service))

    def newest(self, service: str) -> Generation | None:
        """Return the generation of a service with the highest number, or None."""
        return next(self.newest_first(service), None)

    def get(self, service: str, number: int) -> Generation | None:
        """Return a generation, or None."""
        if not 0 < number <= MAX_NUMBER:
            return None
        plain = self._index.generations.get(service, number)
        return None if plain is None else self._decode(plain)

    def by_revision(self, service: str, prefix: str) -> list[Generation]:
        """Return the generations whose revision begins with `prefix`, newest first.

        Pre-rollback and partial generations are found by number only.
        """
        numbers = self._index.generations.numbers_by_revision(service, prefix)
        generations = (self.get(service, number) for number in numbers)
        return [generation for generation in generations if generation is not None]

    def next_number(self, service: str) -> int:
        """Return the number for the next generation of a service.

        It is above every number that is accepted, was removed on purpose, or was ever seen by this machine: a
        number is not used twice. Numbers far above all others are ignored: a stolen machine could use up all
        numbers. Numbers whose names exist are skipped, whether the object is damaged or not a record at all.
        """
        tag, *former = self._keys.writer_key.tags(service)
        names = [split_generation(short) for short in self._storage.list(GENERATIONS)]
        listed = names
        with contextlib.suppress(DamageError, FormatError):
            listed = [split_generation(name) for name in self._keys.writer_key.listed()]
        reused = (number for service_tag, number in listed if service_tag in former)
        singles = {*self._index.generations.numbers(service), *reused}
        number = last_in_sequence({*singles, self._keys.freshness.last(service)}, self._removals(service)) + 1
        used_numbers = {other for service_tag, other in names if service_tag == tag and other >= number}
        while number in used_numbers:
            number += 1
        return number

    def _newest_in_sequence(self, service: str) -> Generation | None:
        """Return the generation with the highest number that is not far above all others; or None."""
        newest = self.newest(service)
        if newest is None or newest.number <= MAX_JUMP:
            return newest
        last = last_in_sequence(self._index.generations.numbers(service), self._removals(service))
        return next(
            (generation for generation in self.newest_first(service) if generation.number <= last), None
        )

    def objects(self, service: str, numbers: Iterable[int]) -> list[str]:
        """Return the names of the objects of these generations of a service.

        That includes objects under any writer key, and forged ones.
        """
        wanted = {(tag, number) for number in numbers for tag in self._keys.writer_key.tags(service)}
        listed = self._storage.list(GENERATIONS)
        return [full_name(GENERATIONS, short) for short in listed if split_generation(short) in wanted]

    def _decode(self, plain: bytes) -> Generation:
        try:
            return decode_generation(plain)
        except DamageError as error:
            raise self._index.refusal(error) from None

    # Commit and forget

    def commit(self, generation: Generation) -> None:
        """Write a generation's record: the last step of a snapshot, which makes it a generation.

        Raises BusyError if its number was taken, UsageError for a number out of range, KeyRotatedError,
        StorageError.
        """
        if not 0 < generation.number <= MAX_NUMBER:
            raise UsageError(f"a generation cannot have the number {generation.number}")
        name = generation_name(self._keys.writer_key.tag(generation.service), generation.number)
        data, plain = encode_generation(generation, self._keys.writer_key)
        # The session made its own objects durable. The generation may also reference objects of others,
        # known from a listing, whose writer may have been killed before it synced their names.
        for folder in (SESSIONS, PACKS):
            self._storage.sync_dir(folder)
        try:
            self._storage.put(name, data)
        except ObjectExistsError:
            raise BusyError(
                f"another castore has just taken the number {generation.number} of "
                f"{generation.service!r}; nothing was committed, try again"
            ) from None
        except StorageError as error:
            self._revert_commit(generation, name, data, error)
            raise
        try:
            self._keys.refresh()
        except KeyRotatedError as error:
            raise KeyRotatedError(
                f"{generation.service}@{generation.number} is not committed, since meanwhile {error}"
            ) from None
        except CastoreError as error:
            # It is not known whether the generation is accepted.
            self._revert_commit(generation, name, data, error)
            raise
        # It is committed; if updating the index fails, the next synchronisation adds it.
        with contextlib.suppress(StorageError):
            self._keys.freshness.remember_commit(generation)
            self._index.generations.put([(short_name(GENERATIONS, name), generation, plain)])

    def _revert_commit(self, generation: Generation, name: str, data: bytes, error: CastoreError) -> None:
        """Remove a record that was written but not acknowledged, unless the name has another's record.

        If that fails, raises `error` with that added.
        """
        try:
            if self._storage.get(name) == data:
                # Others may have seen it: its number is not used again.
                self.expect_removal(generation.service, [generation.number])
                with contextlib.suppress(StorageError):
                    record_removal(
                        self._storage, self._keys.writer_key, generation.service, [generation.number]
                    )
                self._storage.delete_all([name])
        except ObjectMissingError:
            pass
        except StorageError:
            raise type(error)(
                f"{error}; {generation.service}@{generation.number} could not be removed either: if it is "
                "listed, it is complete"
            ) from error

    def expect_removal(self, service: str, numbers: Iterable[int]) -> None:
        """Record that generations are removed on purpose. Call this before their objects are deleted.

        This machine then does not report them as missing, and never uses their numbers again. Raises
        StorageError.
        """
        removed = set(numbers)
        rest = (generation for generation in self.newest_first(service) if generation.number not in removed)
        self._keys.freshness.forget(service, removed, next(rest, None))

    def forget(self, service: str, numbers: Collection[int]) -> None:
        """Delete the records of generations, durably; `compact` reclaims the space of their content.

        The caller has checked that this machine may remove them. Raises StorageError.
        """
        names = self.objects(service, numbers)
        self.expect_removal(service, numbers)
        # First, so that no other machine reports them missing. On a full disk the record is skipped: removal
        # is what makes space, and compaction needs it. Other machines then report an unexplained removal.
        with contextlib.suppress(StorageFullError):
            record_removal(self._storage, self._keys.writer_key, service, numbers)
        self._storage.delete_all(names)
        self._index.generations.remove(short_name(GENERATIONS, name) for name in names)

    def forget_unreadable(self, names: Collection[str]) -> None:
        """Delete generations that no key can read, by the names of their objects. Raises StorageError."""
        for name in names:
            tag, number = split_generation(name)
            for service in self._keys.freshness.services() if number else ():
                if tag in self._keys.writer_key.tags(service):
                    self.expect_removal(service, [number])
                    record_removal(self._storage, self._keys.writer_key, service, [number])
        self._storage.delete_all(names)

    def pin(self, service: str, number: int, note: str) -> bool:
        """Keep a generation whatever the retention rules say; return whether it was not pinned yet."""
        return pin(self._storage, self._keys.writer_key, service, number, note)

    def unpin(self, service: str, number: int) -> bool:
        """Let the retention rules decide about a generation again; return whether it was pinned."""
        return unpin(self._storage, self._keys.writer_key, service, number)

    def pins(self, service: str) -> dict[int, str]:
        """Return the pinned numbers of a service, with the reasons."""
        return pins(self._storage, self._keys.writer_key, service)
