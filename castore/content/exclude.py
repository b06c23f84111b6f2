"""Which files of a tree are left out: patterns as in .gitignore, by the pathspec library."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

CACHE_TAG: Final = b"CACHEDIR.TAG"
CACHE_TAG_CONTENT: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""How the tag file of a directory of caches begins (the Cache Directory Tagging Specification)."""


class Exclude:
    """Patterns, relative to a tree's top; later ones win, `!` takes a path back in."""

    def __init__(self, patterns: Iterable[str]) -> None:
        # Imported here: it costs 20 ms, and most trees are taken whole.
        from pathspec import GitIgnoreSpec  # noqa: PLC0415

        self.patterns = tuple(patterns)
        self._spec = GitIgnoreSpec.from_lines(self.patterns)

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether the file at `path`, relative to the top, is left out."""
        return bool(self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else "")))
