"""The command `cat`: print a dump or a file."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from castore.cli.options import common, host_option

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore cat drupal@r1:db | less")
@click.argument("what", metavar="SERVICE@SEL:PART[/PATH]")
@common
@host_option
def cat(context: CliContext, what: str) -> None:
    """Write a dump, or a file of a tree, to standard output."""
    out = sys.stdout.buffer
    with context.open_store(confined=()) as store:
        # Each piece is written as it comes: before damaged content, all of the intact content is.
        for piece in store.select(what).pieces():
            out.write(piece)
        out.flush()
