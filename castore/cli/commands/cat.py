"""castore cat."""

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
    from castore.content.streams import StreamReader
    from castore.services.restore import read
    from castore.services.selectors import select

    with context.open_store(confined=()) as store, StreamReader(store) as reader:
        store.sync_generations()
        out = sys.stdout.buffer
        for data in read(reader, select(store, what)):
            out.write(data)
        out.flush()
