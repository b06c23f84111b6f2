"""Generations, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from castore.cli import formatting
from castore.cli.document import times
from castore.model.names import short_revision

if TYPE_CHECKING:
    from castore.model.events import Event
    from castore.model.generation import Generation, Part
    from castore.model.hosts import HostGroups


_Drills = Mapping[tuple[str, int], "Event"]
_OPTIONAL: Final = ("new", "stored", "total")
"""Columns of `castore log` that are left out on a narrow terminal, in this order: `show` has them, too."""


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
        "safety": generation.pre_rollback,
        "interrupted": generation.interrupted,
        "pinned": None if pins is None else generation.number in pins,
        "pin_note": None if pins is None else pins.get(generation.number),
        "partial": generation.partial,
        "lacks": list(generation.missing_parts),
        "duration": generation.duration,
        "session": generation.session.hex(),
        "size": generation.size,
        "new_bytes": sum(part.new_bytes for part in generation.parts),
        "stored_bytes": sum(part.stored_bytes for part in generation.parts),
        "missed": generation.skipped_files,
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
                "missed": part.skipped_files,
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


def table(
    generations: list[Generation],
    drilled: _Drills,
    pinned: Mapping[str, Mapping[int, str]],
    groups: HostGroups | None = None,
    *,
    width: int | None = None,
) -> str:
    """Return the table of `castore log`, with the last drill of each generation if there is any.

    pinned: notes of pins, by service and number. groups: the hosts, if the table shows them.
    width: the columns of the terminal that shows it; sizes that do not fit are left out.
    """
    rows = []
    for generation in generations:
        total = new = stored = missed = 0
        for part in generation.parts:
            total += part.size
            new += part.new_bytes
            stored += part.stored_bytes
            missed += part.skipped_files
        names = " ".join([part.name for part in generation.parts])
        if generation.interrupted:
            names += " (after an unfinished rollback)"
        elif generation.pre_rollback:
            names += " (safety)"
        if generation.partial:
            names += " (partial)"
        if missed:
            names += " (incomplete)"
        if generation.number in pinned[generation.service]:
            note = pinned[generation.service][generation.number]
            names += f" (pinned: {formatting.printable(note)})" if note else " (pinned)"
        rows.append([
            generation.service,
            str(generation.number),
            formatting.local_time(generation.time),
            short_revision(generation.revision) or "-",
            *([formatting.printable(groups.label(generation))] if groups else []),
            names,
            formatting.size(total),
            formatting.size(new),
            formatting.size(stored),
        ])
        if drilled:
            last = drilled.get((generation.service, generation.number))
            failed = "" if last is None or last.ok else " FAILED"
            rows[-1].append("-" if last is None else formatting.local_time(last.time) + failed)
    header = ["service", "number", "time", "revision", *(["host"] if groups else [])]
    header += ["parts", "total", "new", "stored"]
    right = {1, *range(len(header) - 3, len(header))}
    header += ["drilled"] if drilled else []
    shown = formatting.table(rows, header=header, right=right)
    for name in _OPTIONAL:
        if width is None or max(map(len, shown.splitlines())) <= width:
            break
        at = header.index(name)
        for row in [header, *rows]:
            del row[at]
        right = {position - (position > at) for position in right if position != at}
        shown = formatting.table(rows, header=header, right=right)
    return shown


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
    header = ["part", "kind", "size", "files", "chunks", "new", "reused", "new bytes", "stored", "missed"]
    return formatting.table(rows, header=header, right=set(range(2, 10)))
