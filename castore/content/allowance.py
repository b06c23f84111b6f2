"""Bounds for walks through stored trees.

A few directories that refer to each other many times have more paths than any machine can walk. The number of
entries in a generation's record bounds a walk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import DamageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Part


class Allowance:
    """Counts the directories that a walk enters, and limits their number."""

    def __init__(self, most: int | None = None) -> None:
        """Allow this number of directories; None: their number is not known."""
        self._left = most

    @classmethod
    def of(cls, parts: Iterable[Part | None], times: int = 1) -> Allowance:
        """Allow the directories that some trees can have: their entries, and the top and the root of each.

        times: how often a walk counts each directory.
        """
        return cls(times * sum(part.files + 2 for part in parts if part is not None))

    def enter(self, count: int = 1) -> None:
        """Count directories. Raises DamageError if there are more than allowed."""
        if self._left is None:
            return
        self._left -= count
        if self._left < 0:
            raise DamageError("a tree has more directories than the record of its generation says")
