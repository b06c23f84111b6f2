"""The command `forget`: choice of generations, confirmation and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.messages import summarize
from castore.cli.options import common, confirm, host_option, json_option, print_json

if TYPE_CHECKING:
    from castore.api.prune import PrunePlan
    from castore.api.store import Store as OpenedStore
    from castore.cli.context import CliContext
    from castore.model.generation import Generation
    from castore.store import Store


@click.command(epilog="Example: castore forget drupal@7 drupal@20-29")
@click.argument("what", metavar="SERVICE@SELECTOR...", nargs=-1, required=True)
@click.option("--all", "everything", is_flag=True, help="Delete all generations of SERVICE.")
@click.option("--dry-run", is_flag=True, help="Show what would be deleted, and delete nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@common
@host_option
def forget(
    context: CliContext, what: tuple[str, ...], everything: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Delete generations permanently. 'castore compact' reclaims the space that only they referenced.

    SERVICE@3-7 selects the generations 3 to 7.
    """
    from castore.api.generation import Generation as OpenedGeneration
    from castore.services.prune import spans

    with context.open_store() as opened:
        chosen = _chosen(opened, what, everything=everything)
        if dry_run:
            records = [generation for found in chosen.values() for generation in found.values()]
            plan = opened.plan_forget(OpenedGeneration(opened, record) for record in records)
            _print_plan(plan, as_json=as_json)
            return
        names = "; ".join(f"{service}@{spans(numbers)}" for service, numbers in chosen.items())
        if not (yes or confirm(f"Delete {names} permanently?")):
            print_json({"forgotten": []}) if as_json else summarize("nothing was deleted")
            return
        for service, generations in chosen.items():
            opened.service(service).forget(generations)
    if as_json:
        numbers = [(service, number) for service, found in chosen.items() for number in found]
        print_json({"forgotten": [{"service": service, "number": number} for service, number in numbers]})
    else:
        summarize(f"forgotten: {names}")


def _chosen(
    opened: OpenedStore, what: tuple[str, ...], *, everything: bool
) -> dict[str, dict[int, Generation]]:
    """Return the generations to delete, by service and number. Raises NotFoundError, UsageError."""
    from castore.errors import UsageError

    store = opened.internal
    store.generations.sync()
    chosen: dict[str, dict[int, Generation]] = {}
    for name in what:
        service, _, selector = name.partition("@")
        if everything and selector:
            raise UsageError(f"--all takes a service: {service}, not {name}")
        if not everything and not selector:
            raise UsageError(f"{name!r} names no generation: write {name}@NUMBER, or --all for all of them")
        for generation in _to_forget(store, service, selector):
            chosen.setdefault(service, {})[generation.number] = generation
    return chosen


def _print_plan(plan: PrunePlan, *, as_json: bool) -> None:
    """Print which generations would be deleted, and the space that 'castore compact' would then reclaim."""
    from castore.cli import formatting
    from castore.cli.document import times
    from castore.model.names import short_revision

    generations = [generation.record for generation in plan.deleted]
    if as_json:
        rows = [
            {
                "service": generation.service,
                "number": generation.number,
                **times("time", generation.time),
                "revision": generation.revision,
            }
            for generation in generations
        ]
        print_json({"dry_run": True, "generations": rows, "freed_bytes": plan.space.freed})
        return
    table = [
        [
            generation.service,
            str(generation.number),
            formatting.local_time(generation.time),
            short_revision(generation.revision) or "-",
        ]
        for generation in generations
    ]
    print(formatting.table(table, header=["service", "number", "time", "revision"], right={1}))
    print(
        f"would delete {formatting.count(len(generations), 'generation')}; 'castore compact' would then "
        f"reclaim {formatting.size(plan.space.freed)}"
    )


def _to_forget(store: Store, service: str, selector: str) -> list[Generation]:
    """Return the generations of a service to delete. selector: empty for all of the chosen host.

    Without --host, only a number selects a generation of another host. Raises NotFoundError, UsageError.
    """
    from castore.errors import NotFoundError, UsageError
    from castore.services.hosts import removable
    from castore.services.selector_rules import unknown_service
    from castore.services.selectors import find_range

    if not selector:
        if service not in store.generations.services():
            raise unknown_service(store, service)
        found = list(filter(removable(store, service), store.generations.all(service)))
        if not found:
            raise NotFoundError(
                f"this host has no generation of {service!r}; for those of another host, give --host NAME"
            )
        return found
    found = find_range(store, service, selector)
    for generation in found:
        by_number = selector.lstrip("#") == str(generation.number)
        if store.options.chosen_host is None and not store.hosts.is_own(generation) and not by_number:
            numbered = f"{service}@{generation.number}"
            raise UsageError(
                f"{service}@{selector} is a generation of host {generation.host}: forget {numbered}, or "
                f"choose the host with --host {generation.host}"
            )
    return found
