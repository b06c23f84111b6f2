"""What snapshots of a tree could not read, so that a restore in place does not delete it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castore.content.directories import look_up, open_directory
from castore.errors import NotFoundError, UsageError
from castore.model.generation import decode_details

if TYPE_CHECKING:
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation


def unread_paths(
    reader: StreamReader, generation: Generation | None, part: str, below: str = ""
) -> set[bytes]:
    """Return the paths of a tree whose content is not in a generation because reading it failed.

    below: a directory in the tree, which the paths are relative to.
    """
    found = generation.part(part) if generation is not None else None
    if generation is None or found is None or not found.missed or found.content is None:
        return set()
    details = decode_details(reader.read_all(generation.details.ref))
    prefix = os.fsencode(below).strip(b"/")
    prefix = prefix + b"/" if prefix else b""
    unread = set()
    for name, path, _ in details.warnings:
        if name != part or not path.startswith(prefix) or path in {b"", b"."}:
            continue
        try:
            child = look_up(reader, found.content, path)
        except (NotFoundError, UsageError):
            unread.add(path[len(prefix) :])
            continue
        # A directory that could not be listed is stored empty.
        if child.entry.is_dir and not open_directory(reader, child.ref):
            unread.add(path[len(prefix) :])
    return unread
