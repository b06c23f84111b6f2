"""The command `log`: list generations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.messages import note_left_out, summarize
from castore.cli.options import Count, common, host_option, json_option, print_json_list

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.api.store import Store as Opened
    from castore.cli.context import CliContext
    from castore.model.generation import Generation
    from castore.model.hosts import HostGroups
    from castore.store import Store


@click.command(epilog="Example: castore log drupal --revision r1")
@click.argument("service", required=False)
@click.option("--revision", metavar="REV", help="Only of revisions that begin with REV.")
@click.option("--limit", type=Count(1), metavar="N", help="At most the N newest.")
@json_option
@common
@host_option
def log(
    context: CliContext, service: str | None, revision: str | None, limit: int | None, as_json: bool
) -> None:
    """List generations, newest first: of SERVICE, or of all services.

    total: bytes of files and dumps. new: bytes, also of names and metadata, that the store did not have.
    stored: what the new bytes take in the store, encoded as deltas, compressed and encrypted.
    """
    from functools import cache
    from itertools import islice

    from castore.cli.generations import Shown, plain, table
    from castore.model.hosts import ALL_HOSTS
    from castore.services.events import drills

    with context.open_store(confined=()) as opened:
        store = opened.internal
        found = islice(_found(opened, service, revision or "", at_once=not (as_json or limit)), limit)
        drilled = drills(store)
        if as_json:
            context.warn_damaged(store)
            pins = cache(store.generations.pins)
            print_json_list(plain(generation, drilled, pins(generation.service)) for generation in found)
            return
        generations = list(found)
        groups = None
        if context.host in {None, ALL_HOSTS}:
            groups = _several_hosts(store, generations, complete=limit is None and revision is None)
        context.warn_damaged(store)
        services = {generation.service for generation in generations}
        pinned = {name: store.generations.pins(name) for name in services}
        if generations:
            # The names of hosts are looked up in the open store.
            text, left_out = table(
                generations, Shown(drilled, pinned, groups), width=formatting.terminal_width()
            )
            print(text, flush=True)
            note_left_out(left_out)
    if not generations:
        which = f" of a revision that begins with {revision!r}" if revision is not None else ""
        way = "" if which else "; take one with: castore snapshot SERVICE"
        summarize(f"castore: there is no generation{which}{way}", err=True)


def _found(opened: Opened, service: str | None, begun: str, *, at_once: bool) -> Iterator[Generation]:
    """Return the generations of a service, or of all, of revisions that begin with `begun`.

    at_once: all of them are wanted. Raises NotFoundError for a service that does not exist.
    """
    from itertools import chain

    from castore.services.selector_rules import unknown_service

    if service is None:
        found = opened.generations(revision_prefix=begun, at_once=at_once)
    else:
        found = opened.service(service).generations(revision_prefix=begun)
    records = (generation.record for generation in found)
    first = next(records, None)
    if first is None:
        if service is not None and opened.internal.generations.newest(service) is None:
            raise unknown_service(opened.internal, service)
        return iter(())
    return chain([first], records)


def _several_hosts(store: Store, shown: list[Generation], *, complete: bool) -> HostGroups | None:
    """Return the hosts of the generations shown; None if each service has one. complete: all are shown."""
    from castore.services.hosts import groups_of

    groups = store.hosts.groups(shown)
    services = {generation.service for generation in shown}
    if len(groups.hosts()) > 1:
        return groups
    several = not complete and any(len(groups_of(store, service).hosts()) > 1 for service in services)
    return groups if several else None
