"""Patterns for paths in a tree: `*.log`, `/etc/*.conf`, `/home/**/*.key`."""

from __future__ import annotations

import fnmatch
import os
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Final, TypeAlias

from castore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

States: TypeAlias = frozenset[int]
"""Numbers of the pattern's components that the next name on a path may match."""

_ANY_DEPTH: Final = "**"


class PathPattern:
    """A pattern, matched name by name from the root of a tree down.

    A pattern that begins with `/` matches from the top of the tree, any other at every depth. `*`, `?` and
    `[...]` match within a name, a component `**` matches any number of directories, and a `/` at the end
    matches only directories. The first name on every path is that of the root's only entry, which is empty.
    """

    def __init__(self, pattern: str, *, ignore_case: bool = False) -> None:
        """Compile a pattern. Raises UsageError if it is not valid."""
        names = [name for name in pattern.split("/") if name not in {"", "."}]
        if ".." in names:
            raise UsageError(f"the pattern {pattern!r} has '..' in it: write the path without it")
        if "\0" in pattern or not names:
            raise UsageError(f"the pattern {pattern!r} matches no path: write a name or a path")
        if not pattern.startswith("/"):
            names.insert(0, _ANY_DEPTH)
        self.directories_only = pattern.endswith("/")
        self._build(["", *names], [_matcher(name, ignore_case) for name in ["", *names]])
        pieces, exact = _pieces(names[-1])
        # In an encoding that is not self-synchronizing, or if case is ignored, bytes do not identify
        # characters.
        known = not ignore_case and sys.getfilesystemencoding() == "utf-8"
        self._pieces, self._exact = (pieces, exact) if known else ([b"", b""], False)

    @classmethod
    def literal(cls, path: str) -> PathPattern:
        """Return the pattern that matches exactly one path; empty: the top of the tree."""
        self = cls.__new__(cls)
        names = ["", *(name for name in path.split("/") if name not in {"", "."})]
        self.directories_only = False
        self._build(["/"] * len(names), [name.__eq__ for name in names])
        self._pieces, self._exact = [os.fsencode(names[-1])], True
        return self

    def _build(self, names: list[str], matchers: list[Callable[[str], bool]]) -> None:
        self._deep = [name == _ANY_DEPTH for name in names]
        self._matchers = matchers
        self.start = self._closed({0})
        final = matchers[-1]
        # Most names occur in many generations.
        cached = lru_cache(maxsize=1 << 16)
        self.matches_name: Callable[[bytes], bool] = cached(lambda name: final(os.fsdecode(name)))
        self.after: Callable[[States, bytes], States] = cached(self._after)

    def _closed(self, states: set[int]) -> States:
        """Return the states, and those that they reach without a name."""
        found = set(states)
        for state in sorted(states):
            passed = state
            while passed < len(self._deep) and self._deep[passed]:
                passed += 1
                found.add(passed)
        return frozenset(found - {len(self._deep)})

    def _after(self, states: States, name: bytes) -> States:
        """Return the states after a directory's name; none if nothing in it can match."""
        text = os.fsdecode(name)
        after = {state for state in states if self._deep[state]}
        after.update(state + 1 for state in states if not self._deep[state] and self._matchers[state](text))
        return self._closed(after)

    def last(self, states: States) -> Callable[[bytes], bool] | None:
        """Return the function that decides whether a name ends a match here; None if no name does."""
        return self.matches_name if len(self._deep) - 1 in states else None

    def leads(self, states: States) -> bool:
        """Whether a match can be below a directory here."""
        return any(self._deep[state] or state + 1 < len(self._deep) for state in states)

    @property
    def pieces(self) -> bytes:
        """Bytes that every matching last name has, with a NUL where any bytes may be."""
        return b"\0".join(self._pieces)

    @property
    def is_exact(self) -> bool:
        """Whether every name with these pieces ends a match, as far as states allow one."""
        return self._exact

    @property
    def needle(self) -> bytes:
        """Bytes that occur in every name that ends a match."""
        return max(self._pieces, key=len)


def _matcher(name: str, ignore_case: bool) -> Callable[[str], bool]:
    flags = re.IGNORECASE if ignore_case else 0
    matched = re.compile(fnmatch.translate(name), flags).match
    return lambda text: matched(text) is not None


def _pieces(name: str) -> tuple[list[bytes], bool]:
    """Return the bytes in every name that a component matches, and whether all names with them match.

    Any bytes may be between the pieces. The first piece is at the beginning, the last at the end.
    """
    pieces = re.split(r"\[.*\]|[*?\[\]]", name)
    between = re.findall(r"\[.*\]|[*?\[\]]", name)
    # A part of a character, which only an invalid name has, may also occur in a character.
    valid = not any("\udc80" <= char <= "\udcff" for char in name)
    return [os.fsencode(piece) for piece in pieces], valid and set(between) <= {"*"}
