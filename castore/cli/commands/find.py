"""The command `find`: search paths in all generations."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from castore.cli import formatting
from castore.cli.options import Count, common, host_option, json_option, print_json_list
from castore.cli.path_versions import is_directory, number_range, plain_hit, report_damaged, undamaged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.cli.context import CliContext
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation
    from castore.services.find import Hit


@click.command(epilog="Example: castore find '*.conf' etc")
@click.argument("pattern")
@click.argument("service", required=False)
@click.option("--part", default="", metavar="PART", help="Only in this part.")
@click.option("-i", "--ignore-case", is_flag=True, help="Ignore case.")
@click.option("--limit", type=Count(1), metavar="N", help="Stop after N paths.")
@json_option
@common
@host_option
def find(
    context: CliContext,
    pattern: str,
    service: str | None,
    part: str,
    ignore_case: bool,
    limit: int | None,
    as_json: bool,
) -> None:
    """List the paths that match PATTERN in any generation: of SERVICE, or of all services.

    PATTERN matches names at every depth ('*.log', 'conf.d/*'); with a leading '/', from the top of a tree, or
    of the file system where a tree is from there. '**' matches any number of directories; a '/' at the end,
    directories only. A path's versions are those of different size, time, mode or owner.
    """
    from itertools import islice

    from castore.content.streams import StreamReader
    from castore.errors import NotFoundError

    count = 0
    damaged: list[str] = []
    with context.open_internal(confined=()) as store, StreamReader(store) as reader:
        store.generations.sync()
        query = _Query(pattern, part, ignore_case)
        hits = islice(_hits(reader, service, query, damaged), limit)
        if as_json:
            print_json_list({"service": name, **plain_hit(hit)} for name, hit, _ in hits)
        for name, hit, hosts in hits:
            count += 1
            print(_find_line(name, hit, hosts=hosts))
        context.warn_damaged(store)
    report_damaged(damaged)
    if not count and not as_json:
        where = f"a generation of {service!r}" if service is not None else "any generation"
        raise NotFoundError(f"no path matches {pattern!r} in {where}")


class _Query(NamedTuple):
    """What is searched for."""

    pattern: str
    part: str
    ignore_case: bool


def _hits(
    reader: StreamReader, service: str | None, query: _Query, damaged: list[str]
) -> Iterator[tuple[str, Hit, bool]]:
    """Yield (service, match, whether the service has several hosts); list damaged directories in `damaged`.

    service: None for all. Raises NotFoundError for a service that does not exist, IdentityError.
    """
    from castore.errors import NotFoundError
    from castore.services.find import find_paths
    from castore.services.hosts import groups_of, shown
    from castore.services.selector_rules import unknown_service

    store = reader.store
    if service is not None and store.generations.newest(service) is None:
        raise unknown_service(store, service)
    store.keys.identity()
    for name in [service] if service is not None else store.generations.services():
        try:
            generations = list(filter(shown(store, name), store.generations.all(name)))
        except NotFoundError:
            if service is not None:
                raise
            continue  # this service has no generation of the chosen host
        hosts = len(groups_of(store, name).hosts()) > 1
        found = find_paths(
            reader, generations, query.pattern, part=query.part, ignore_case=query.ignore_case
        )
        for hit in undamaged(name, found, damaged):
            yield name, hit, hosts


def _path(service: str, hit: Hit) -> str:
    return f"{service}:{hit.part}" + (f"/{formatting.printable(hit.path)}" if hit.path else "")


def _find_line(service: str, hit: Hit, *, hosts: bool) -> str:
    newest = hit.spans[-1]
    runs: list[list[Generation]] = []
    for span in hit.spans:
        if runs and span.follows:
            runs[-1] = [runs[-1][0], span.generations[-1]]
        else:
            runs.append([span.generations[0], span.generations[-1]])
    numbers = ",".join(map(number_range, runs))
    entry = newest.entry
    kind = formatting.mode_text(entry.st_mode)[0] if entry is not None else "-"
    modified = formatting.local_time(entry.mtime) if entry is not None else "-"
    size = "-" if is_directory(newest) else formatting.size(newest.size)
    versions = formatting.count(len(hit.spans), "version")
    host = f"  {formatting.printable(hit.host)}" if hosts else ""
    return (
        f"{numbers:>9}  {_date(hit.spans[0].generations[0])}  {_date(newest.generations[-1])}  {kind} "
        f"{size:>8}  {modified}  {versions:>12}{host}  {_path(service, hit)}"
    )


def _date(generation: Generation) -> str:
    return formatting.local_time(generation.time)[:10]
