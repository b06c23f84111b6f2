"""The command `prune`: retention options and output."""

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
from castore.cli.messages import summarize
from castore.cli.options import Count, common, host_option, json_option, print_json
from castore.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.cli.context import CliContext
    from castore.errors import CastoreError
    from castore.services.config import Keep


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
    grace_seconds: float,
    delete_unfinished: bool,
    as_json: bool,
) -> None:
    """Delete generations that no retention rule keeps, and reclaim their space.

    The rules are those of castore.toml, or, if --keep-* options are given, theirs for every SERVICE. Services
    without rules keep all generations. Needs no identity. The next run continues an interrupted one.
    """
    from castore.cli.progress import show_progress

    limits = limits_of(max_unused, grace_seconds, delete_unfinished=delete_unfinished)
    with context.open_store() as store:
        if dry_run:
            plan = store.plan_prune(
                keep,
                services=services,
                max_unused=limits.max_unused,
                unfinished_seconds=limits.unfinished_seconds,
            )
            print_plan(store, plan, as_json=as_json)
            _raise_worst(plan.left_out)
            return
        with show_progress() as progress:
            done = store.prune(
                keep,
                services=services,
                progress=progress,
                max_unused=limits.max_unused,
                grace_seconds=limits.grace_seconds,
                unfinished_seconds=limits.unfinished_seconds,
            )
    numbers = [(generation.service, generation.number) for generation in done.deleted]
    if as_json:
        forgotten = [{"service": service, "number": number} for service, number in numbers]
        busy = [str(error) for error in done.left_out if not isinstance(error, ConfigError)]
        print_json({"forgotten": forgotten, "busy": busy, **plain_compaction(done.compacted)})
    else:
        _print_forgotten(numbers)
        print_done(done.compacted)
    refuse_damaged(done)
    _raise_worst(done.left_out)


def _raise_worst(errors: list[CastoreError]) -> None:
    """Raise one error for all services that were not pruned, if there are any."""
    if errors:
        worst = max(errors, key=lambda error: (isinstance(error, ConfigError), error.exit_code))
        raise type(worst)("; ".join(map(str, errors)))


def _print_forgotten(forgotten: list[tuple[str, int]]) -> None:
    from castore.services.prune import spans

    for service in dict.fromkeys(service for service, _ in forgotten):
        numbers = [number for one, number in forgotten if one == service]
        summarize(f"forgotten: {service}@{spans(numbers)}")
