"""Which files of a tree are left out: patterns as in .gitignore, matched by the pathspec library."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from castore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable


_CLASS: Final = r"(?<=.)\[:([a-z]+):\](?=.)"
_CLASSES: Final = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": " \t",
    "digit": "0-9",
    "lower": "a-z",
    "space": " \t\n\r\f\v",
    "upper": "A-Z",
    "xdigit": "0-9A-Fa-f",
}
_SET: Final = r"(?s)\\.|\[(\^?)(\]?(?:\\.|[^\]\\])*)\]"
"""A set in a regular expression; or an escaped character, which may be a bracket outside of sets."""
_RANGE: Final = r"(?s)(\\.|.)(?:-(\\.|.))?"
"""A character or a range in a set."""


class Exclude:
    """Patterns, relative to a tree's top; later ones have precedence, `!` includes a path again.

    top: the absolute path of the tree; a pattern may also begin with it. Raises UsageError for an invalid
    pattern.
    """

    def __init__(self, patterns: Iterable[str], top: str = "") -> None:
        # Imported here: the import takes 20 ms, and most trees are stored without patterns.
        from pathspec import GitIgnoreSpec  # noqa: PLC0415

        self.patterns = tuple(_relative(pattern, top) for pattern in patterns)
        if problems := [problem for pattern in self.patterns if (problem := _problem(pattern))]:
            raise UsageError("; ".join(problems))
        self._spec = GitIgnoreSpec(map(_compiled, self.patterns), backend="simple")

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether the file at `path`, relative to the top, is left out."""
        return bool(self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else "")))


def why_useless(pattern: str, top: str) -> str:
    """Return why a pattern can match nothing in the tree at `top`; empty if it can match."""
    path = pattern.removeprefix("!")
    if path.startswith("#") or not path.strip():
        return ""
    if path.rstrip("/") in {one.rstrip("/") for one in _names_of(top)}:
        return "it is the tree itself"
    if path.startswith("~/"):
        return "'~' is not replaced in patterns: write the path in full"
    names = path.strip("/").split("/")
    if {".", "..", ""} & set(names):
        return "a path in a tree contains no '.', '..' or '//': begin with '/' for the top of the tree"
    relative = _relative(path, top)
    if relative == path and path.startswith("/") and len(names) > 1 and os.path.lexists(path):
        inside = os.path.join(top, path.strip("/"))
        return "" if os.path.lexists(inside) else "it is a path outside of the tree"
    return ""


def _names_of(top: str) -> set[str]:
    """Return the absolute paths of a tree, with and without links."""
    return {os.path.abspath(top), os.path.realpath(top)} if top else set()


def _relative(pattern: str, top: str) -> str:
    """Return a pattern that begins with the tree's absolute path as one relative to the tree's top."""
    sign = "!" if pattern.startswith("!") else ""
    rest = pattern.removeprefix(sign)
    for one in _names_of(top):
        above = one.rstrip("/")
        if above and rest.startswith(above + "/"):
            return sign + rest.removeprefix(above)
    return pattern


def _without_classes(pattern: str) -> str:
    """Return a pattern with POSIX character classes replaced by ranges: the library does not know them."""
    if "[:" not in pattern:
        return pattern
    return re.sub(_CLASS, lambda found: _CLASSES.get(found[1], found[0]), pattern)


def _compiled(pattern: str) -> Any:
    """Return the library's form of a pattern. Raises ValueError, re.error."""
    from pathspec.patterns.gitignore.spec import GitIgnoreSpecPattern  # noqa: PLC0415

    expression, include = GitIgnoreSpecPattern.pattern_to_regex(_without_classes(pattern))
    if expression is None:
        return GitIgnoreSpecPattern(None)
    # Names may contain newlines, which the library's expressions do not expect.
    expression = re.sub(r"\$(?=\)*\Z)", r"\\Z", expression)
    return GitIgnoreSpecPattern(re.compile(re.sub(_SET, _escaped_set, expression), re.DOTALL), include)


def _escaped_set(found: re.Match[str]) -> str:
    """Return a set of a regular expression without what a later version of Python may read differently.

    Python warns of such sets, and to suppress warnings changes a setting of the whole process.
    """
    if found[2] is None:
        return found[0]  # an escaped character outside of sets
    ranges = re.finditer(_RANGE, found[2])
    items = (_quoted(ends[1]) + (f"-{_quoted(ends[2])}" if ends[2] else "") for ends in ranges)
    return f"[{found[1]}{''.join(items)}]"


def _quoted(item: str) -> str:
    return f"\\{item}" if item in "[]-&~|" else item


def _problem(pattern: str) -> str:
    """Return why a pattern is not valid; empty if it is."""
    try:
        pattern.encode()
        _compiled(pattern)
    except UnicodeEncodeError:
        reason = "it is not valid UTF-8"
    except (ValueError, re.error) as error:
        reason = str(error)
    else:
        return ""
    return f"the exclude pattern {pattern!r} is not valid: {reason} (see: man gitignore)"
