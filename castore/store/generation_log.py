"""The generations of a store: the index brought up to date with them, found, committed, let go."""

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
from castore.model.generation import MAX_NUMBER, decode_generation
from castore.store.format.deletion import FOLDER as CONDEMNED
from castore.store.format.deletion import read_condemned
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
    """What a store has generations of."""

    damaged: dict[str, str]
    """Objects that were found damaged, by name, with the reasons; they are not indexed."""
    distrusted: frozenset[PackId] = frozenset()
    """Packs that new snapshots here share nothing with, since a machine that was revoked has added them."""
    older: str
    """What is wrong where a store that went back is reported instead of refused; empty: nothing."""
    _accept_older: bool
    _syncing: threading.Lock

    # The index

    def sync(
        self, *, reread: bool = False, report_older: bool = False, tally: Progress | None = None
    ) -> None:
        """Bring the index up to date with the store; what is damaged is told in `damaged`.

        reread: the generations that are indexed, too: under the name of one may be another.
        report_older: do as `sync_generations` does. tally: counts the packs that are read.
        """
        self.index.try_again()
        self.sync_generations(reread=reread, report_older=report_older)
        with self._syncing:
            # Packs are listed behind what condemns them: what is condemned no more is gone from that list.
            condemned, found = read_condemned(self.storage, self.writer_key)
            self._told(CONDEMNED, found)
            self._told("packs/", self._sync_packs(tally))
            self._recall_verified()
            # Nor is what nobody has the key to counted on, or is damaged: it is stored again where it is
            # still at hand.
            doubted = self.index.doubted()
            keyless = self.index.packs_without_key(lambda: session_numbers(self.storage).keys())
            removing = {pack for one in condemned for pack in one.packs}
            self.distrusted = frozenset(self._distrusted())
            self.index.condemn({*keyless, *doubted, *removing, *self.distrusted})

    def _sync_packs(self, tally: Progress | None) -> dict[str, str]:
        return sync_packs(self.storage, self.index, self.writer_key, tally, self._keyring.writer_of)

    def _distrusted(self) -> set[PackId]:
        """Return the packs that new snapshots here do not share, be it as a whole or as bases of deltas.

        Those are what a revoked machine has added; with `isolate_writers`, what any other machine has. A
        maintainer may have moved its records to packs of its own. Of a maintainer that is revoked no pack is
        shared: it could put anything in the place of others' records. They are read and kept as ever.
        """
        revoked = {one.key for one in self.config.writers if one.revoked and not one.replaced}
        if not revoked and not self.isolate_writers:
            return set()
        own = self.writer_key.signer.public if self.writer_key.may_add else b""

        def is_distrusted(key: bytes) -> bool:
            return key in revoked or (self.isolate_writers and key != own)

        writer_of, may_maintain = self._keyring.writer_of, self.writer_key.signers.may_maintain
        found = set()
        for pack, _, signer, sessions in self.index.owners():
            writers = (writer_of(one) or signer for one in sessions) if may_maintain(signer) else [signer]
            if signer in revoked or any(map(is_distrusted, writers)):
                found.add(pack)
        return found

    def sync_generations(self, *, reread: bool = False, report_older: bool = False) -> None:
        """Bring the index's generations up to date with the store.

        report_older: note in `older` that generations disappeared which this machine has seen, and
        go on: a new snapshot must not be refused to protect old ones. Else raises StaleStoreError.
        """
        self.older = ""
        with self._syncing:
            older: StaleStoreError | None = None
            # Another copy of the store may be in its place, with other generations of the same names.
            reread = reread or self._accept_older or self._is_another_copy()
            while True:
                memory = self._seen.memory()
                try:
                    found = sync_generations(self.storage, self.index, self.writer_key, reread=reread)
                except StorageError:
                    if older is not None:
                        raise older from None
                    raise
                self._told("generations/", found)
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
                    # Another process may have removed some on purpose while they were listed; and an
                    # index that a disk has changed may lack what is there.
                    if reread and not report_older and self._seen.memory() == memory:
                        raise
                    older, reread = error, True
            self._accept_older = False

    def _report_older(self, message: str) -> None:
        self.older = message

    def _removals(self, service: str) -> Removals:
        return removals(self.storage, self.writer_key, service)

    def _is_another_copy(self) -> bool:
        """Whether the newest indexed generation of a service is not the one of that name in the store."""
        newest = (self.newest(service) for service in self.services())
        return any(self._is_stale(one) for one in newest if one is not None)

    def _is_stale(self, generation: Generation) -> bool:
        """Whether the index has another generation than the store under this one's name.

        One that is missing or damaged is not: a listing reports it.
        """
        plain = self.index.generation(generation.service, generation.number)
        for name in self._names_of(generation.service, generation.number):
            with contextlib.suppress(DamageError, FormatError, ObjectMissingError):
                return open_generation(name, self.storage.get(name), self.writer_key)[1] != plain
        return False

    def _names_of(self, service: str, number: int) -> list[str]:
        tags = self.writer_key.tags(service)
        return [f"generations/{tag.hex()}-{number:010d}" for tag in tags]

    def confirmed(self, generation: Generation) -> Generation:
        """Return the generation of this number as the store has it, to be read.

        The index may be of another copy of the store, in whose place this one is now. Raises
        NotFoundError, DamageError, FormatError, StorageError.
        """
        service, number = generation.service, generation.number
        for name in self._names_of(service, number):
            try:
                found, plain = open_generation(name, self.storage.get(name), self.writer_key)
            except (ObjectMissingError, RevokedKeyError):
                continue
            if plain != self.index.generation(service, number):
                self.sync_generations(reread=True)
            return found
        self.sync_generations(reread=True)
        raise NotFoundError(
            f"{service}@{number} is not in the store at {self.location} any more; see 'castore log {service}'"
        )

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

    def reindex(self, tally: Progress | None = None) -> None:
        """Build the index again from the store. Raises BusyError while something is removed from it.

        tally: counts the packs that are read.
        """
        with self.upkeep_lock():
            self.index.clear()
            self.sync(tally=tally)

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

    def newest(self, service: str) -> Generation | None:
        """Return the generation of a service with the highest number, or None."""
        return next(self.newest_first(service), None)

    def generation(self, service: str, number: int) -> Generation | None:
        """Return a generation, or None."""
        if not 0 < number <= MAX_NUMBER:
            return None
        plain = self.index.generation(service, number)
        return None if plain is None else self._decode(plain)

    def by_revision(self, service: str, prefix: str) -> list[Generation]:
        """Return the generations whose revision begins with `prefix`, newest first.

        Pre-rollback and partial generations are found by number only.
        """
        numbers = self.index.numbers_by_revision(service, prefix)
        found = (self.generation(service, number) for number in numbers)
        return [generation for generation in found if generation is not None]

    def has_revision(self, service: str, revision: str) -> bool:
        """Whether there is a generation of exactly this revision."""
        return any(one.revision == revision for one in self.by_revision(service, revision))

    def next_number(self, service: str) -> int:
        """Return the number after the highest of a generation that is accepted, or was removed on purpose.

        It is also after the highest that this machine has ever seen: a number is not given twice. A number
        that is far above all others is ignored: a machine that was stolen could use all numbers up. Names
        that are taken are passed over, be they of damaged records, or of what is none.
        """
        tag, *former = self.writer_key.tags(service)
        names = [split_name(short) for short in self.storage.list("generations")]
        listed = names
        with contextlib.suppress(DamageError, FormatError):
            listed = [split_name(name) for name in self.writer_key.listed()]
        singles = {*self.index.numbers(service), *(number for one, number in listed if one in former)}
        number = last_in_sequence({*singles, self._seen.last(service)}, self._removals(service)) + 1
        taken = {one for found, one in names if found == tag and one >= number}
        while number in taken:
            number += 1
        return number

    def _newest_in_sequence(self, service: str) -> Generation | None:
        """Return the generation with the highest number that is not far above all others."""
        newest = self.newest(service)
        if newest is None or newest.number <= MAX_JUMP:
            return newest
        last = last_in_sequence(self.index.numbers(service), self._removals(service))
        return next((one for one in self.newest_first(service) if one.number <= last), None)

    def generation_objects(self, service: str, numbers: Iterable[int]) -> list[str]:
        """Return the names that these generations of a service have in the store.

        That is one of each that is there, whichever writer key it is under, and what was forged for one.
        """
        wanted = {(tag, number) for number in numbers for tag in self.writer_key.tags(service)}
        return [f"generations/{n}" for n in self.storage.list("generations") if split_name(n) in wanted]

    def _decode(self, plain: bytes) -> Generation:
        try:
            return decode_generation(plain)
        except DamageError as error:
            raise self.index.refusal(error) from None

    # Committed, and let go

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
        except KeyRotatedError as error:
            raise KeyRotatedError(
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

    def _take_back(
        self, generation: Generation, name: str, data: bytes, error: CastoreError
    ) -> None:
        """Remove what was written and, after an error, not acknowledged; unless another has its name.

        Where that fails, raises the error with that added.
        """
        try:
            if self.storage.get(name) == data:
                # Others may have seen it: its number is not given again.
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
                f"{error}; {generation.service}@{generation.number} could not be taken back either: if it "
                "is listed, it is whole"
            ) from error

    def forgotten(self, service: str, numbers: Iterable[int]) -> None:
        """Remember that generations are removed on purpose; to be called before their objects go.

        So this machine does not miss them, and never gives their numbers again. Raises StorageError.
        """
        gone = set(numbers)
        rest = (one for one in self.newest_first(service) if one.number not in gone)
        self._seen.forget(service, gone, next(rest, None))

    def forget(self, service: str, numbers: Collection[int]) -> None:
        """Remove the records of generations, durably; what only they need is left to `compact`.

        Raises StorageError.
        """
        names = self.generation_objects(service, numbers)
        self.forgotten(service, numbers)
        # First, so that no other machine misses them. On a full disk removal is what makes room, and what
        # it frees is needed by compaction: other machines then report the removal as unexplained.
        with contextlib.suppress(StorageFullError):
            record_removal(self.storage, self.writer_key, service, numbers)
        self.storage.delete_all(names)
        self.index.remove_generations(name.partition("/")[2] for name in names)

    def drop(self, names: Collection[str]) -> None:
        """Remove objects that nobody can read, durably. Raises StorageError."""
        for name in names:
            tag, number = split_name(name)
            for service in self._seen.services() if number else ():
                if tag in self.writer_key.tags(service):
                    self.forgotten(service, [number])
                    record_removal(self.storage, self.writer_key, service, [number])
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
