"""The command `compact`: options and output."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli.compaction import (
    compaction_options,
    limits_of,
    plain_compaction,
    print_done,
    print_plan,
    refuse_damaged,
)
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore compact --dry-run")
@compaction_options
@json_option
@common
def compact(
    context: CliContext,
    dry_run: bool,
    max_unused: float,
    grace_seconds: float,
    delete_unfinished: bool,
    as_json: bool,
) -> None:
    """Reclaim the space that no generation references: of forgotten generations, and of failed snapshots."""
    from castore.cli.progress import show_progress

    limits = limits_of(max_unused, grace_seconds, delete_unfinished=delete_unfinished)
    with context.open_store() as store:
        if dry_run:
            plan = store.plan_compact(
                max_unused=limits.max_unused, unfinished_seconds=limits.unfinished_seconds
            )
            print_plan(store, plan, as_json=as_json)
            return
        with show_progress() as progress:
            done = store.compact(
                progress=progress,
                max_unused=limits.max_unused,
                grace_seconds=limits.grace_seconds,
                unfinished_seconds=limits.unfinished_seconds,
            )
    if as_json:
        print_json(plain_compaction(done.compacted))
    else:
        print_done(done.compacted)
    refuse_damaged(done)
