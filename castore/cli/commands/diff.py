"""The command `diff`: compare two generations, and print the differences."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.options import common, host_option, json_option, print_json_list

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.services.comparison import Difference


@click.command(epilog="Example: castore diff drupal@11 drupal@12")
@click.argument("old", metavar="SERVICE@A[:PART[/PATH]]")
@click.argument("new", metavar="SERVICE@B[:PART[/PATH]]")
@json_option
@common
@host_option
def diff(context: CliContext, old: str, new: str, as_json: bool) -> None:
    """Show what differs: paths added (+), removed (-), changed (M), metadata only (m); bytes of dumps.

    A part or path in one of the two names also applies to the other, unless that has its own.
    """
    with context.open_store(confined=()) as store:
        found = store.select(old).diff(store.select(new))
        if as_json:
            print_json_list(map(_plain, found))
            return
        for difference in found:
            print(_line(difference))


_MARKS = {"added": "+", "removed": "-", "content": "M", "metadata": "m"}


def _plain(difference: Difference) -> dict[str, Any]:
    path = difference.path
    fields: dict[str, Any] = {
        "part": difference.part,
        "change": difference.change,
        "path": None if path is None else formatting.printable(path),
    }
    if difference.added_bytes is not None:
        fields |= {"removed_bytes": difference.removed_bytes, "added_bytes": difference.added_bytes}
    return fields


def _line(difference: Difference) -> str:
    line = f"{_MARKS[difference.change]} {difference.part}"
    if difference.path is not None:
        line += f":{formatting.printable(difference.path)}"
    if difference.added_bytes is not None and difference.removed_bytes is not None:
        added, removed = formatting.size(difference.added_bytes), formatting.size(difference.removed_bytes)
        line += f"  {added} in new chunks, {removed} in removed chunks"
    return line
