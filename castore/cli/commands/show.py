"""The command `show`: print one generation, part or path."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from castore.cli import formatting
from castore.cli.messages import report
from castore.cli.options import common, host_option, json_option, print_json
from castore.cli.tree_entries import entry_line, plain_entry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from castore.api.generation import Generation as OpenedGeneration
    from castore.api.selection import Selection
    from castore.cli.context import CliContext
    from castore.model.generation import Generation


@click.command(epilog="Example: castore show drupal@latest")
@click.argument("what", metavar="SERVICE@SEL[:PART[/PATH]]")
@json_option
@common
@host_option
def show(context: CliContext, what: str, as_json: bool) -> None:
    """Show one generation, or a part or path of it: sizes, and how much was already stored."""
    from castore.cli.generations import parts_table, plain

    with context.open_store(confined=()) as store:
        selection = store.select(what)
        chosen = selection.generation
        generation = chosen.record
        parts = [selection.part.record] if selection.part else list(generation.parts)
        warnings = _warnings(chosen) if any(part.skipped_files for part in parts) else []
        warnings = [warning for warning in warnings if _concerns(warning, selection)]
        entry = selection.entry() if selection.path else None
        pins = {} if (note := chosen.pin_note) is None else {chosen.number: note}
        is_own = chosen.is_of_this_host
    if as_json:
        shown = plain(generation, pins=pins)
        names = {part.name for part in parts}
        shown["parts"] = [part for part in shown["parts"] if part["name"] in names]
        if entry is not None:
            shown["entry"] = plain_entry(os.fsencode(selection.path), entry.record)
        print_json({**shown, "warnings": warnings})
        return
    _print_head(generation, pins, is_own=is_own)
    print()
    print(parts_table(parts))
    if entry is not None:
        print(entry_line(os.fsencode(selection.path), entry.record))
    for warning in warnings:
        print(f"skipped: {warning['part']}:{warning['path']}: {warning['reason']}")


def _print_head(generation: Generation, pins: Mapping[int, str], *, is_own: bool) -> None:
    """Print what is known of a generation. is_own: it is of this host."""
    from castore.model.names import short_revision

    print(f"{generation.service}@{generation.number}  {formatting.local_time(generation.time)}")
    short = short_revision(generation.revision)
    print(f"revision  {short or '-'}{f'  ({generation.revision})' if short != generation.revision else ''}")
    print(f"host      {formatting.printable(generation.host)}{'' if is_own else '  (not this one)'}")
    print(f"took      {formatting.duration(generation.duration)}")
    if generation.interrupted:
        print("warning   taken after a rollback that has not ended: its state may be inconsistent")
    elif generation.pre_rollback:
        print("kind      pre-rollback generation: the state that a rollback replaced")
    if generation.partial:
        print(f"partial   without {', '.join(generation.missing_parts)}: only its number selects it")
    if generation.number in pins:
        print(f"pinned    {formatting.printable(pins[generation.number]) or 'yes'}")


def _concerns(warning: dict[str, str], selection: Selection) -> bool:
    """Return whether a warning concerns the part and path of a selection, or a path below."""
    if selection.part is None:
        return True
    path = selection.path.strip("/")
    below = not path or warning["path"] == path or warning["path"].startswith(path + "/")
    return below and warning["part"] == selection.part.name


def _warnings(generation: OpenedGeneration) -> list[dict[str, str]]:
    """Return the warnings of a snapshot; without an identity, print that one is needed."""
    from castore.errors import IdentityError

    try:
        warnings = generation.recorded_warnings()
    except IdentityError:
        report("give --identity FILE to show the names of skipped files")
        return []
    return [
        {"part": part, "path": formatting.printable(path), "reason": reason}
        for part, path, reason in warnings
    ]
