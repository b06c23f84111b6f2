"""The command `ls`: list the entries of a tree."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli.options import common, host_option, json_option, print_json_list
from castore.cli.tree_entries import entry_line, plain_entry

if TYPE_CHECKING:
    from castore.cli.context import CliContext


@click.command(epilog="Example: castore ls -R drupal@12:sites/default")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@click.option("-R", "--recursive", is_flag=True, help="Also list the entries of subdirectories.")
@json_option
@common
@host_option
def ls(context: CliContext, what: str, recursive: bool, as_json: bool) -> None:
    """List the content of a generation, a part, or a directory of it."""
    with context.open_store(confined=()) as store:
        listed = store.select(what).entries(recursive=recursive)
        if as_json:
            print_json_list(plain_entry(os.fsencode(entry.path), entry.record) for entry in listed)
            return
        for entry in listed:
            print(entry_line(os.fsencode(entry.path), entry.record))
