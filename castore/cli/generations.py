"""Generations, as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.cli import formatting
from castore.cli.document import times
from castore.model.names import short_revision

if TYPE_CHECKING:
    from castore.model.events import Event
    from castore.model.generation import Generation, Part
    from castore.model.hosts import HostGroups


_Drills = Mapping[tuple[str, int], "Event"]
_OPTIONAL: Final = ("new", "stored", "total")
"""Columns of `castore log` that are left out in this order on a narrow terminal. `show` also has them."""


def plain(
    generation: Generation, drilled: _Drills | None = None, pins: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Return a generation for JSON: castore/docs/json.md describes the fields.

    drilled: the last drills, by service and number. pins: notes of the service's pins, by number.
    """
    last = (drilled or {}).get((generation.service, generation.number))
    return {
        "drilled": None if last is None else {**times("time", last.time), "ok": last.ok, "text": last.text},
        "service": generation.service,
        "number": generation.number,
        **times("time", generation.time),
        "revision": generation.revision,
        "host": generation.host,
        "host_id": generation.host_id,
        "parent": generation.parent,
        "pre_rollback": generation.pre_rollback,
        "interrupted": generation.interrupted,
        "pinned": None if pins is None else generation.number in pins,
        "pin_note": None if pins is None else pins.get(generation.number),
        "partial": generation.partial,
        "missing_parts": list(generation.missing_parts),
        "duration": generation.duration,
        "session": generation.session.hex(),
        "size": generation.size,
        "new_bytes": sum(part.new_bytes for part in generation.parts),
        "stored_bytes": sum(part.stored_bytes for part in generation.parts),
        "skipped_files": generation.skipped_files,
        "parts": [
            {
                "name": part.name,
                "kind": part.kind,
                "size": part.size,
                "files": part.files,
                "chunks": part.chunks,
                "new_chunks": part.new_chunks,
                "new_bytes": part.new_bytes,
                "after_delta": part.after_delta,
                "after_compression": part.after_compression,
                "stored_bytes": part.stored_bytes,
                "skipped_files": part.skipped_files,
            }
            for part in generation.parts
        ],
    }


def describe(generation: Generation) -> str:
    """Return the line that reports a new generation."""
    revision = f" of revision {short_revision(generation.revision)}" if generation.revision else ""
    new = sum(part.new_bytes for part in generation.parts)
    stored = sum(part.stored_bytes for part in generation.parts)
    return (
        f"{generation.service}@{generation.number}{revision}: {formatting.size(generation.size)} in "
        f"{formatting.count(len(generation.parts), 'part')}, "
        f"{formatting.size(new)} new, {formatting.size(stored)} stored, "
        f"{formatting.duration(generation.duration)}"
        + (f"; partial: without {', '.join(generation.missing_parts)}" if generation.partial else "")
    )


class Shown(NamedTuple):
    """What `castore log` shows of generations, apart from their records."""

    drilled: _Drills
    """The last drills, by service and number."""
    pinned: Mapping[str, Mapping[int, str]]
    """Notes of pins, by service and number."""
    groups: HostGroups | None = None
    """The hosts, if the table shows them."""


def table(
    generations: list[Generation], shown: Shown, *, width: int | None = None
) -> tuple[str, list[str]]:
    """Return the table of `castore log`, and the names of the columns that were left out.

    The table has the last drill of each generation if there is any. width: the columns of the terminal; sizes
    that do not fit are left out.
    """
    header = ["service", "number", "time", "revision", *(["host"] if shown.groups else [])]
    header += ["parts", "total", "new", "stored"]
    right = {1, *range(len(header) - 3, len(header))}
    header += ["drilled"] if shown.drilled else []
    rows = [_row(generation, shown) for generation in generations]
    text = formatting.table(rows, header=header, right=right)
    left_out: list[str] = []
    for name in _OPTIONAL:
        if width is None or max(map(len, text.splitlines())) <= width:
            break
        left_out.append(name)
        at = header.index(name)
        for row in [header, *rows]:
            del row[at]
        right = {position - (position > at) for position in right if position != at}
        text = formatting.table(rows, header=header, right=right)
    return text, left_out


def _row(generation: Generation, shown: Shown) -> list[str]:
    total = new = stored = 0
    for part in generation.parts:
        total += part.size
        new += part.new_bytes
        stored += part.stored_bytes
    row = [
        generation.service,
        str(generation.number),
        formatting.local_time(generation.time),
        short_revision(generation.revision) or "-",
        *([formatting.printable(shown.groups.key(generation))] if shown.groups else []),
        _part_names(generation, shown.pinned[generation.service]),
        formatting.size(total),
        formatting.size(new),
        formatting.size(stored),
    ]
    if shown.drilled:
        last = shown.drilled.get((generation.service, generation.number))
        failed = "" if last is None or last.ok else " FAILED"
        row.append("-" if last is None else formatting.local_time(last.time) + failed)
    return row


def _part_names(generation: Generation, pinned: Mapping[int, str]) -> str:
    """Return the names of the parts, and what is special about the generation."""
    names = " ".join([part.name for part in generation.parts])
    if generation.interrupted:
        names += " (after an unfinished rollback)"
    elif generation.pre_rollback:
        names += " (pre-rollback)"
    if generation.partial:
        names += " (partial)"
    if any(part.skipped_files for part in generation.parts):
        names += " (incomplete)"
    if generation.number in pinned:
        note = pinned[generation.number]
        names += f" (pinned: {formatting.printable(note)})" if note else " (pinned)"
    return names


def parts_table(parts: Sequence[Part]) -> str:
    """Return the table of `castore show`."""
    rows = []
    for part in parts:
        reused = part.chunks - part.new_chunks
        share = f"{100 * reused / part.chunks:.1f} %" if part.chunks else "-"
        rows.append([
            part.name,
            part.kind,
            formatting.size(part.size),
            str(part.files) if part.kind == "tree" else "-",
            str(part.chunks),
            str(part.new_chunks),
            share,
            formatting.size(part.new_bytes),
            formatting.size(part.stored_bytes),
            str(part.skipped_files),
        ])
    header = ["part", "kind", "size", "files", "chunks", "new", "reused", "new bytes", "stored", "skipped"]
    return formatting.table(rows, header=header, right=set(range(2, 10)))
