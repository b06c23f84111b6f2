"""A service of a store: snapshots and rollbacks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, TypedDict

from castore.api.generation import Generation
from castore.errors import NotFoundError, UsageError
from castore.model.names import revision_begins
from castore.process.signal_shield import interrupt_note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Unpack

    from castore.api.prune import PrunePlan
    from castore.api.rollback import RollbackPlan, RollbackResult
    from castore.api.sources import AnyParts, AnySource
    from castore.api.store import Store
    from castore.content.streams import StreamReader
    from castore.content.versions import Damaged
    from castore.model.generation import Generation as Record
    from castore.progress import Watch
    from castore.services.find import Hit
    from castore.services.find import Hit as PathVersions
    from castore.services.preview import PartPreview

    _Found = Hit | tuple[str, Damaged]


_AFTER_FORGET: Final = (
    "the store is consistent; generations that were deleted stay deleted: repeat the command for the others"
)


class RollbackOptions(TypedDict, total=False):
    """The options of `Service.plan_rollback`."""

    parts: AnyParts | None
    restore_with: Mapping[str, Sequence[str]] | None
    trust_recorded: bool
    pre_rollback: bool
    trust_times: bool
    range_writes: bool
    change_owner: bool | None
    numeric_ids: bool


class Service:
    """A service of a store."""

    def __init__(self, store: Store, name: str) -> None:
        self._owner = store
        self.name = name

    def __repr__(self) -> str:
        return f"<castore.Service {self.name!r} of {self._owner.location}>"

    @property
    def live_revision(self) -> str | None:
        """The recorded revision that the live state belongs to, or None if it is unknown."""
        return self._owner.internal.state.live_revision(self.name)

    # Generations

    def generations(self, *, revision: str | None = None, revision_prefix: str = "") -> Iterator[Generation]:
        """Yield the generations, newest first.

        revision: only generations of exactly this revision.
        revision_prefix: only generations of revisions that begin with this.
        Raises NotFoundError if a host was chosen that has none.
        """
        from castore.services.hosts import listed

        store = self._owner.internal
        store.generations.sync()
        if store.generations.newest(self.name) is None:
            return
        shown = listed(store, self.name)
        for record in store.generations.newest_first(self.name):
            if revision is not None and record.revision != revision:
                continue
            if shown(record) and (not revision_prefix or revision_begins(record.revision, revision_prefix)):
                yield Generation(self._owner, record)
                self._owner.check_open()

    def generation(self, selector: str | int) -> Generation:
        """Return the generation that a selector means: a number, a revision, a date, "latest".

        Raises NotFoundError, UsageError, DamageError.
        """
        from castore.services.selectors import find

        store = self._owner.internal
        store.generations.sync()
        return Generation(self._owner, find(store, self.name, str(selector)))

    def replaced_generation(self) -> Generation:
        """Return the pre-rollback generation of the last rollback on this machine. Raises NotFoundError.

        After an interrupted rollback it may be incomplete: then NotIntactError is raised.
        """
        from castore.services.rollback.journal import refuse_interrupted
        from castore.services.selectors import undo_of

        store = self._owner.internal
        store.generations.sync()
        refuse_interrupted(store, self.name)
        return Generation(self._owner, undo_of(store, self.name))

    def pins(self) -> dict[int, str]:
        """Return the notes of the pinned generations, by number."""
        return dict(self._owner.internal.generations.pins(self.name))

    def hosts(self) -> set[str]:
        """Return the names of the hosts that took its generations."""
        from castore.services.hosts import groups_of

        return groups_of(self._owner.internal, self.name).hosts()

    def find(
        self,
        pattern: str,
        *,
        part: str = "",
        ignore_case: bool = False,
        on_damage: Callable[[str, bytes, str], None] | None = None,
    ) -> Iterator[PathVersions]:
        """Yield the paths that match a pattern in any generation, with their versions.

        pattern: as of `castore find`: matches names at every depth, or whole paths if it begins with "/".
        part: search only in this part, or in all if empty.
        on_damage: called with the part, the path and the reason for each directory that cannot be read; None
            raises DamageError for it.
        Raises NotFoundError for a service without generations, UsageError, IdentityError.
        """
        from castore.services.find import find_paths

        def search(reader: StreamReader, generations: list[Record]) -> Iterator[_Found]:
            return find_paths(reader, generations, pattern, part=part, ignore_case=ignore_case)

        return self._versions(search, on_damage)

    def history(
        self, part: str, path: str = "", *, on_damage: Callable[[str, bytes, str], None] | None = None
    ) -> Iterator[PathVersions]:
        """Yield the versions of a part, or of a path in it, for each host.

        on_damage: as in `find`.
        Raises NotFoundError if no generation has it, IdentityError.
        """
        from castore.services.find import path_history

        def search(reader: StreamReader, generations: list[Record]) -> Iterator[_Found]:
            return path_history(reader, generations, part, path)

        return self._versions(search, on_damage)

    def _versions(
        self,
        search: Callable[[StreamReader, list[Record]], Iterator[_Found]],
        on_damage: Callable[[str, bytes, str], None] | None,
    ) -> Iterator[PathVersions]:
        """Yield what a search over the generations of the chosen host finds."""
        from castore.content.streams import StreamReader
        from castore.errors import DamageError
        from castore.services.find import Hit
        from castore.services.hosts import shown
        from castore.services.selector_rules import unknown_service

        store = self._owner.internal
        store.generations.sync()
        generations = store.generations.all(self.name)
        if not generations:
            raise unknown_service(store, self.name)
        generations = list(filter(shown(store, self.name), generations))
        store.keys.identity()
        with StreamReader(store) as reader:
            for found in search(reader, generations):
                if isinstance(found, Hit):
                    yield found
                    self._owner.check_open()
                    continue
                part, (path, reason) = found
                if on_damage is None:
                    raise DamageError(f"{self.name}:{part}/{os.fsdecode(path)}: {reason}")
                on_damage(part, path, reason)

    # Snapshots

    def configured_parts(self) -> dict[str, AnySource]:
        """Return the parts that castore.toml describes, for `snapshot`. Raises UsageError, ConfigError."""
        from castore.services.sources import described_sources

        return dict(described_sources(self._owner.settings, self.name))

    def snapshot(
        self,
        parts: AnyParts | None = None,
        *,
        revision: str | None = None,
        run_hooks: bool | None = None,
        progress: Watch | None = None,
    ) -> Generation:
        """Take a generation, and return it.

        parts: parts by name, or None for those of castore.toml. A part is a `castore.Tree`, an engine such as
            `castore.PostgreSQL`, a `castore.File`, a `castore.Command` or a `castore.Stream`.
        revision: the name of the configuration that the state belongs to, or None for that of castore.toml.
        run_hooks: whether to run the hooks of castore.toml, or None to run them if the parts are from there.
        progress: called with the name of each part and its counters, or None.
        After an interrupted rollback, the generation is marked: `is_interrupted`.
        Raises ProgramError, StorageError, BusyError, ConfigError; then nothing was committed.
        """
        from castore.api.sources import sources_of
        from castore.services.hooks import Hooks

        hooked = parts is None if run_hooks is None else run_hooks
        sources = sources_of(self.configured_parts() if parts is None else parts)
        operations, said = self._owner.collect_messages(progress)
        done = operations.snapshot(
            self.name,
            sources,
            hooks=Hooks.of(operations.described(self.name) if hooked else None),
            revision=revision,
            after_interruption=True,
        )
        older = self._owner.internal.generations.older
        return Generation(self._owner, done.generation, taken=done, notes=[*said, *filter(None, [older])])

    def preview_snapshot(self, parts: AnyParts | None = None) -> list[PartPreview]:
        """Return what a snapshot would take of each part; no program is run, nothing is stored.

        A part with an `error` would make the snapshot fail.
        """
        from castore.api.sources import sources_of
        from castore.services.preview import preview

        store = self._owner.internal
        sources = sources_of(self.configured_parts() if parts is None else parts)
        excluded_paths = [store.location, *self._owner.excluded_paths]
        return list(preview(sources, excluded_paths, store.paths.journals))

    def forget(self, numbers: Iterable[int]) -> None:
        """Delete generations permanently; `Store.compact` reclaims the space that only they referenced.

        Raises NotFoundError, or UsageError if one of them is pinned; then none is deleted.
        """
        from castore.services.prune import forget
        from castore.services.rollback.journal import refuse_interrupted

        store = self._owner.internal
        with store.state.lock(self.name), interrupt_note(_AFTER_FORGET):
            refuse_interrupted(store, self.name)
            store.generations.sync()
            forget(store, self.name, self._numbered(numbers))

    def plan_forget(self, numbers: Iterable[int]) -> PrunePlan:
        """Return what `forget` would delete. Errors as of `Store.plan_forget`; also NotFoundError."""
        store = self._owner.internal
        store.generations.sync()
        return self._owner.plan_forget(Generation(self._owner, record) for record in self._numbered(numbers))

    def _numbered(self, numbers: Iterable[int]) -> list[Record]:
        """Return the generations with these numbers. Raises NotFoundError."""
        generations = {number: self._owner.internal.generations.get(self.name, number) for number in numbers}
        if missing := [number for number, generation in generations.items() if generation is None]:
            raise NotFoundError(f"there is no generation {missing[0]} of {self.name!r}")
        return [generation for generation in generations.values() if generation is not None]

    # Rollbacks

    def plan_rollback(
        self,
        to: str | int | Generation,
        *,
        parts: AnyParts | None = None,
        restore_with: Mapping[str, Sequence[str]] | None = None,
        trust_recorded: bool = False,
        pre_rollback: bool = True,
        trust_times: bool = False,
        range_writes: bool = True,
        change_owner: bool | None = None,
        numeric_ids: bool = False,
        compare: bool = True,
    ) -> RollbackPlan:
        """Return what a rollback to a generation would do, for `rollback`; nothing is changed.

        to: a generation, or a selector.
        parts: where parts belong on this machine, instead of where castore.toml says. Other parts belong
            where castore.toml says, or where this machine took them from.
        restore_with: programs that read dumps on their standard input, by part.
        trust_recorded: use the programs, servers and paths that the generation records, even if this machine
            does not know them.
        pre_rollback: take a generation of the present state first.
        trust_times: without a pre-rollback generation, do not compare the content of files of the same size
            and time.
        range_writes: if false, replace large files in one step instead of overwriting ranges of them.
        change_owner: whether to restore owners and groups, or None to restore them if this process is root.
        numeric_ids: restore owners and groups by number, not by name.
        compare: compare the live state; if false, the plan has no steps.
        Raises UsageError for a part that belongs nowhere; NotFoundError, IdentityError.
        """
        from castore.api.rollback import make_plan
        from castore.api.sources import origins_of
        from castore.services.ownership import stored_ownership
        from castore.services.rollback.request import RollbackRequest

        target = self._record(to)
        operations, said = self._owner.collect_messages(None)
        origins = operations.origins_of(
            target, origins_of(parts), restore_with=restore_with, consent=trust_recorded
        )
        request = RollbackRequest(
            target=target,
            origins=origins,
            ownership=stored_ownership(change_owner, numeric=numeric_ids),
            take_pre_rollback=pre_rollback,
            trust_times=trust_times,
            range_writes=range_writes,
        )
        return make_plan(self._owner, operations, request, said, compare=compare)

    def rollback(
        self,
        to: str | int | Generation | RollbackPlan,
        *,
        accept_doubts: bool = False,
        progress: Watch | None = None,
        **options: Unpack[RollbackOptions],
    ) -> RollbackResult:
        """Restore a generation in one transaction: all parts, or none.

        to: a generation, a selector, or the plan of a rollback. The steps of a plan are computed again once
            the service has stopped.
        accept_doubts: continue although the plan has `doubts`, which is refused otherwise.
        progress: as in `snapshot`.
        options: those of `plan_rollback`, unless `to` is a plan.
        Raises CastoreError; then the present state is restored, or the message says what is not.
        """
        from castore.api.rollback import RollbackPlan, carry_out

        if isinstance(to, RollbackPlan):
            if options:
                raise UsageError(f"the plan says that already: give {', '.join(options)} to plan_rollback")
            plan = to
        else:
            plan = self.plan_rollback(to, compare=False, **options)
        self._record(plan.target)
        return carry_out(self._owner, plan, progress, accept_doubts=accept_doubts)

    @property
    def has_interrupted_rollback(self) -> bool:
        """Whether a rollback on this machine has not ended: `recover` completes or undoes it."""
        return self._owner.internal.state.has_rollback_journal(self.name)

    def recover(self, *, forget: bool = False) -> str:
        """Complete or undo a rollback that was interrupted; return what was done.

        forget: only delete the journal of the rollback: the caller has repaired the state.
        Raises NotFoundError if there is none; NotIntactError if the state is still not intact.
        """
        from castore.services.rollback import recover as recovery

        store = self._owner.internal
        store.generations.sync()
        unfinished = f"the rollback is not recovered: castore recover {self.name}"
        with store.state.lock(self.name), interrupt_note(unfinished):
            return (recovery.forget if forget else recovery.recover)(store, self.name)

    def _record(self, to: str | int | Generation) -> Record:
        if not isinstance(to, Generation):
            return self.generation(to).record
        if to.service != self.name:
            raise UsageError(f"{to.service}@{to.number} is not a generation of {self.name!r}")
        # It may be of another store, or deleted since.
        found = self._owner.internal.generations.confirmed(to.record)
        if found.session != to.record.session:
            raise UsageError(f"{to.service}@{to.number} is another generation in {self._owner.location}")
        return found
