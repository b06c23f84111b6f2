"""Versions of stored paths, as text and as JSON."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.messages import report

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation
    from castore.services.find import Hit, Span


def undamaged(service: str, found: Any, damaged: list[str]) -> Iterator[Hit]:
    """Yield the hits; add directories that could not be read to `damaged`."""
    from castore.services.find import Hit

    for one in found:
        if isinstance(one, Hit):
            yield one
        else:
            part, (path, reason) = one
            damaged.append(f"{service}:{part}/{formatting.printable(path)}: {reason}")


def report_damaged(damaged: list[str]) -> None:
    """Print the directories that could not be read. Raises DamageError if there are any."""
    from castore.errors import DamageError

    for line in damaged:
        report(line)
    if damaged:
        raise DamageError(
            f"{formatting.count(len(damaged), 'directory', 'directories')} could not be read and not searched"
            "; 'castore verify' says which generations are damaged"
        )


def number_range(generations: list[Generation]) -> str:
    """Return the numbers of generations, the oldest first: `3-7`."""
    first, last = generations[0].number, generations[-1].number
    return f"{first}" if first == last else f"{first}-{last}"


def is_directory(span: Span) -> bool:
    """Return whether a path was a directory in a version of it."""
    return span.entry is not None and stat.S_ISDIR(span.entry.st_mode)


def plain_hit(hit: Hit) -> dict[str, Any]:
    """Return the versions of a path for JSON."""
    return {
        "host": hit.host,
        "part": hit.part,
        "path": formatting.printable(hit.path),
        "versions": [
            {
                "first": span.generations[0].number,
                "last": span.generations[-1].number,
                **times("from", span.generations[0].time),
                **times("to", span.generations[-1].time),
                "exists": span.exists,
                "size": span.size,
                "mode": span.entry.st_mode if span.entry is not None else None,
                **times("mtime", span.entry.mtime if span.entry is not None else None),
                "change": span.change or None,
            }
            for span in hit.spans
        ],
    }
