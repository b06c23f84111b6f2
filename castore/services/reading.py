"""Read a stored dump, or a file of a stored tree. Restores are in `castore.services.restore`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castore.content.stored_dirs import look_up, open_top, read_file
from castore.errors import DamageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.generation import Part
    from castore.services.selectors import Selection


def child_of(reader: StreamReader, part: Part, path: str) -> Child | None:
    """Return the entry at `path` in a tree, or None for a dump. Raises UsageError, NotFoundError."""
    if part.kind == "dump":
        if path:
            raise UsageError(f"{part.name!r} is a dump, which has no paths: select it without one")
        return None
    if part.content is None:
        raise DamageError(f"the tree {part.name!r} has no content: look for damage with castore verify")
    if not path:
        return open_top(reader, part.content)
    return look_up(reader, part.content, os.fsencode(path))


def read(reader: StreamReader, selection: Selection) -> Iterator[bytes]:
    """Yield the bytes of a selected dump, or of a selected file of a tree. Raises UsageError."""
    part = selection.part
    if part is None:
        raise UsageError("name a part: SERVICE@SELECTOR:PART, or :PART/PATH for a file of a tree")
    child = child_of(reader, part, selection.path)
    if child is None:
        return reader.read(part.content)
    if not child.entry.is_file:
        raise UsageError(
            f"{selection.path or part.name!r} is not a regular file: list a directory with 'castore ls'"
        )
    return read_file(reader, child)
