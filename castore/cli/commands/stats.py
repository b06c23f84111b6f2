"""The command `stats`: print sizes and savings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.maintenance.stats import Stats

_SHOWN: Final = 10
"""Generations that are listed."""


@click.command(epilog="Example: castore stats --json")
@json_option
@common
def stats(context: CliContext, as_json: bool) -> None:
    """Show how much the store holds, and what each step saved.

    The unique bytes of a generation are those that no other generation needs: what forgetting it, and then
    pruning, would free. The 10 generations with most of them are listed.
    """
    with context.open_store(confined=()) as store:
        found = store.stats()
        context.warn_damaged(store)
    if as_json:
        import msgspec

        plain = msgspec.to_builtins(found)
        generations = [{**row, **times("time", row["time"])} for row in plain["generations"]]
        print_json({**plain, "generations": generations, "chunks": found.chunks, "overhead": found.overhead})
        return
    print(_services_table(found))
    print()
    if found.generations:
        print(_generations_table(found))
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


def _generations_table(found: Stats) -> str:
    """Return the generations that need most bytes of their own: only they need them."""
    most = sorted(found.generations, key=lambda generation: -generation.unique)[:_SHOWN]
    rows = [
        [
            f"{generation.service}@{generation.number}",
            formatting.local_time(generation.time),
            formatting.size(generation.plain),
            formatting.size(generation.unique),
        ]
        for generation in most
    ]
    header = ["generation", "taken", "plain", "unique"]
    table = formatting.table(rows, header=header, right={2, 3})
    left = len(found.generations) - len(most)
    return table + (f"\nand {left} more, which need less of their own (--json lists all)" if left else "")


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
