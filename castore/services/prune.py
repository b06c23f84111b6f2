"""Delete generations, by retention rules or by name, and reclaim the space that only they needed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from castore.errors import (
    BusyError,
    CastoreError,
    ConfigError,
    NotFoundError,
    NotIntactError,
    UsageError,
)
from castore.maintenance.compact import Compacted, compact, plan
from castore.maintenance.compaction_plan import Plan
from castore.maintenance.trim import trim_base_cache
from castore.model.counting import count as counted
from castore.services.config import Service
from castore.services.events import event
from castore.services.hosts import removable
from castore.services.retention import apply_policy
from castore.services.rollback.journal import refuse_interrupted
from castore.services.selector_rules import unknown_service

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

    from castore.maintenance.limits import Limits
    from castore.model.generation import Generation
    from castore.progress import Progress
    from castore.services.config import Keep
    from castore.services.retention import RetentionDecision
    from castore.store import Store


def judged(store: Store, service: str, settings: Service | None, now: int) -> list[RetentionDecision]:
    """Apply the retention rules of a service to each generation of the chosen host, newest first.

    now: ns since 1970. Raises StorageError, and NotFoundError if the chosen host has no generation.
    """
    wanted = removable(store, service)
    live = store.state.live_revision(service)
    return apply_policy(
        filter(wanted, store.generations.all(service)),
        settings.keep if settings is not None else None,
        now,
        live=[live] if live else [],
        pinned=frozenset(store.generations.pins(service)),
        key=store.hosts.name_of,
    )


def services_to_prune(
    store: Store, named: Sequence[str], described: Callable[[str], Service | None], keep: Keep | None
) -> tuple[dict[str, Service | None], list[ConfigError]]:
    """Return the settings of the services to prune, and why others are left out.

    named: the services; empty: all of which the chosen host has generations. described: returns the settings
    of a service in castore.toml. keep: the rules of every service, instead of those of castore.toml. Raises
    NotFoundError for a named service that has no generations, ConfigError if its description has mistakes.
    """
    known = store.generations.services()
    if unknown := [service for service in named if service not in known]:
        raise unknown_service(store, unknown[0])
    chosen: dict[str, Service | None] = {}
    left_out: list[ConfigError] = []
    for service in named or known:
        if not named and not _has_removable(store, service):
            continue
        try:
            chosen[service] = Service(keep=keep) if keep is not None else described(service)
        except ConfigError as error:
            if named:
                raise
            left_out.append(ConfigError(f"{service}: nothing was deleted: {error}"))
    return chosen, left_out


def _has_removable(store: Store, service: str) -> bool:
    """Return whether the chosen host has generations to prune; if not, report why."""
    try:
        removable(store, service)
    except NotFoundError as error:
        store.options.say(f"{service} is left out: {error}")
        return False
    return True


def plan_prune(
    store: Store, services: Mapping[str, Service | None], limits: Limits
) -> tuple[list[RetentionDecision], Plan]:
    """Return what `prune` would decide and reclaim. The arguments are those of `prune`."""
    now = time.time_ns()
    decided = [
        decision
        for service, settings in services.items()
        for decision in judged(store, service, settings, now)
    ]
    expired = {
        (decision.generation.service, decision.generation.number)
        for decision in decided
        if not decision.rules
    }
    planned = plan(
        store,
        max_unused=limits.max_unused,
        unfinished_seconds=limits.unfinished_seconds,
        without=lambda one: (one.service, one.number) in expired,
    )
    return decided, planned


def prune(
    store: Store,
    services: Mapping[str, Service | None],
    progress: Progress,
    limits: Limits,
) -> tuple[list[Generation], list[CastoreError], Compacted]:
    """Delete the generations that no rule keeps, and reclaim their space.

    services: the settings of each service, by name. Returns the
    deleted generations, the errors of services that were left out (another castore works on them, or a
    rollback is unfinished), and the result of compaction. Raises what `compact` raises; the generations are
    deleted then.
    """
    removed: list[Generation] = []
    left_out: list[CastoreError] = []
    for service, settings in services.items():
        try:
            with store.state.lock(service):
                refuse_interrupted(store, service)
                verdicts = judged(store, service, settings, time.time_ns())
                expired = [verdict.generation for verdict in verdicts if not verdict.rules]
                _forget(store, service, expired)
        except (BusyError, NotIntactError) as error:
            left_out.append(error)
            continue
        removed += expired
    if not store.keys.writer_key.may_maintain:
        store.options.say(
            "this machine may not compact the store: another machine has to reclaim the space; 'castore key "
            "adopt --maintain' gives this machine the role"
        )
        return removed, left_out, Compacted(Plan())
    return removed, left_out, compact_and_record(store, progress, limits)


def compact_and_record(store: Store, progress: Progress, limits: Limits) -> Compacted:
    """Compact the store, and record that as an event. Errors are those of `compact`."""
    with event(store, "compact", "") as note:
        done = compact(
            store,
            progress,
            max_unused=limits.max_unused,
            grace_seconds=limits.grace_seconds,
            unfinished_seconds=limits.unfinished_seconds,
        )
        trim_base_cache(store)
        note.text = (
            f"{counted(done.removed, 'pack')}, {counted(done.removed_bytes, 'byte')} removed; "
            f"{counted(done.written_bytes, 'byte')} rewritten"
        )
    return done


def forget(store: Store, service: str, generations: Collection[Generation]) -> None:
    """Delete generations of a service for good, from the base cache, too. The caller holds its lock.

    Raises UsageError if one of them is pinned, and deletes none then. Raises StorageError.
    """
    _forget(store, service, generations)
    trim_base_cache(store)


def check_forget(store: Store, service: str, generations: Collection[Generation]) -> None:
    """Raise UsageError if generations of a service may not be deleted: one is pinned, or of another host."""
    if not all(map(store.hosts.is_of_this_host, generations)):
        store.keys.check_may_maintain("remove generations of other hosts from")
    pinned = store.generations.pins(service)
    for number in sorted({generation.number for generation in generations} & pinned.keys()):
        raise UsageError(
            f"{service}@{number} is pinned{_in_parentheses(pinned[number])}: first castore unpin "
            f"{service}@{number}"
        )


def _forget(store: Store, service: str, generations: Collection[Generation]) -> None:
    if not generations:
        return
    check_forget(store, service, generations)
    with event(store, "forget", service) as note:
        numbers = [generation.number for generation in generations]
        note.number = numbers[0] if len(numbers) == 1 else None
        note.text = f"generation{'s' if len(numbers) > 1 else ''} {spans(numbers)}"
        store.generations.forget(service, numbers)


def _in_parentheses(note: str) -> str:
    """Return a pin's note in parentheses; empty if it has none."""
    return f" ({note})" if note else ""


def spans(numbers: Iterable[int]) -> str:
    """Return numbers as ranges: `1-4, 7`."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
