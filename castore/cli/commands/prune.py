"""castore prune."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import click

from castore.cli.compaction import (
    compaction_options,
    limits_of,
    plain_compaction,
    print_done,
    print_plan,
    refuse_damaged,
)
from castore.cli.options import Count, common, host_option, json_option, print_json
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.cli.context import CliContext
    from castore.services.config import Keep, Service
    from castore.store import Store


_KEPT = {
    "last": "Keep the newest N.",
    "hourly": "Keep the newest of each of the last N hours that have one.",
    "daily": "Keep the newest of each of the last N days that have one.",
    "weekly": "Keep the newest of each of the last N weeks that have one.",
    "monthly": "Keep the newest of each of the last N months that have one.",
    "yearly": "Keep the newest of each of the last N years that have one.",
    "per-revision": "Keep the newest N of each revision. Default: 1.",
}


def _keeping(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the --keep-* options; the argument `keep` has the rules that they give, None if none is given."""

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
    """Return the settings of the services to prune, and why others are left out.

    keep: the rules of every service, instead of those of castore.toml. Raises ConfigError if the description
    of a service that the user named has mistakes.
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


@click.command(epilog="Example: castore prune --dry-run drupal")
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@_keeping
@compaction_options
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

    The rules are those of castore.toml, or, if --keep-* options are given, theirs for every SERVICE. Services
    without rules keep all generations. Needs no identity. The next run continues an interrupted one.
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
                **limits_of(max_unused, unfinished=unfinished),
                without=lambda one: (one.service, one.number) in gone,
            )
            print_plan(store, verdicts, planned, as_json=as_json)
            if refused:
                raise ConfigError("; ".join(refused))
            return
        tally = Progress()
        with watching() as progress:
            progress("pruning", tally)
            gone_now, left_out, done = remove(
                store, chosen, tally, grace=grace, **limits_of(max_unused, unfinished=unfinished)
            )
    busy = [str(error) for error in left_out]
    if as_json:
        forgotten = [{"service": one.service, "number": one.number} for one in gone_now]
        print_json({"forgotten": forgotten, "busy": busy, **plain_compaction(done)})
    else:
        _print_forgotten([(one.service, one.number) for one in gone_now])
        print_done(done)
    refuse_damaged(done)
    if refused:
        raise ConfigError("; ".join([*refused, *busy]))
    if left_out:
        worst = max(left_out, key=lambda error: error.exit_code)
        raise type(worst)("; ".join(busy))


def _is_clear(store: Store, service: str) -> bool:
    """Return whether the chosen host has generations to prune; if not, print why."""
    from castore.errors import NotFoundError
    from castore.services.hosts import removable

    try:
        removable(store, service)
    except NotFoundError as error:
        store.say(f"{service} is left out: {error}")
        return False
    return True


def _print_forgotten(gone: list[tuple[str, int]]) -> None:
    from castore.services.prune import spans

    for service in dict.fromkeys(service for service, _ in gone):
        numbers = [number for one, number in gone if one == service]
        summarize(f"forgotten: {service}@{spans(numbers)}")
