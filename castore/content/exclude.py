"""Which files of a tree are left out: patterns as in .gitignore, by the pathspec library."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final

from castore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

CACHE_TAG: Final = b"CACHEDIR.TAG"
CACHE_TAG_CONTENT: Final = b"Signature: 8a477f597d28d172789f06886806bc55"
"""How the tag file of a directory of caches begins (the Cache Directory Tagging Specification)."""


class Exclude:
    """Patterns, relative to a tree's top; later ones win, `!` takes a path back in.

    top: the absolute path of the tree; a pattern that begins with it is about what is below it. Raises
    UsageError for a pattern that is not valid.
    """

    def __init__(self, patterns: Iterable[str], top: str = "") -> None:
        # Imported here: it costs 20 ms, and most trees are taken whole.
        from pathspec import GitIgnoreSpec  # noqa: PLC0415

        self.patterns = tuple(_relative(pattern, top) for pattern in patterns)
        for pattern in self.patterns:
            _check(pattern)
        self._spec = GitIgnoreSpec.from_lines(self.patterns, backend="simple")
        for one in self._spec.patterns:
            if one.regex is not None:
                # Names may have newlines, which the library's expressions do not expect.
                whole = re.sub(r"\$(?=\)*\Z)", r"\\Z", one.regex.pattern)
                one.regex = re.compile(whole, re.DOTALL)

    def matches(self, path: bytes, *, is_dir: bool) -> bool:
        """Whether the file at `path`, relative to the top, is left out."""
        return bool(self._spec.match_file(os.fsdecode(path) + ("/" if is_dir else "")))


def _relative(pattern: str, top: str) -> str:
    """Return a pattern with an absolute path below `top` as one that is relative to it."""
    sign = "!" if pattern.startswith("!") else ""
    rest = pattern.removeprefix(sign)
    above = top.rstrip("/")
    return sign + rest.removeprefix(above) if above and rest.startswith(above + "/") else pattern


def _check(pattern: str) -> None:
    from pathspec import GitIgnoreSpec  # noqa: PLC0415

    try:
        pattern.encode()
        GitIgnoreSpec.from_lines((pattern,), backend="simple")
    except UnicodeEncodeError:
        reason = "it is not valid UTF-8"
    except (ValueError, re.error) as error:
        reason = str(error)
    else:
        return
    shown = pattern.encode(errors="surrogateescape").decode(errors="backslashreplace")
    raise UsageError(f"the exclude pattern {shown!r} is not valid: {reason} (see: man gitignore)")
