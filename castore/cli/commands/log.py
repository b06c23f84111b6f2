"""castore log."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.options import Count, common, host_option, json_option, print_json_list
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

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
    """List generations, newest first: of SERVICE, or of all services."""
    from functools import cache
    from itertools import islice

    from castore.cli.generations import plain, table
    from castore.model.hosts import ALL_HOSTS
    from castore.model.names import revision_begins
    from castore.services.events import drills
    from castore.services.selectors import unknown_service

    with context.open_store(confined=()) as store:
        store.sync_generations()
        if service is not None and store.newest(service) is None:
            raise unknown_service(store, service)
        if service is not None:
            found = store.newest_first(service)
        elif as_json or limit is not None:
            found = store.newest_of_all()
        else:
            # The columns of a table are as wide as the longest of all values.
            found = iter(store.generations())
        if context.host is not None:
            found = filter(_of_hosts(store, service), found)
        if revision is not None:
            found = (g for g in found if revision_begins(g.revision, revision))
        drilled = drills(store)
        if as_json:
            context.warn_damaged(store)
            pins = cache(store.pins)
            print_json_list(plain(one, drilled, pins(one.service)) for one in islice(found, limit))
            return
        generations = list(islice(found, limit))
        groups = None
        if context.host in {None, ALL_HOSTS}:
            groups = _several_hosts(store, generations, complete=limit is None and revision is None)
        context.warn_damaged(store)
        pinned = {name: store.pins(name) for name in {one.service for one in generations}}
    if generations:
        print(table(generations, drilled, pinned, groups, width=formatting.terminal_width()))
    else:
        which = f" of a revision that begins with {revision!r}" if revision is not None else ""
        way = "" if which else "; take one with: castore snapshot SERVICE"
        summarize(f"castore: there is no generation{which}{way}", err=True)


def _several_hosts(store: Store, shown: list[Generation], *, complete: bool) -> HostGroups | None:
    """Return the hosts of the generations shown; None if each service has one. complete: all are shown."""
    from castore.model.hosts import HostGroups
    from castore.services.hosts import groups_of

    groups = HostGroups(shown, store.host_key)
    services = {one.service for one in shown}
    if len(groups.names()) > 1:
        return groups
    several = not complete and any(len(groups_of(store, one).names()) > 1 for one in services)
    return groups if several else None


def _of_hosts(store: Store, service: str | None) -> Callable[[Generation], bool]:
    """Return a filter for generations of the chosen host. Raises NotFoundError if `service` has none."""
    from castore.errors import NotFoundError
    from castore.services.hosts import chosen

    wanted = {}
    for one in [service] if service is not None else store.services():
        try:
            wanted[one] = chosen(store, one)
        except NotFoundError:
            if service is not None:
                raise
    return lambda generation: generation.service in wanted and wanted[generation.service](generation)
