"""The command `history`: print the versions of a path."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.options import Count, common, host_option, json_option, print_json
from castore.cli.path_versions import DamagedDirectories, is_directory, number_range, plain_hit

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.services.find import Hit, Span


@click.command(epilog="Example: castore history etc:etc/passwd")
@click.argument("what", metavar="SERVICE:PART[/PATH]")
@click.option("--limit", type=Count(1), metavar="N", help="At most the N newest versions.")
@json_option
@common
@host_option
def history(context: CliContext, what: str, limit: int | None, as_json: bool) -> None:
    """List the versions of a part, a directory or a file over all generations, newest first.

    A version is a run of generations between which nothing of it changed: content, metadata, what is below
    a directory.
    """
    from castore.errors import UsageError

    service, colon, rest = what.partition(":")
    part, _, path = rest.partition("/")
    if not colon or not part or "@" in service:
        raise UsageError(
            f"{what!r} names no part: write SERVICE:PART or SERVICE:PART/PATH, without a generation"
        )
    damaged = DamagedDirectories()
    with context.open_store(confined=()) as store:
        hits = list(store.service(service).history(part, path, on_damage=damaged.of(service)))
        context.warn_damaged(store)
    for hit in hits:
        hit.spans[:] = hit.spans[::-1][:limit]
    if as_json:
        print_json([{"service": service, **plain_hit(hit)} for hit in hits])
    else:
        for hit in hits:
            if len(hits) > 1:
                print(f"host {formatting.printable(hit.host)}")
            print(_history_table(hit))
    damaged.refuse()


def _history_table(hit: Hit) -> str:
    rows = [
        [
            number_range(span.generations),
            formatting.local_time(span.generations[0].time),
            "-" if span.exists is False or is_directory(span) else formatting.size(span.size),
            formatting.local_time(span.entry.mtime) if span.entry is not None else "-",
            _shown_change(span),
        ]
        for span in hit.spans
    ]
    return formatting.table(rows, header=["generations", "from", "size", "modified", "change"], right={0, 2})


def _shown_change(span: Span) -> str:
    return span.change or ("first" if span.exists else "absent")
