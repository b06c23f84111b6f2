"""castore ls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli.options import common, host_option, json_option, print_json_list
from castore.cli.tree_entries import entry_line, plain_entry

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.services.selectors import Selection


@click.command(epilog="Example: castore ls -R drupal@12:sites/default")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@click.option("-R", "--recursive", is_flag=True, help="List everything below, too.")
@json_option
@common
@host_option
def ls(context: CliContext, what: str, recursive: bool, as_json: bool) -> None:
    """List the content of a generation, a part, or a directory of it."""
    from castore.content.streams import StreamReader
    from castore.services.selectors import select

    with context.open_internal(confined=()) as store, StreamReader(store) as reader:
        store.generations.sync()
        selection = select(store, what)
        listed = _listed(reader, selection, recursive)
        if as_json:
            print_json_list(plain_entry(shown, child) for shown, child in listed)
            return
        for shown, child in listed:
            print(entry_line(shown, child))


def _listed(reader: Any, selection: Selection, recursive: bool) -> Any:
    from castore.content.allowance import Allowance
    from castore.content.stored_dirs import look_up, open_directory, walk

    parts = [selection.part] if selection.part else list(selection.generation.parts)
    for part in parts:
        prefix = b"" if selection.part else os.fsencode(part.name)
        if part.kind == "dump" or part.content is None:
            yield os.fsencode(part.name), part
            continue
        top = look_up(reader, part.content, os.fsencode(selection.path))
        if not selection.part and not recursive:
            yield prefix, top
            continue
        if not top.entry.is_dir:
            yield top.entry.name, top
        elif recursive:
            yield from walk(reader, top, Allowance.of([part]), prefix)
        else:
            for child in open_directory(reader, top.ref):
                yield child.entry.name, child
