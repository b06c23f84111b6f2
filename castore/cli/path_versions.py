"""Versions of stored paths, as text and as JSON."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING, Any

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.messages import report

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.services.find import Hit, Span


class DamagedDirectories:
    """Collects the directories of a service that could not be read."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def of(self, service: str) -> Callable[[str, bytes, str], None]:
        """Return a function that takes the part, the path and the reason for each directory."""

        def take(part: str, path: bytes, reason: str) -> None:
            self.lines.append(f"{service}:{part}/{formatting.printable(path)}: {reason}")

        return take

    def refuse(self) -> None:
        """Print the directories. Raises DamageError if there are any."""
        from castore.errors import DamageError

        for line in self.lines:
            report(line)
        if self.lines:
            directories = formatting.count(len(self.lines), "directory", "directories")
            raise DamageError(
                f"{directories} could not be read and not searched; 'castore verify' says which generations "
                "are damaged"
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
