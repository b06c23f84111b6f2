"""The public Store class: list, select, prune, compact and verify what a store holds."""

from __future__ import annotations

import contextlib
from functools import cached_property
from typing import TYPE_CHECKING, Final, Literal, Self, overload

from castore.api.generation import Generation
from castore.api.progress import counters
from castore.api.service import Service
from castore.errors import NotFoundError, UsageError
from castore.maintenance.limits import GRACE_SECONDS, MAX_UNUSED, UNFINISHED_SECONDS, Limits
from castore.model.names import revision_begins
from castore.process.signal_shield import interrupt_note
from castore.state.directories import NoHomeError, identity_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from types import TracebackType

    from castore.api.keys import Keys
    from castore.api.prune import PrunePlan, PruneReport
    from castore.api.repair import RepairReport
    from castore.api.selection import Selection
    from castore.errors import ConfigError
    from castore.maintenance.repair import RepairPlan
    from castore.maintenance.stats import Stats
    from castore.maintenance.verify import Verification
    from castore.model.events import Event
    from castore.model.generation import Generation as Record
    from castore.progress import Watch
    from castore.services.config import Keep, Settings
    from castore.services.config import Service as ServiceSettings
    from castore.services.operations import ServiceOperations
    from castore.store.store import Store as OpenStore


_AFTER_PRUNE: Final = (
    "the store is consistent; generations that were deleted stay deleted, and the next prune continues"
)
_AFTER_COMPACT: Final = (
    "the store is consistent, and nothing that generations need was deleted; the next compact continues"
)
_AFTER_VERIFY: Final = (
    "the store was not changed; if packs were being read, the next verify with the same options continues"
)
_AFTER_REPAIR: Final = (
    "the store is consistent, and no intact data was deleted; repeat the command to continue"
)
_AFTER_REINDEX: Final = "the store was not changed; the next command completes the index"


def pass_message(report: Callable[[str], None] | None, text: str) -> None:
    """Pass a message to a callback. Its exception is logged, and does not end a rollback."""
    if report is None:
        return
    try:
        report(text)
    except Exception:
        import logging

        logging.getLogger("castore").exception("the message was not passed on: %s", text)


class Messages:
    """Collects messages for the user, each once, and passes each on when it arises."""

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self._report = report
        self._said: dict[str, None] = {}

    def __call__(self, text: str) -> None:
        """Take a message."""
        if text not in self._said:
            self._said[text] = None
            pass_message(self._report, text)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._said))


class Store:
    """An open store. It is a context manager: leaving it closes the store and drops its keys.

    The methods of a store, and of what it returns, may be called from one thread at a time. After `close`
    they raise UsageError.
    """

    def __init__(
        self,
        opened: OpenStore,
        messages: Messages,
        settings: Settings | None,
        excluded_paths: Callable[[], Sequence[str]],
        report: Callable[[str], None] | None,
    ) -> None:
        self._opened: OpenStore | None = opened
        self._messages = messages
        self._report = report
        self._location = opened.location
        self.settings = settings
        """The settings of castore.toml, or None."""
        self._excluded_paths = excluded_paths

    def __repr__(self) -> str:
        return f"<castore.Store {self._location}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the store, and drop its keys. A key is wiped when nothing refers to it any more."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.close()

    @property
    def internal(self) -> OpenStore:
        """The store as castore itself uses it, for what this class does not offer. Its methods may change.

        Raises UsageError after `close`.
        """
        if self._opened is None:
            raise self._closed_error()
        return self._opened

    def check_open(self) -> None:
        """Raise UsageError if the store is closed."""
        if self._opened is None:
            raise self._closed_error()

    def _closed_error(self) -> UsageError:
        return UsageError(f"the store {self._location} is closed: open it again")

    @property
    def location(self) -> str:
        """The directory of the store."""
        return self._location

    @cached_property
    def excluded_paths(self) -> tuple[str, ...]:
        """Paths that trees store empty, and that a restore never removes: castore's own, and identities."""
        store = self.internal
        excluded = [store.paths.state, store.paths.cache, *self._excluded_paths()]
        with contextlib.suppress(NoHomeError):
            excluded.append(identity_path(store.store_id))
        return tuple(dict.fromkeys(excluded))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the caller should know: an older store than expected, damaged objects, chosen hosts."""
        older = (self.older_warning,) if self.older_warning else ()
        damaged = (f"{name}: {reason}" for name, reason in sorted(self.damaged.items()))
        return (*older, *damaged, *self._messages)

    @property
    def older_warning(self) -> str:
        """Why the store seems to be older than this machine has seen it, or empty."""
        return self.internal.generations.older or ""

    @property
    def damaged(self) -> dict[str, str]:
        """The objects that could not be read while the index was updated, with the reasons."""
        return {name: str(reason) for name, reason in self.internal.damaged.items()}

    # What is stored

    def refresh(self) -> None:
        """Read what was added to the store since it was opened. Other methods do so when it is needed."""
        self.internal.generations.sync()

    def load_identity(self) -> None:
        """Get the identity now, instead of when it is needed first. Raises IdentityError."""
        self.internal.keys.identity()

    def service(self, name: str) -> Service:
        """Return a service by its name. It need not have generations yet."""
        return Service(self, name)

    def services(self) -> list[str]:
        """Return the names of the services that have generations."""
        store = self.internal
        store.generations.sync()
        return store.generations.services()

    def generations(self, *, revision_prefix: str = "", at_once: bool = False) -> Iterator[Generation]:
        """Yield the generations of all services, newest first.

        revision_prefix: only generations of revisions that begin with this.
        at_once: read all generations first, which is faster if all are needed. Otherwise each is read when
            the caller asks for it.
        """
        from castore.services.hosts import listed

        store = self.internal
        store.generations.sync()
        shown = {}
        for service in store.generations.services():
            try:
                shown[service] = listed(store, service)
            except NotFoundError:
                continue  # this service has no generation of the chosen host
        for record in store.generations.all() if at_once else store.generations.by_time():
            if record.service not in shown or not shown[record.service](record):
                continue
            if not revision_prefix or revision_begins(record.revision, revision_prefix):
                yield Generation(self, record)
                self.check_open()

    def select(self, what: str) -> Selection:
        """Return what a name of the command line means: `SERVICE@SELECTOR`, with `:PART` or `:PART/PATH`.

        Raises NotFoundError, UsageError, DamageError.
        """
        from castore.api.selection import Selection
        from castore.services.selectors import select

        store = self.internal
        store.generations.sync()
        found = select(store, what)
        return Selection(self, found)

    # Space and damage

    @overload
    def prune(
        self,
        keep: Keep | None = ...,
        *,
        services: Iterable[str] = ...,
        dry_run: Literal[False] = False,
        max_unused: float = ...,
        grace_seconds: float = ...,
        unfinished_seconds: float = ...,
        progress: Watch | None = ...,
    ) -> PruneReport: ...

    @overload
    def prune(
        self,
        keep: Keep | None = ...,
        *,
        services: Iterable[str] = ...,
        dry_run: Literal[True],
        max_unused: float = ...,
        grace_seconds: float = ...,
        unfinished_seconds: float = ...,
        progress: Watch | None = ...,
    ) -> PrunePlan: ...

    def prune(
        self,
        keep: Keep | None = None,
        *,
        services: Iterable[str] = (),
        dry_run: bool = False,
        max_unused: float = MAX_UNUSED,
        grace_seconds: float = GRACE_SECONDS,
        unfinished_seconds: float = UNFINISHED_SECONDS,
        progress: Watch | None = None,
    ) -> PruneReport | PrunePlan:
        """Delete the generations that no rule keeps, and reclaim the space that only they needed.

        keep: the rules, or None for those of castore.toml. Services without rules keep all generations.
        services: names of services, or empty for all of which this host has generations.
        dry_run: change nothing, and return the plan, as `plan_prune` does.
        max_unused: rewrite a pack only if more than this share of it is unused.
        grace_seconds: time between marking a pack and deleting it, if the users of the store do not share a
            file lock. In that time another machine can commit a snapshot that uses the pack.
        unfinished_seconds: how long the packs of interrupted snapshots are kept.
        progress: called with the name and the counters of each task, or None.
        Raises NotFoundError for a service without generations; ConfigError, StorageError.
        """
        from castore.api.prune import PruneReport
        from castore.services import prune as pruning

        if dry_run:
            return self.plan_prune(
                keep, services=services, max_unused=max_unused, unfinished_seconds=unfinished_seconds
            )
        chosen, misconfigured = self._services_to_prune(keep, services)
        with interrupt_note(_AFTER_PRUNE):
            removed, busy, done = pruning.prune(
                self.internal,
                chosen,
                counters("pruning", progress),
                Limits(
                    max_unused=max_unused, grace_seconds=grace_seconds, unfinished_seconds=unfinished_seconds
                ),
            )
        return PruneReport(done, self._all(removed), [*misconfigured, *busy])

    def plan_prune(
        self,
        keep: Keep | None = None,
        *,
        services: Iterable[str] = (),
        max_unused: float = MAX_UNUSED,
        unfinished_seconds: float = UNFINISHED_SECONDS,
    ) -> PrunePlan:
        """Return what `prune` would do. The arguments and errors are those of `prune`."""
        from castore.api.prune import PrunePlan
        from castore.services import prune as pruning

        chosen, misconfigured = self._services_to_prune(keep, services)
        decisions, space = pruning.plan_prune(
            self.internal, chosen, Limits(max_unused=max_unused, unfinished_seconds=unfinished_seconds)
        )
        expired = [decision.generation for decision in decisions if not decision.rules]
        return PrunePlan(space, self._all(expired), [*misconfigured], decisions)

    def plan_forget(self, generations: Iterable[Generation]) -> PrunePlan:
        """Return what deleting these generations would delete, and what `compact` would then reclaim.

        Raises UsageError if one of them may not be deleted, NotIntactError after an interrupted rollback.
        """
        from castore.api.prune import PrunePlan
        from castore.maintenance.compact import plan
        from castore.services.prune import check_forget
        from castore.services.rollback.journal import refuse_interrupted

        chosen = list(generations)
        for service in dict.fromkeys(generation.service for generation in chosen):
            refuse_interrupted(self.internal, service)
            records = [generation.record for generation in chosen if generation.service == service]
            check_forget(self.internal, service, records)
        names = {(generation.service, generation.number) for generation in chosen}
        space = plan(self.internal, without=lambda record: (record.service, record.number) in names)
        return PrunePlan(space, chosen)

    def _services_to_prune(
        self, keep: Keep | None, services: Iterable[str]
    ) -> tuple[dict[str, ServiceSettings | None], list[ConfigError]]:
        """Return the settings of each service, and the errors of those configured incorrectly."""
        from castore.services.prune import services_to_prune

        store = self.internal
        store.generations.sync()
        described = self.settings.of if self.settings is not None else lambda _name: None
        return services_to_prune(store, list(services), described, keep)

    def compact(
        self,
        *,
        max_unused: float = MAX_UNUSED,
        grace_seconds: float = GRACE_SECONDS,
        unfinished_seconds: float = UNFINISHED_SECONDS,
        progress: Watch | None = None,
    ) -> PruneReport:
        """Reclaim the space that no generation references. The arguments are those of `prune`."""
        from castore.api.prune import PruneReport
        from castore.services.prune import compact_and_record

        with interrupt_note(_AFTER_COMPACT):
            done = compact_and_record(
                self.internal,
                counters("compacting", progress),
                Limits(
                    max_unused=max_unused, grace_seconds=grace_seconds, unfinished_seconds=unfinished_seconds
                ),
            )
        return PruneReport(done)

    def plan_compact(
        self, *, max_unused: float = MAX_UNUSED, unfinished_seconds: float = UNFINISHED_SECONDS
    ) -> PrunePlan:
        """Return what `compact` would do. The arguments and errors are those of `prune`."""
        from castore.api.prune import PrunePlan
        from castore.maintenance.compact import plan

        return PrunePlan(plan(self.internal, max_unused=max_unused, unfinished_seconds=unfinished_seconds))

    def verify(
        self,
        *,
        packs: bool = False,
        read_data: bool = False,
        sample: float | None = None,
        restart: bool = False,
        progress: Watch | None = None,
    ) -> Verification:
        """Verify that what the generations need exists and is what was stored.

        packs: compare the bytes of every pack with its name.
        read_data: decrypt and decode all content, which needs an identity.
        sample: read this share of the packs, such as 0.05. Packs that were not read for longest come first.
        restart: do not continue an interrupted run of the same depth.
        progress: as in `prune`.
        Raises StorageError, IdentityError, BusyError.
        """
        from castore.maintenance.verify import verify

        store = self.internal
        if read_data:
            store.keys.identity()
        with interrupt_note(_AFTER_VERIFY):
            return verify(
                store,
                counters("verifying", progress),
                packs=packs or sample is not None,
                read_data=read_data,
                sample=sample,
                restart=restart,
            )

    def plan_repair(self, *, progress: Watch | None = None) -> RepairPlan:
        """Verify all packs, and return what `repair` would do. The arguments are those of `repair`."""
        from castore.maintenance.repair import plan_repair

        counted = counters("checking", progress)
        with interrupt_note(_AFTER_VERIFY), plan_repair(self.internal, counted) as plan:
            return plan

    def repair(
        self, *, confirm: Callable[[RepairPlan], bool] | None = None, progress: Watch | None = None
    ) -> RepairReport:
        """Delete damaged objects, and salvage the intact records of damaged packs.

        confirm: called with the plan; nothing is changed if it returns False. None: carry out the plan.
        progress: as in `prune`.
        Raises BusyError, StorageError, DamageError.
        """
        from castore.api.repair import RepairReport
        from castore.maintenance.repair import plan_repair, repair

        counted = counters("checking", progress)
        with interrupt_note(_AFTER_REPAIR), plan_repair(self.internal, counted) as plan:
            wanted = not plan.is_empty and (confirm is None or confirm(plan))
            return RepairReport(plan, repair(self.internal, plan, counted) if wanted else None)

    def reindex(self, *, progress: Watch | None = None) -> int:
        """Delete the index of this machine and rebuild it from the store; return how many chunks it has.

        progress: as in `prune`.
        Raises StorageError, BusyError.
        """
        store = self.internal
        with interrupt_note(_AFTER_REINDEX):
            store.updater.rebuild(counters("reading packs", progress))
        return store.index.count("chunks")

    def events(self, service: str | None = None, *, limit: int | None = None) -> list[Event]:
        """Return what castore did on this machine, newest first.

        service: only events of this service, or None for all.
        limit: at most this number of events, or None for all that are kept.
        """
        return self.internal.state.event_log.read(service)[:limit]

    @property
    def keys(self) -> Keys:
        """The recipients, admins and writers of the store, and how to change them."""
        from castore.api.keys import Keys

        self.check_open()
        return Keys(self)

    def stats(self) -> Stats:
        """Count what the store holds, and how much each step of storing saved. Walks every generation."""
        from castore.maintenance.stats import stats

        return stats(self.internal)

    # For the layers above

    def operations(
        self, progress: Watch | None = None, say: Callable[[str], None] | None = None
    ) -> ServiceOperations:
        """Return the operations on services with the settings of this store.

        say: called with messages for the user, or None for the `report` of `open`.
        """
        from castore.services.operations import ServiceOperations

        made = ServiceOperations(self.internal, self.settings, leave_out=self.excluded_paths)
        made.say = say if say is not None else self.say
        if progress is not None:
            made.progress = progress
        return made

    def say(self, text: str) -> None:
        """Pass a message to the `report` of `open`."""
        pass_message(self._report, text)

    def collect_messages(self, progress: Watch | None) -> tuple[ServiceOperations, list[str]]:
        """Return the operations on services, and a list that receives their messages as they arise."""
        said: list[str] = []

        def say(text: str) -> None:
            said.append(text)
            self.say(text)

        return self.operations(progress, say), said

    def _all(self, records: Iterable[Record]) -> list[Generation]:
        return [Generation(self, record) for record in records]
