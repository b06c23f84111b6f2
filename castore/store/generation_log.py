"""The generations of a store: keep the index up to date with them, find, commit and forget them."""

from __future__ import annotations

import contextlib
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
from castore.store.format.deletion import FOLDER as DELETIONS
from castore.store.format.deletion import pending_deletions
from castore.store.format.generation import (
    MAX_JUMP,
    encode_generation,
    generation_name,
    last_in_sequence,
    open_generation,
    split_name,
)
from castore.store.format.pin import pin, pins, unpin
from castore.store.format.removal import record_removal, removals
from castore.store.format.session_key import session_numbers
from castore.store.keys.key_manager import Keyed
from castore.store.sync import sync_generations, sync_packs

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection, Iterable, Iterator

    from castore.model.generation import Generation
    from castore.model.refs import PackId
    from castore.model.removals import Removals
    from castore.progress import Progress


class History(Keyed):
    """The generations of a store, and the index of them on this machine."""

    damaged: dict[str, str]
    """Objects that were found damaged, by name, with the reasons; they are not indexed."""
    distrusted: frozenset[PackId] = frozenset()
    """Packs that new snapshots here do not reference, because a revoked machine added them."""
    older: str
    """What is wrong with a store that is older than seen before, if that is only reported; else empty."""
    _accept_older: bool
    _syncing: threading.Lock
    _settled: set[tuple[tuple[bytes, int, int], str]]
    """States of the index that a sync left as they were, with the missing object that was the reason."""

    # The index

    def sync(
        self, *, reread: bool = False, report_older: bool = False, tally: Progress | None = None
    ) -> None:
        """Bring the index up to date with the store, and list damaged objects in `damaged`.

        reread: also read indexed generations again: the store may have another one under the same name.
        report_older: as for `sync_generations`. tally: counts the packs that are read.
        """
        self.index.reset_error()
        self.sync_generations(reread=reread, report_older=report_older)
        with self._syncing:
            # Packs are listed after the pending deletions: a pack is off that list only once it is deleted.
            pending, found = pending_deletions(self.storage, self.writer_key)
            self._replace_damaged(DELETIONS, found)
            self._replace_damaged("packs/", self._sync_packs(tally))
            self._recall_verified()
            # Packs without a key, and damaged packs, are not referenced either: snapshots store their
            # content again as long as they have it.
            doubted = self.index.verification.damaged()
            keyless = self.index.packs.without_key(lambda: session_numbers(self.storage).keys())
            removing = {pack for one in pending for pack in one.packs}
            self.distrusted = frozenset(self._distrusted())
            self.index.liveness.set_pending_deletion({*keyless, *doubted, *removing, *self.distrusted})

    def _sync_packs(self, tally: Progress | None) -> dict[str, str]:
        return sync_packs(self.storage, self.index, self.writer_key, tally, self._keyring.writer_of)

    def _distrusted(self) -> set[PackId]:
        """Return the packs that new snapshots here do not reference, neither directly nor as bases.

        Those are the packs of revoked machines; with `isolate_writers`, those of every other machine. A
        maintainer may have moved a machine's records to packs of its own. If a maintainer is revoked, none of
        its packs is referenced: it could have replaced others' records. All these packs are still read and
        kept as before.
        """
        revoked = {one.key for one in self.config.writers if one.revoked and not one.replaced}
        if not revoked and not self.isolate_writers:
            return set()
        own = self.writer_key.signer.public if self.writer_key.may_add else b""

        def is_distrusted(key: bytes) -> bool:
            return key in revoked or (self.isolate_writers and key != own)

        writer_of, may_maintain = self._keyring.writer_of, self.writer_key.signers.may_maintain
        found = set()
        for pack, _, signer, sessions in self.index.packs.owners():
            writers = (writer_of(one) or signer for one in sessions) if may_maintain(signer) else [signer]
            if signer in revoked or any(map(is_distrusted, writers)):
                found.add(pack)
        return found

    def sync_generations(self, *, reread: bool = False, report_older: bool = False) -> None:
        """Bring the index's generations up to date with the store.

        report_older: if generations that this machine has seen disappeared, describe that in `older` and go
        on: a new snapshot must not be refused to protect old ones. Otherwise raises StaleStoreError.
        """
        self.older = ""
        self._settled.clear()  # what a new generation references may have been missing before
        with self._syncing:
            older: StaleStoreError | None = None
            # Another copy of the store may have replaced it, with other generations of the same names.
            reread = reread or self._accept_older or self._is_another_copy()
            while True:
                memory = self._seen.memory()
                try:
                    found = sync_generations(self.storage, self.index, self.writer_key, reread=reread)
                except StorageError:
                    if older is not None:
                        raise older from None
                    raise
                self._replace_damaged("generations/", found)
                newest = (self._newest_in_sequence(service) for service in self.services())
                present = {one.service: one for one in newest if one is not None}
                try:
                    self._seen.compare(
                        *(memory, present, self._session_of),
                        accept=self._accept_older,
                        removals=self._removals,
                        report=self._report_older if report_older and older is not None else None,
                    )
                    break
                except StaleStoreError as error:
                    # Another process may have removed generations on purpose during the listing; and an
                    # index that a failing disk has changed may lack existing ones.
                    if reread and not report_older and self._seen.memory() == memory:
                        raise
                    older, reread = error, True
            self._accept_older = False

    def _report_older(self, message: str) -> None:
        self.older = message

    def _removals(self, service: str) -> Removals:
        return removals(self.storage, self.writer_key, service)

    def _is_another_copy(self) -> bool:
        """Return whether the newest indexed generation of a service differs from the stored one."""
        newest = (self.newest(service) for service in self.services())
        return any(self._is_stale(one) for one in newest if one is not None)

    def _is_stale(self, generation: Generation) -> bool:
        """Return whether the store has another generation than the index under this one's name.

        A missing or damaged one does not count: a listing reports it.
        """
        plain = self.index.generations.get(generation.service, generation.number)
        for name in self._names_of(generation.service, generation.number):
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                return open_generation(name, self.storage.get(name), self.writer_key)[1] != plain
        return False

    def _names_of(self, service: str, number: int) -> list[str]:
        tags = self.writer_key.tags(service)
        return [f"generations/{tag.hex()}-{number:010d}" for tag in tags]

    def confirmed(self, generation: Generation) -> Generation:
        """Return the generation of this number as the store has it, for reading.

        The index may describe another copy of the store, which this one has replaced since. Raises
        NotFoundError, DamageError, FormatError, StorageError.
        """
        service, number = generation.service, generation.number
        for name in self._names_of(service, number):
            try:
                found, plain = open_generation(name, self.storage.get(name), self.writer_key)
            except (ObjectMissingError, RevokedKeyError):
                continue
            if plain != self.index.generations.get(service, number):
                self.sync_generations(reread=True)
            return found
        self.sync_generations(reread=True)
        raise NotFoundError(
            f"{service}@{number} is not in the store at {self.location} any more; see 'castore log {service}'"
        )

    def _session_of(self, service: str, number: int) -> str | None:
        """Return the session of a generation, in hex; "" if it is damaged, None if it does not exist."""
        found = self.generation(service, number)
        if found is not None:
            return found.session.hex()
        names = {(tag, number) for tag in self.writer_key.tags(service)}
        return "" if any(split_name(name) in names for name in self.damaged) else None

    def _replace_damaged(self, folder: str, found: dict[str, str]) -> None:
        kept = {k: reason for k, reason in self.damaged.items() if not k.startswith(folder)}
        self.damaged = kept | found

    def reindex(self, tally: Progress | None = None) -> None:
        """Rebuild the index from the store. Raises BusyError while another castore removes from it.

        tally: counts the packs that are read.
        """
        with self.upkeep_lock():
            self.index.clear()
            self.sync(tally=tally)

    # Generations

    def services(self) -> list[str]:
        """Return the names of the services that have generations, sorted."""
        return self.index.generations.services()

    def generations(self, service: str | None = None) -> list[Generation]:
        """Return the generations of a service, or of all, newest first.

        Of generations with the same time and number, the one of the last service comes first.
        """
        if service is not None:
            return list(self.newest_first(service))
        found = list(self.all_generations())
        found.sort(key=lambda one: (one.time, one.number, one.service), reverse=True)
        return found

    def newest_of_all(self) -> Iterator[Generation]:
        """Yield all generations, in the order of `generations`; each is read when the caller asks for it."""
        keys = [(*order, service) for service in self.services() for order in self._orders(service)]
        keys.sort(reverse=True)
        for _, number, service in keys:
            # Another process may have deleted it meanwhile.
            if (found := self.generation(service, number)) is not None:
                yield found

    def _orders(self, service: str) -> Iterator[tuple[int, int]]:
        """Yield the times and numbers of a service's generations."""
        try:
            yield from map(decode_order, self.index.generations.newest_first(service))
        except DamageError as error:
            raise self.index.refusal(error) from None

    def all_generations(self) -> Iterator[Generation]:
        """Yield all generations, service by service; each is read when the caller asks for it."""
        for service in self.services():
            yield from self.newest_first(service)

    def newest_first(self, service: str) -> Iterator[Generation]:
        """Yield the generations of a service, newest first; each is read when the caller asks for it."""
        return map(self._decode, self.index.generations.newest_first(service))

    def newest(self, service: str) -> Generation | None:
        """Return the generation of a service with the highest number, or None."""
        return next(self.newest_first(service), None)

    def generation(self, service: str, number: int) -> Generation | None:
        """Return a generation, or None."""
        if not 0 < number <= MAX_NUMBER:
            return None
        plain = self.index.generations.get(service, number)
        return None if plain is None else self._decode(plain)

    def by_revision(self, service: str, prefix: str) -> list[Generation]:
        """Return the generations whose revision begins with `prefix`, newest first.

        Pre-rollback and partial generations are found by number only.
        """
        numbers = self.index.generations.numbers_by_revision(service, prefix)
        found = (self.generation(service, number) for number in numbers)
        return [generation for generation in found if generation is not None]

    def has_revision(self, service: str, revision: str) -> bool:
        """Return whether there is a generation of exactly this revision."""
        return any(one.revision == revision for one in self.by_revision(service, revision))

    def next_number(self, service: str) -> int:
        """Return the number for the next generation of a service.

        It is above every number that is accepted, was removed on purpose, or was ever seen by this machine: a
        number is not used twice. Numbers far above all others are ignored: a stolen machine could use up all
        numbers. Numbers whose names exist are skipped, whether the object is damaged or not a record at all.
        """
        tag, *former = self.writer_key.tags(service)
        names = [split_name(short) for short in self.storage.list("generations")]
        listed = names
        with contextlib.suppress(DamageError, FormatError):
            listed = [split_name(name) for name in self.writer_key.listed()]
        reused = (number for one, number in listed if one in former)
        singles = {*self.index.generations.numbers(service), *reused}
        number = last_in_sequence({*singles, self._seen.last(service)}, self._removals(service)) + 1
        taken = {one for found, one in names if found == tag and one >= number}
        while number in taken:
            number += 1
        return number

    def _newest_in_sequence(self, service: str) -> Generation | None:
        """Return the generation with the highest number that is not far above all others; or None."""
        newest = self.newest(service)
        if newest is None or newest.number <= MAX_JUMP:
            return newest
        last = last_in_sequence(self.index.generations.numbers(service), self._removals(service))
        return next((one for one in self.newest_first(service) if one.number <= last), None)

    def generation_objects(self, service: str, numbers: Iterable[int]) -> list[str]:
        """Return the names of the objects of these generations of a service.

        That includes objects under any writer key, and forged ones.
        """
        wanted = {(tag, number) for number in numbers for tag in self.writer_key.tags(service)}
        return [f"generations/{n}" for n in self.storage.list("generations") if split_name(n) in wanted]

    def _decode(self, plain: bytes) -> Generation:
        try:
            return decode_generation(plain)
        except DamageError as error:
            raise self.index.refusal(error) from None

    # Commit and forget

    def commit(self, generation: Generation) -> None:
        """Write a generation's record: the last step of a snapshot, which makes it a generation.

        Raises BusyError if its number was taken, UsageError for a number out of range, KeyRotatedError,
        StorageError.
        """
        if not 0 < generation.number <= MAX_NUMBER:
            raise UsageError(f"a generation cannot have the number {generation.number}")
        name = generation_name(self.writer_key, generation.service, generation.number)
        data, plain = encode_generation(generation, self.writer_key)
        # The session made its own objects durable. The generation may also reference objects of others,
        # known from a listing, whose writer may have been killed before it synced their names.
        for folder in ("sessions", "packs"):
            self.storage.sync_dir(folder)
        try:
            self.storage.put(name, data)
        except ObjectExistsError:
            raise BusyError(
                f"another castore has just taken the number {generation.number} of "
                f"{generation.service!r}; nothing was committed, try again"
            ) from None
        except StorageError as error:
            self._revert_commit(generation, name, data, error)
            raise
        try:
            self.refresh_config()
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
            self._seen.committed(generation)
            self.index.generations.put([(name.partition("/")[2], generation, plain)])

    def _revert_commit(
        self, generation: Generation, name: str, data: bytes, error: CastoreError
    ) -> None:
        """Remove a record that was written but not acknowledged, unless the name has another's record.

        If that fails, raises `error` with that added.
        """
        try:
            if self.storage.get(name) == data:
                # Others may have seen it: its number is not used again.
                self.forgotten(generation.service, [generation.number])
                with contextlib.suppress(StorageError):
                    record_removal(
                        self.storage, self.writer_key, generation.service, [generation.number]
                    )
                self.storage.delete_all([name])
        except ObjectMissingError:
            pass
        except StorageError:
            raise type(error)(
                f"{error}; {generation.service}@{generation.number} could not be removed either: if it is "
                "listed, it is complete"
            ) from error

    def forgotten(self, service: str, numbers: Iterable[int]) -> None:
        """Remember that generations are removed on purpose. Call this before their objects are deleted.

        This machine then does not report them as missing, and never uses their numbers again. Raises
        StorageError.
        """
        gone = set(numbers)
        rest = (one for one in self.newest_first(service) if one.number not in gone)
        self._seen.forget(service, gone, next(rest, None))

    def forget(self, service: str, numbers: Collection[int]) -> None:
        """Delete the records of generations, durably; `compact` reclaims the space of their content.

        Raises StorageError.
        """
        names = self.generation_objects(service, numbers)
        self.forgotten(service, numbers)
        # First, so that no other machine reports them missing. On a full disk the record is skipped: removal
        # is what makes space, and compaction needs it. Other machines then report an unexplained removal.
        with contextlib.suppress(StorageFullError):
            record_removal(self.storage, self.writer_key, service, numbers)
        self.storage.delete_all(names)
        self.index.generations.remove(name.partition("/")[2] for name in names)

    def drop(self, names: Collection[str]) -> None:
        """Delete objects that no key can read, durably. Raises StorageError."""
        for name in names:
            tag, number = split_name(name)
            for service in self._seen.services() if number else ():
                if tag in self.writer_key.tags(service):
                    self.forgotten(service, [number])
                    record_removal(self.storage, self.writer_key, service, [number])
        self.storage.delete_all(names)

    def pin(self, service: str, number: int, note: str) -> bool:
        """Keep a generation whatever the retention rules say; return whether it was not pinned yet."""
        return pin(self.storage, self.writer_key, service, number, note)

    def unpin(self, service: str, number: int) -> bool:
        """Let the retention rules decide about a generation again; return whether it was pinned."""
        return unpin(self.storage, self.writer_key, service, number)

    def pins(self, service: str) -> dict[int, str]:
        """Return the pinned numbers of a service, with the reasons."""
        return pins(self.storage, self.writer_key, service)
