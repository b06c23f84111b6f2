"""The command `diff`: compare two generations, and print the differences."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.options import common, host_option, json_option, print_json_list

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.model.generation import Part
    from castore.services.selectors import Selection


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
    from castore.content.streams import StreamReader
    from castore.services.selectors import select

    with context.open_internal(confined=()) as store, StreamReader(store) as reader:
        store.generations.sync()
        rows = _diff_rows(reader, select(store, old), select(store, new))
        if as_json:
            print_json_list(rows)
            return
        for row in rows:
            print(_diff_line(row))


_MARKS = {"added": "+", "removed": "-", "content": "M", "metadata": "m"}


def _diff_rows(reader: Any, old: Selection, new: Selection) -> Any:
    before, after = old.generation, new.generation
    if old.part is None and new.part is None:
        names = [part.name for part in before.parts]
        names += [part.name for part in after.parts if part.name not in names]
        for name in names:
            yield from _part_rows(reader, name, before.part(name), after.part(name))
        return
    named = old.part or new.part
    assert named is not None
    first = old.part or before.part(named.name)
    second = new.part or after.part(named.name)
    paths = [one.path if one.part else other.path for one, other in ((old, new), (new, old))]
    if any(paths) and first is not None and second is not None:
        yield from _path_rows(reader, named.name, (first, paths[0]), (second, paths[1]))
    else:
        yield from _part_rows(reader, named.name, first, second)


def _path_rows(reader: Any, name: str, old: tuple[Part, str], new: tuple[Part, str]) -> Any:
    """Yield the differences at and below a path of two trees. Raises NotFoundError if neither has it."""
    from castore.content.allowance import Allowance
    from castore.content.diff import TIMES, diff_entries
    from castore.errors import NotFoundError, UsageError
    from castore.services.restore import child_of

    children: list[Any] = []
    missing: list[NotFoundError | UsageError] = []
    for part, path in (old, new):
        try:
            children.append(child_of(reader, part, path))
        except (NotFoundError, UsageError) as error:
            children.append(None)
            missing.append(error)
    if len(missing) == len(children):
        raise missing[0]
    shown = os.fsencode((new[1] or old[1]).strip("/"))
    before, after = children
    allowance = Allowance.of([old[0], new[0]], TIMES)
    for difference in diff_entries(reader, before, after, shown, allowance):
        yield {"part": name, "change": difference.change, "path": formatting.printable(difference.path)}


def _part_rows(reader: Any, name: str, old: Part | None, new: Part | None) -> Any:
    from castore.content.allowance import Allowance
    from castore.content.diff import TIMES, diff_streams, diff_trees

    if old is None or new is None or old.kind != new.kind:
        change = "added" if old is None else "removed" if new is None else "content"
        yield {"part": name, "change": change, "path": None}
    elif old.kind == "dump":
        found = diff_streams(reader.store, old.content, new.content)
        if found != (0, 0) or old.size != new.size:
            yield {
                "part": name,
                "change": "content",
                "path": None,
                "removed_bytes": found.removed,
                "added_bytes": found.added,
            }
    elif old.content is not None and new.content is not None:
        allowance = Allowance.of([old, new], TIMES)
        for difference in diff_trees(reader, old.content, new.content, allowance):
            path = formatting.printable(difference.path)
            yield {"part": name, "change": difference.change, "path": path}


def _diff_line(row: dict[str, Any]) -> str:
    line = f"{_MARKS[row['change']]} {row['part']}"
    if row["path"] is not None:
        line += f":{row['path']}"
    if "added_bytes" in row:
        added, removed = formatting.size(row["added_bytes"]), formatting.size(row["removed_bytes"])
        line += f"  {added} in new chunks, {removed} in removed chunks"
    return line
