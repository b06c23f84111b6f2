"""castore pin, unpin, forget, prune, compact."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import Count, Percent, Seconds, agreed, common, host_option, json_option, print_json
from castore.cli.quiet import is_quiet, summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.cli.context import CliContext
    from castore.maintenance.compact import Compacted, Limits, Plan
    from castore.model.generation import Generation
    from castore.services.config import Keep, Service
    from castore.services.retention import RetentionDecision
    from castore.store import Store

_DAY = 86400.0


def _compacting(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --max-unused, --grace, --unfinished and --dry-run."""
    for option in (
        click.option(
            "--unfinished",
            is_flag=True,
            help="Also delete what unfinished snapshots stored; no snapshot may be running.",
        ),
        click.option(
            "--grace",
            type=Seconds(),
            default=_DAY,
            show_default=True,
            metavar="SECONDS",
            help="If not all users of the store see one lock: seconds between marking and deleting a pack.",
        ),
        click.option(
            "--max-unused",
            type=Percent(zero=True),
            default="10%",
            show_default=True,
            metavar="PERCENT",
            help="Rewrite a pack only if more than PERCENT of it is unused.",
        ),
        click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing."),
    ):
        command = option(command)
    return command


_KEPT = {
    "last": "Keep the newest N.",
    "hourly": "Keep the newest of each of the last N hours that have one.",
    "daily": "Keep the newest of each of the last N days that have one.",
    "weekly": "Keep the newest of each of the last N weeks that have one.",
    "monthly": "Keep the newest of each of the last N months that have one.",
    "yearly": "Keep the newest of each of the last N years that have one.",
    "per-revision": "Keep the newest N of each revision; 1 unless said.",
}


def _keeping(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --keep-last and so on; `keep` is what they say together, None where none is given."""

    @functools.wraps(command)
    def with_rules(*, keep_within: str | None, **others: Any) -> Any:
        rules = {name: others.pop(f"keep_{name.replace('-', '_')}") for name in _KEPT}
        given = {name.replace("-", "_"): count for name, count in rules.items() if count is not None}
        return command(keep=_rules_given(given, keep_within), **others)

    wrapped: Callable[..., Any] = click.option(
        "--keep-within", metavar="SPAN", help="Keep all that are not older than this: 36h, 14d, 8w, 6m, 1y."
    )(with_rules)
    for name, meaning in reversed(_KEPT.items()):
        wrapped = click.option(f"--keep-{name}", type=Count(0), metavar="N", help=meaning)(wrapped)
    return wrapped


def _rules_given(rules: dict[str, int], within: str | None) -> Keep | None:
    from castore.errors import UsageError
    from castore.services.config import Keep, parse_span

    if not rules and within is None:
        return None
    if within is not None and parse_span(within) is None:
        raise UsageError(f'--keep-within: a span like "36h" or "14d" was expected, not {within!r}')
    if not any(rules.values()) and within is None:
        raise UsageError(
            "no --keep rule keeps anything; to delete all generations: castore forget --all SERVICE"
        )
    return Keep(within=within, **rules)


def _rules_of(
    context: CliContext, services: Sequence[str], known: Sequence[str], keep: Keep | None
) -> tuple[dict[str, Service | None], list[str]]:
    """Return the settings of the services to prune, and why some of them were left out.

    keep: the rules of every service, instead of castore.toml's. Raises ConfigError where a service was
    named whose description has mistakes.
    """
    from castore.errors import ConfigError
    from castore.services.config import Service

    if keep is not None:
        return {service: Service(keep=keep) for service in services or known}, []
    chosen: dict[str, Service | None] = {}
    refused = []
    for service in services or known:
        try:
            chosen[service] = context.service_settings(service)
        except ConfigError as error:
            if services:
                raise
            refused.append(f"{service}: nothing was deleted: {error}")
    return chosen, refused


@click.command(epilog="Example: castore pin drupal@12 --note 'before the move to PHP 9'")
@click.argument("what", metavar="SERVICE@SELECTOR")
@click.option("--note", default="", metavar="TEXT", help="Why; 'castore prune --dry-run' shows it.")
@json_option
@common
@host_option
def pin(context: CliContext, what: str, note: str, as_json: bool) -> None:
    """Keep a generation whatever the rules say, until it is unpinned."""
    from castore.services.selectors import find

    service, _, selector = what.partition("@")
    with context.open_store() as store:
        store.sync_generations()
        number = find(store, service, selector or "latest").number
        fresh = store.pin(service, number, note)
    if as_json:
        print_json({"service": service, "number": number, "pinned": True, "changed": bool(fresh)})
    else:
        summarize(f"{service}@{number} is {'' if fresh else 'already '}pinned")


@click.command(epilog="Example: castore unpin drupal@12")
@click.argument("what", metavar="SERVICE@SELECTOR")
@json_option
@common
@host_option
def unpin(context: CliContext, what: str, as_json: bool) -> None:
    """Let the rules decide about a generation again."""
    from castore.errors import NotFoundError
    from castore.services.selectors import find

    service, _, selector = what.partition("@")
    with context.open_store() as store:
        store.sync_generations()
        number = find(store, service, selector or "latest").number
        if not store.unpin(service, number):
            pinned = ", ".join(map(str, sorted(store.pins(service)))) or "none"
            raise NotFoundError(f"{service}@{number} is not pinned; pinned of {service!r}: {pinned}")
    if as_json:
        print_json({"service": service, "number": number, "pinned": False, "changed": True})
    else:
        summarize(f"{service}@{number} is no longer pinned")


@click.command(epilog="Example: castore forget drupal@7 drupal@20-29")
@click.argument("what", metavar="SERVICE@SELECTOR...", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Forget all generations of SERVICE.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@common
@host_option
def forget(context: CliContext, what: tuple[str, ...], everything: bool, yes: bool, as_json: bool) -> None:
    """Remove generations for good. 'castore compact' reclaims the space that only they needed.

    SERVICE@3-7 names the generations with the numbers 3 to 7.
    """
    from castore.errors import UsageError
    from castore.services.prune import forget as remove
    from castore.services.prune import spans
    from castore.services.rollback.journal import refuse_interrupted

    with context.open_store() as store:
        store.sync_generations()
        chosen: dict[str, dict[int, Any]] = {}
        for one in what:
            service, _, selector = one.partition("@")
            if everything and selector:
                raise UsageError(f"--all is of a service: {service}, not {one}")
            if not everything and not selector:
                raise UsageError(f"which generation of {one!r}? Say {one}@NUMBER, or --all")
            for generation in _to_forget(store, service, selector):
                chosen.setdefault(service, {})[generation.number] = generation
        names = "; ".join(f"{service}@{spans(numbers)}" for service, numbers in chosen.items())
        if not (yes or agreed(f"Remove {names} for good?")):
            print_json({"forgotten": []}) if as_json else summarize("nothing was removed")
            return
        for service, generations in chosen.items():
            with store.lock(service):
                refuse_interrupted(store, service)
                remove(store, service, list(generations.values()))
    if as_json:
        numbers = [(service, number) for service, found in chosen.items() for number in found]
        print_json({"forgotten": [{"service": service, "number": number} for service, number in numbers]})
    else:
        summarize(f"forgotten: {names}")


def _to_forget(store: Store, service: str, selector: str) -> list[Generation]:
    """Return what to forget of a service; selector: empty for all of the chosen host.

    Only a number selects a generation of a host that was not named. Raises NotFoundError, UsageError.
    """
    from castore.errors import NotFoundError, UsageError
    from castore.services.hosts import removable
    from castore.services.selectors import find_range, unknown_service

    if not selector:
        if service not in store.services():
            raise unknown_service(store, service)
        found = list(filter(removable(store, service), store.generations(service)))
        if not found:
            raise NotFoundError(f"this host has no generation of {service!r} (another host's: --host NAME)")
        return found
    found = find_range(store, service, selector)
    for one in found:
        if store.chosen_host is None and not store.is_own(one) and selector.lstrip("#") != str(one.number):
            raise UsageError(
                f"{service}@{selector} is a generation of host {one.host}: forget {service}@{one.number}, or "
                f"choose the host with --host {one.host}"
            )
    return found


@click.command(epilog="Example: castore prune --dry-run drupal")
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@_keeping
@_compacting
@json_option
@common
@host_option
def prune(
    context: CliContext,
    services: tuple[str, ...],
    keep: Keep | None,
    dry_run: bool,
    max_unused: float,
    grace: float,
    unfinished: bool,
    as_json: bool,
) -> None:
    """Delete generations that no retention rule keeps, and reclaim their space.

    The rules are those of castore.toml, or for this run those of --keep-*, for every SERVICE. Services
    without rules keep all. Needs no identity; interrupted anywhere, the next run goes on.
    """
    import time

    from castore.cli.progress import watching
    from castore.errors import ConfigError
    from castore.maintenance.compact import plan
    from castore.progress import Progress
    from castore.services.prune import judged
    from castore.services.prune import prune as remove
    from castore.services.selectors import unknown_service

    with context.open_store() as store:
        store.sync_generations()
        known = store.services()
        if unknown := [service for service in services if service not in known]:
            raise unknown_service(store, unknown[0])
        chosen, refused = _rules_of(context, services, known, keep)
        if not services:
            chosen = {service: one for service, one in chosen.items() if _is_clear(store, service)}
        if dry_run:
            verdicts = [
                verdict
                for service, settings in chosen.items()
                for verdict in judged(store, service, settings, time.time_ns())
            ]
            gone = {(v.generation.service, v.generation.number) for v in verdicts if not v.rules}
            planned = plan(
                store,
                **_limits(max_unused, unfinished=unfinished),
                without=lambda one: (one.service, one.number) in gone,
            )
            _print_plan(store, verdicts, planned, as_json=as_json)
            if refused:
                raise ConfigError("; ".join(refused))
            return
        tally = Progress()
        with watching() as progress:
            progress("pruning", tally)
            gone_now, left_out, done = remove(
                store, chosen, tally, grace=grace, **_limits(max_unused, unfinished=unfinished)
            )
    busy = [str(error) for error in left_out]
    if as_json:
        forgotten = [{"service": one.service, "number": one.number} for one in gone_now]
        print_json({"forgotten": forgotten, "busy": busy, **_as_json(done)})
    else:
        _print_forgotten([(one.service, one.number) for one in gone_now])
        _print_done(done)
    _refuse_damaged(done)
    if refused:
        raise ConfigError("; ".join([*refused, *busy]))
    if left_out:
        worst = max(left_out, key=lambda error: error.exit_code)
        raise type(worst)("; ".join(busy))


def _is_clear(store: Store, service: str) -> bool:
    """Whether the chosen host has generations to prune; print why not."""
    from castore.errors import NotFoundError
    from castore.services.hosts import removable

    try:
        removable(store, service)
    except NotFoundError as error:
        store.say(f"{service} is left alone: {error}")
        return False
    return True


@click.command(epilog="Example: castore compact --dry-run")
@_compacting
@json_option
@common
def compact(
    context: CliContext, dry_run: bool, max_unused: float, grace: float, unfinished: bool, as_json: bool
) -> None:
    """Reclaim the space that no generation references: of forgotten generations, and of failed snapshots."""
    from castore.cli.progress import watching
    from castore.maintenance.compact import plan
    from castore.progress import Progress
    from castore.services.prune import compact_and_record

    limits = _limits(max_unused, unfinished=unfinished)
    with context.open_store() as store:
        if dry_run:
            _print_plan(store, [], plan(store, **limits), as_json=as_json)
            return
        tally = Progress()
        with watching() as progress:
            progress("compacting", tally)
            done = compact_and_record(store, tally, grace=grace, **limits)
    if as_json:
        print_json(_as_json(done))
    else:
        _print_done(done)
    _refuse_damaged(done)


def _limits(max_unused: float, *, unfinished: bool) -> Limits:
    from castore.maintenance.compact import UNFINISHED_SECONDS

    return {"max_unused": max_unused, "unfinished": 0 if unfinished else UNFINISHED_SECONDS}


def _print_plan(store: Store, verdicts: list[RetentionDecision], planned: Plan, *, as_json: bool) -> None:
    from castore.model.names import short_revision

    generations = [
        {
            "service": found.generation.service,
            "number": found.generation.number,
            **times("time", found.generation.time),
            "revision": found.generation.revision,
            "kept_by": list(found.rules),
        }
        for found in verdicts
    ]
    if as_json:
        print_json({"generations": generations, "space": _plan_json(planned)})
        return
    if verdicts:
        notes = {service: store.pins(service) for service in {str(row["service"]) for row in generations}}
        cells = []
        for found in verdicts:
            one = found.generation
            why = ", ".join(found.rules) or "nothing: it would go"
            note = notes[one.service].get(one.number, "")
            cells.append([
                *(one.service, str(one.number), formatting.local_time(one.time)),
                short_revision(one.revision) or "-",
                why + (f" ({formatting.one_line(note)})" if note else ""),
            ])
        header = ["service", "number", "time", "revision", "kept by"]
        print(formatting.table(cells, header=header, right={1}))
    print(
        f"would free {formatting.size(planned.freed)} of {formatting.size(planned.stored)}: "
        f"{_packs(len(planned.dead))} to remove, {len(planned.rewrites)} to write anew "
        f"({formatting.size(planned.written)})"
    )
    _print_kept(planned)


def _print_forgotten(gone: list[tuple[str, int]]) -> None:
    from castore.services.prune import spans

    for service in dict.fromkeys(service for service, _ in gone):
        numbers = [number for one, number in gone if one == service]
        summarize(f"forgotten: {service}@{spans(numbers)}")


def _print_done(done: Compacted) -> None:
    freed = done.removed_bytes - done.written_bytes
    summarize(
        f"freed {formatting.size(max(freed, 0))}: {_packs(done.removed)} removed, "
        f"{formatting.size(done.written_bytes)} rewritten"
    )
    if done.condemned:
        summarize(f"{_packs(done.condemned)} set aside: a later run removes those that are still not needed")
    if not is_quiet():
        _print_kept(done.plan)


def _print_kept(planned: Plan) -> None:
    if planned.unfinished:
        print(
            f"{_packs(len(planned.unfinished))} ({formatting.size(sum(planned.unfinished.values()))}) kept "
            "for a week: snapshots that have not ended stored to them; if none is under way, --unfinished "
            "removes them now"
        )
    if planned.lost:
        lost = formatting.count(planned.lost, "node")
        print(f"in no pack: {lost} that generations refer to; see 'castore verify'")


def _packs(count: int) -> str:
    return formatting.count(count, "pack")


def _plan_json(planned: Plan) -> dict[str, Any]:
    return {
        "stored": planned.stored,
        "packs": planned.packs,
        "dead": len(planned.dead),
        "rewrites": len(planned.rewrites),
        "written": planned.written,
        "freed": planned.freed,
        "unfinished": sum(planned.unfinished.values()),
        "lost": planned.lost,
    }


def _as_json(done: Compacted) -> dict[str, Any]:
    return {
        "removed": done.removed,
        "removed_bytes": done.removed_bytes,
        "written_bytes": done.written_bytes,
        "condemned": done.condemned,
        "sessions": done.sessions,
        "damaged": done.damaged,
        "plan": _plan_json(done.plan),
    }


def _refuse_damaged(done: Compacted) -> None:
    from castore.errors import DamageError

    if done.damaged:
        raise DamageError("; ".join(done.damaged) + ": left as they are; 'castore repair' mends that")
