"""castore find, history."""

from __future__ import annotations

import stat
import sys
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import common, host_option, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.cli.context import CliContext
    from castore.model.generation import Generation
    from castore.services.find import Hit, Span


@click.command(epilog="Example: castore find '*.conf' etc")
@click.argument("pattern")
@click.argument("service", required=False)
@click.option("--part", default="", metavar="PART", help="Only in this part.")
@click.option("-i", "--ignore-case", is_flag=True, help="Ignore case.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Stop after N paths.")
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
    from castore.content.streams import StreamReader
    from castore.errors import NotFoundError
    from castore.services.find import find_paths
    from castore.services.hosts import groups_of, shown
    from castore.services.selectors import unknown_service

    rows: list[dict[str, Any]] = []
    count = 0
    damaged: list[str] = []
    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        services = [service] if service is not None else store.services()
        if service is not None and store.newest(service) is None:
            raise unknown_service(store, service)
        store.identity()
        for name in services:
            try:
                generations = list(filter(shown(store, name), store.generations(name)))
            except NotFoundError:
                if service is not None:
                    raise
                continue  # no generation of this service is of the host that was named
            hosts = len(groups_of(store, name).names()) > 1
            found = find_paths(reader, generations, pattern, part=part, ignore_case=ignore_case)
            for hit in _undamaged(name, found, damaged):
                count += 1
                if as_json:
                    rows.append({"service": name, **_plain(hit)})
                else:
                    print(_find_line(name, hit, hosts=hosts))
                if count == limit:
                    break
            if count == limit:
                break
        context.warn_damaged(store)
    if as_json:
        print_json(rows)
    _report_damaged(damaged)
    if not count and not as_json:
        where = f"a generation of {service!r}" if service is not None else "any generation"
        raise NotFoundError(f"nothing matches {pattern!r} in {where}")


def _undamaged(service: str, found: Any, damaged: list[str]) -> Iterator[Hit]:
    """Yield what was found; directories that could not be read are added to `damaged`."""
    from castore.services.find import Hit

    for one in found:
        if isinstance(one, Hit):
            yield one
        else:
            part, (path, reason) = one
            damaged.append(f"{service}:{part}/{formatting.printable(path)}: {reason}")


def _report_damaged(damaged: list[str]) -> None:
    from castore.errors import DamageError

    for line in damaged:
        print(f"castore: {line}", file=sys.stderr)
    if damaged:
        raise DamageError(
            f"{formatting.count(len(damaged), 'directory', 'directories')} could not be read and not searched"
            "; 'castore verify' says which generations are damaged"
        )


def _ranges(generations: list[Generation]) -> str:
    """Return the numbers of generations, the oldest first: `3-7`."""
    first, last = generations[0].number, generations[-1].number
    return f"{first}" if first == last else f"{first}-{last}"


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
    numbers = ",".join(map(_ranges, runs))
    entry = newest.entry
    kind = formatting.mode_text(entry.st_mode)[0] if entry is not None else "-"
    modified = formatting.local_time(entry.mtime) if entry is not None else "-"
    size = "-" if _is_directory(newest) else formatting.size(newest.size)
    versions = formatting.count(len(hit.spans), "version")
    host = f"  {formatting.printable(hit.host)}" if hosts else ""
    return (
        f"{numbers:>9}  {_date(hit.spans[0].generations[0])}  {_date(newest.generations[-1])}  {kind} "
        f"{size:>8}  {modified}  {versions:>12}{host}  {_path(service, hit)}"
    )


def _date(generation: Generation) -> str:
    return formatting.local_time(generation.time)[:10]


@click.command(epilog="Example: castore history etc:etc/passwd")
@click.argument("what", metavar="SERVICE:PART[/PATH]")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most the N newest versions.")
@json_option
@common
@host_option
def history(context: CliContext, what: str, limit: int | None, as_json: bool) -> None:
    """List the versions of a part, a directory or a file over all generations, newest first.

    A version is a run of generations between which nothing of it changed: content, metadata, what is below
    a directory.
    """
    from castore.content.streams import StreamReader
    from castore.errors import UsageError
    from castore.services.find import path_history
    from castore.services.hosts import shown
    from castore.services.selectors import unknown_service

    service, colon, rest = what.partition(":")
    part, _, path = rest.partition("/")
    if not colon or not part or "@" in service:
        raise UsageError(
            f"{what!r} names no part: write SERVICE:PART or SERVICE:PART/PATH, without a generation"
        )
    damaged: list[str] = []
    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        generations = store.generations(service)
        if not generations:
            raise unknown_service(store, service)
        generations = list(filter(shown(store, service), generations))
        store.identity()
        hits = list(_undamaged(service, path_history(reader, generations, part, path), damaged))
        context.warn_damaged(store)
    for hit in hits:
        hit.spans[:] = hit.spans[::-1][:limit]
    if as_json:
        print_json([{"service": service, **_plain(hit)} for hit in hits])
    else:
        for hit in hits:
            if len(hits) > 1:
                print(f"host {formatting.printable(hit.host)}")
            print(_history_table(hit))
    _report_damaged(damaged)


def _history_table(hit: Hit) -> str:
    rows = [
        [
            _ranges(span.generations),
            formatting.local_time(span.generations[0].time),
            "-" if span.exists is False or _is_directory(span) else formatting.size(span.size),
            formatting.local_time(span.entry.mtime) if span.entry is not None else "-",
            _shown_change(span),
        ]
        for span in hit.spans
    ]
    return formatting.table(rows, header=["generations", "from", "size", "modified", "change"], right={0, 2})


def _is_directory(span: Span) -> bool:
    return span.entry is not None and stat.S_ISDIR(span.entry.st_mode)


def _shown_change(span: Span) -> str:
    return span.change or ("first" if span.exists else "absent")


def _plain(hit: Hit) -> dict[str, Any]:
    return {
        "host": hit.host,
        "part": hit.part,
        "path": formatting.printable(hit.path),
        "versions": [
            {
                "first": span.generations[0].number,
                "last": span.generations[-1].number,
                **times("from", span.generations[0].time),
                **times("to", span.generations[-1].time),
                "exists": span.exists,
                "size": span.size,
                "mode": span.entry.st_mode if span.entry is not None else None,
                **times("mtime", span.entry.mtime if span.entry is not None else None),
                "change": span.change or None,
            }
            for span in hit.spans
        ],
    }
