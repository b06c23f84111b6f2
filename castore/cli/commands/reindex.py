"""The command `reindex`: rebuild the index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.messages import summarize
from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore reindex")
@json_option
@common
def reindex(context: CliContext, as_json: bool) -> None:
    """Delete the index and rebuild it from the store; needs no identity."""
    from castore.cli.progress import show_progress

    with context.open_store() as store:
        with show_progress() as progress:
            count = store.reindex(progress=progress)
        context.warn_damaged(store)
    if as_json:
        print_json({"chunks": count})
    else:
        summarize(f"the index holds {formatting.count(count, 'chunk')}")
