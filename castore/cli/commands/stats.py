"""The command `stats`: print sizes and savings."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.stats import Stats


@click.command(epilog="Example: castore stats --json")
@json_option
@common
def stats(context: CliContext, as_json: bool) -> None:
    """Show how much the store holds, and what each step saved."""
    with context.open_store(confined=()) as store:
        found = store.stats()
        context.warn_damaged(store.internal)
    if as_json:
        import msgspec

        print_json({**msgspec.to_builtins(found), "chunks": found.chunks, "overhead": found.overhead})
        return
    print(_services_table(found))
    print()
    _print_store(found)


def _services_table(found: Stats) -> str:
    rows = [
        [
            name,
            str(totals.generations),
            formatting.size(totals.plain),
            formatting.size(totals.new),
            formatting.size(totals.after_delta),
            formatting.size(totals.after_compression),
            formatting.size(totals.stored),
            f"{totals.ratio:.1f}x",
        ]
        for name, totals in [*found.services.items(), ("all", found.total)]
    ]
    header = ["service", "generations", "plain", "dedup", "delta", "compressed", "stored", "ratio"]
    return formatting.table(rows, header=header, right=set(range(1, 8)))


def _print_store(found: Stats) -> None:
    records = found.records
    if found.pack_bytes:
        # The table has what each generation added when it was taken, although others were deleted later.
        print(
            f"now: {formatting.size(found.total.plain)} of content in {formatting.size(found.pack_bytes)} "
            f"of packs, {found.total.plain / found.pack_bytes:.1f}x"
        )
    print(
        f"{formatting.count(found.packs, 'pack')}: {formatting.size(records.chunk_bytes)} in "
        f"{formatting.count(records.chunks, 'chunk')}, {formatting.size(records.node_bytes)} in nodes, "
        f"{formatting.size(found.overhead)} in footers and padding"
    )
    deltas = formatting.count(records.deltas, "chunk is a delta", "chunks are deltas")
    print(f"{deltas}, of {formatting.size(records.delta_bytes)}")
    print(
        f"kept only as bases of deltas: {formatting.count(records.bases_only, 'chunk')} of "
        f"{formatting.size(records.bases_only_bytes)}"
    )
    print(
        f"on this machine: index {formatting.size(found.index_bytes)}, "
        f"base cache {formatting.size(found.base_cache_bytes)}"
    )
