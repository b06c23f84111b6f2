"""Run a deployment between a snapshot and a health check, and revert both if it fails."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import msgspec

from castore.errors import (
    CastoreError,
    IdentityError,
    ProgramError,
    RevertInterruptedError,
    UsageError,
)
from castore.model.names import short_revision
from castore.process.runners import run
from castore.process.signal_shield import DeferInterrupts
from castore.services.details import read_details
from castore.services.events import event
from castore.services.hooks import check_health
from castore.services.revision import current
from castore.services.rollback.journal import refuse_interrupted
from castore.services.sources import EngineSource, present_parts, sources_of
from castore.services.state_revision import state_revision

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.model.generation import Generation
    from castore.services.operations import ServiceOperations


class Guarded(msgspec.Struct):
    """The result of a guarded deployment."""

    taken: dict[str, Generation] = {}
    """The generation that was taken before the deployment, by service."""
    failure: str = ""
    """Why the deployment was reverted; empty: it was not."""
    known: dict[str, Generation] = {}
    """The newest generation of the configured revision, of each service that had this revision before."""
    restored: dict[str, str] = {}
    """The revision that the state belonged to before it was restored, of each such service."""
    outcome: dict[str, str] = {}
    """What was restored, which revision is live, and what is left to do, by service."""
    unreverted: set[str] = msgspec.field(default_factory=set)
    """The services whose state a failed deployment left, and which could not be reverted."""


Wanted = Callable[[str, "Generation"], bool]


def guard(
    work: ServiceOperations,
    services: Sequence[str],
    command: Sequence[str],
    wanted: Wanted = lambda _service, _generation: False,
) -> Guarded:
    """Run a deployment between a snapshot and a health check of services; revert both if either fails.

    If the deployment returned to a revision that was configured before, `guard` can restore the state of that
    revision before the health check: the earlier programs then do not run on the later state. wanted: return
    whether to restore the newest generation of such a revision.

    Raises CastoreError if the snapshot fails, and the command is not run; or if the state could not be
    reverted. Raises BusyError if another guard works on one of the services: it could revert both.
    """
    services = list(dict.fromkeys(services))
    if not services or not command:
        raise UsageError("name a service and a command: castore guard SERVICE... -- COMMAND")
    for service in services:
        work.of(service)
    with ExitStack() as stack:
        for service in services:
            stack.enter_context(work.store.state.guard_lock(service))
        return _guard(work, services, command, wanted)


def _guard(
    work: ServiceOperations, services: Sequence[str], command: Sequence[str], wanted: Wanted
) -> Guarded:
    done = Guarded()
    for service in services:
        _refuse_unready(work, service)
    with _named_identity():
        work.store.keys.check_identity()
    for service in services:
        done.taken[service] = work.take(service)
        work.note(f"kept {service}@{done.taken[service].number}")
        with _named_identity():
            read_details(work.store, done.taken[service])
    try:
        with work.progress_paused():
            run(command, grace=None)
        revisions = {service: _configured_now(work, service) for service in services}
        _restore_known(work, revisions, done, wanted)
        for service in services:
            check_health(work.of(service))
    except RevertInterruptedError as error:
        done.failure = str(error)
        raise RevertInterruptedError(_stopped(work, done, _undos(work, services), services)) from None
    except (CastoreError, KeyboardInterrupt) as error:
        done.failure = (str(error) or "interrupted") + _hint(done)
        _revert(work, services, done)
        return done
    for service, now in revisions.items():
        if isinstance(now, CastoreError):
            raise CastoreError(f"deployed, but the revision of {service!r} is not known: {now}") from now
        _note_deployment(work, service, now, done)
    return done


def _refuse_unready(work: ServiceOperations, service: str) -> None:
    """Raise CastoreError if the engines are not ready to revert a deployment that fails."""
    for name, source in present_parts(sources_of(work.of(service))).items():
        if isinstance(source, EngineSource) and source.engine.exists():
            try:
                source.engine.preflight()
            except CastoreError as error:
                raise type(error)(f"nothing was deployed: {service}:{name}: {error}") from error


@contextlib.contextmanager
def _named_identity() -> Iterator[None]:
    """Add to an IdentityError that nothing was deployed, and how to give guard an identity."""
    try:
        yield
    except IdentityError as error:
        raise IdentityError(
            f"nothing was deployed, because to revert a failed deployment guard needs an identity: {error} "
            "(CASTORE_IDENTITY=FILE castore guard ..., or castore guard --identity FILE ...)"
        ) from error


def _configured_now(work: ServiceOperations, service: str) -> str | CastoreError | None:
    """Return the configured revision, the error of its source, or None if castore.toml names no source."""
    try:
        settings = work.of(service)
        return current(settings.revision, settings.timeout)
    except CastoreError as error:
        return error


def _restore_known(
    work: ServiceOperations, revisions: dict[str, str | CastoreError | None], done: Guarded, wanted: Wanted
) -> None:
    """Restore the state of each service that returned to an earlier revision, if `wanted` says so."""
    for service, now in revisions.items():
        if not isinstance(now, str):
            continue
        state = state_revision(work.store, service, now)
        newest = work.newest_of(service, now) if state.left_behind else None
        if newest is None:
            continue
        done.known[service] = newest
        if wanted(service, newest):
            # Services may depend on each other: health is checked after all of them are restored.
            work.roll_back_configured(newest, check_health=False)
            done.restored[service] = state.revision


def _hint(done: Guarded) -> str:
    """Return a hint for each service whose earlier programs ran on the later state in the health check."""
    return "".join(
        f"; revision {short_revision(one.revision)} was configured before, and the state of {service!r} was "
        "not restored before the health check: castore guard --restore does that"
        for service, one in done.known.items()
        if service not in done.restored
    )


def _note_deployment(work: ServiceOperations, service: str, now: str | None, done: Guarded) -> None:
    """Record a successful deployment as an event; note what is live and what is left to do."""
    before = done.taken[service]
    earlier = short_revision(before.revision) or "no revision"
    with event(work.store, "guard", service) as note:
        note.number, note.revision = before.number, now or ""
        note.text = f"deployed; before it: {earlier}"
    if now is not None and service not in done.known:
        state = state_revision(work.store, service, now)
        if state.revision != state.noted:
            work.store.state.set_live_revision(service, state.revision)
    healthy = "healthy" if work.of(service).health else "castore.toml names no health check"
    live = f"deployed, {healthy}; revision {short_revision(now or '') or 'unknown'} is live"
    if service in done.restored:
        known = done.known[service]
        text = f"{live}, its state restored from generation {known.number}; to undo that: "
        done.outcome[service] = text + f"castore rollback --undo {service}"
    elif service in done.known:
        text = f"{live}, but the state still belongs to revision {earlier}; left to do: "
        done.outcome[service] = text + f"castore follow {service}, or castore rollback {service}"
    else:
        text = f"{live}; before it: generation {before.number} of {earlier}; to restore that state: "
        done.outcome[service] = text + f"castore rollback {service} --to {before.number}"


def _undos(work: ServiceOperations, services: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the `undo` programs of services, each once."""
    return list(dict.fromkeys(work.of(service).undo for service in services if work.of(service).undo))


def _revert(work: ServiceOperations, services: Sequence[str], done: Guarded) -> None:
    """Revert the deployment, then the state of all services."""
    failed = []
    work.say(f"failed: {done.failure}")
    undos = _undos(work, services)
    remaining = list(services)

    def defer() -> None:
        work.say("the deployment is being reverted, which goes on; interrupt it again to stop that")

    try:
        with DeferInterrupts(defer):
            while undos:
                try:
                    run(undos[0])
                except CastoreError as error:
                    failed.append(str(error))
                undos.pop(0)
            while remaining:
                service = remaining[0]
                try:
                    with event(work.store, "guard", service) as note:
                        note.of(done.taken[service])
                        note.text = f"reverted: {done.failure}"
                        _restore_taken(work, service, done.taken[service])
                except RevertInterruptedError:
                    raise
                except CastoreError as error:
                    _note_unreverted(work, service, done)
                    failed.append(f"{service}: {error}; {_way_back(work, done.taken[service])}")
                remaining.pop(0)
            # Services may depend on each other: health is checked after the state of all is restored.
            unhealthy = (_unhealthy(work, service, done) for service in services)
            failed += filter(None, unhealthy)
    except (KeyboardInterrupt, RevertInterruptedError):
        raise RevertInterruptedError(_stopped(work, done, undos, remaining)) from None
    if failed:
        raise CastoreError(f"{done.failure}; and not everything could be reverted: {'; '.join(failed)}")
    done.outcome = {service: _reverted(work, service, done.taken[service]) for service in services}


def _reverted(work: ServiceOperations, service: str, generation: Generation) -> str:
    """Return which state and revision are live after a deployment was reverted, and what is left to do."""
    text = f"the state of generation {generation.number}"
    if generation.revision:
        text += f" (revision {short_revision(generation.revision)})"
    text += " is restored"
    undo = work.of(service).undo
    text += "; `undo` was run" if undo else "; castore.toml names no `undo`"
    now = _configured_now(work, service)
    if not isinstance(now, str):
        return text if undo else f"{text}: revert the configuration, if the deployment changed it"
    live = f"{text}; revision {short_revision(now)} is live"
    if now == generation.revision or not generation.revision:
        return f"{live}; nothing is left to do"
    return f"{live}, but the state belongs to another revision; left to do: revert the configuration"


def _stopped(
    work: ServiceOperations, done: Guarded, undos: Sequence[tuple[str, ...]], left: Sequence[str]
) -> str:
    """Return what was not reverted when reverting was interrupted; record it as events, too."""
    remaining = [f"{shlex.join(undo)} was interrupted, or was not run" for undo in undos]
    for service in left:
        generation = done.taken[service]
        begun = work.store.state.has_rollback_journal(service)
        state = "may be inconsistent" if begun else "is that of the deployment"
        with contextlib.suppress(CastoreError):
            _note_unreverted(work, service, done)
        remaining.append(f"the state of {service!r} {state}: {_way_back(work, generation)}")
        with contextlib.suppress(RevertInterruptedError), event(work.store, "guard", service) as note:
            note.of(generation)
            raise RevertInterruptedError(f"reverting the deployment was interrupted: {remaining[-1]}")
    left_over = "; ".join(remaining) or "all steps were done"
    return f"{done.failure}; and reverting the deployment was interrupted: {left_over}"


def _way_back(work: ServiceOperations, generation: Generation) -> str:
    """Return the commands that restore the generation that was taken before a deployment."""
    first = ""
    if work.store.state.has_rollback_journal(generation.service):
        first = f"castore recover {generation.service}, then "
    return f"to go back: {first}castore rollback {generation.service} --to {generation.number}"


def _note_unreverted(work: ServiceOperations, service: str, done: Guarded) -> None:
    """Record that the state of a service is that of the failed deployment, not of a configured revision.

    Otherwise later generations of it would be filed under the revision from before the deployment, and a
    rollback to that revision would select them.
    """
    done.unreverted.add(service)
    generation = done.taken[service]
    noted = work.store.state.live_revision(service)
    # Another one was noted by a restore: of the revision that the deployment returned to.
    if generation.revision and noted == generation.revision:
        work.store.state.set_live_revision(service, f"failed-deployment-after-{generation.number}")


def _unhealthy(work: ServiceOperations, service: str, done: Guarded) -> str:
    """Check the health of a service after a revert; return what is wrong, or an empty text."""
    if work.store.state.has_rollback_journal(service):
        return ""
    try:
        check_health(work.of(service))
    except CastoreError as error:
        number = done.taken[service].number
        if service in done.unreverted:
            return f"{service}: the state of generation {number} is not restored, and {error}"
        return f"{service}: the state of generation {number} is restored, but {error}"
    return ""


def _restore_taken(work: ServiceOperations, service: str, generation: Generation) -> None:
    """Restore the generation that was taken before the deployment."""
    try:
        work.roll_back_configured(generation, check_health=False)
    except ProgramError as error:
        # A database that the deployment broke may fail to dump. The state before the deployment is stored.
        refuse_interrupted(work.store, service)
        work.say(f"{service}: {error}; trying without a pre-rollback generation")
        work.roll_back_configured(generation, take_pre_rollback=False, check_health=False)
