"""castore compact."""

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
    context: CliContext, dry_run: bool, max_unused: float, grace: float, unfinished: bool, as_json: bool
) -> None:
    """Reclaim the space that no generation references: of forgotten generations, and of failed snapshots."""
    from castore.cli.progress import watching
    from castore.maintenance.compact import plan
    from castore.progress import Progress
    from castore.services.prune import compact_and_record

    limits = limits_of(max_unused, unfinished=unfinished)
    with context.open_store() as store:
        if dry_run:
            print_plan(store, [], plan(store, **limits), as_json=as_json)
            return
        tally = Progress()
        with watching() as progress:
            progress("compacting", tally)
            done = compact_and_record(store, tally, grace=grace, **limits)
    if as_json:
        print_json(plain_compaction(done))
    else:
        print_done(done)
    refuse_damaged(done)
