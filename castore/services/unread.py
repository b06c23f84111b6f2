"""Find what snapshots of a tree could not read, so that a restore in place does not delete it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from castore.content.scan.walker import UNLISTED
from castore.content.stored_dirs import look_up, open_directory
from castore.errors import NotFoundError, UsageError
from castore.fs.metadata import ATTRIBUTE
from castore.model.generation import MAX_DETAILS, decode_details

if TYPE_CHECKING:
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.generation import Generation
    from castore.model.refs import Ref


class Unread(NamedTuple):
    """What a snapshot could not read of a tree."""

    paths: set[bytes]
    """Paths whose content is not in the generation; b"": the directory that the paths are relative to."""
    attributes: set[bytes]
    """Paths that the generation has without some of their attributes."""


def unread_paths(reader: StreamReader, generation: Generation | None, part: str, below: str = "") -> Unread:
    """Return the paths of a tree that a generation lacks, or has incompletely, because reading them failed.

    below: a directory in the tree, which the paths are relative to. Raises DamageError.
    """
    stored = generation.part(part) if generation is not None else None
    if generation is None or stored is None or not stored.skipped_files or stored.content is None:
        return Unread(set(), set())
    details = decode_details(reader.read_all(generation.details.ref, MAX_DETAILS))
    prefix = os.fsencode(below).strip(b"/")
    prefix = prefix + b"/" if prefix else b""
    unread = Unread(set(), set())
    entries = _Entries(reader, stored.content)
    for name, shown, reason in details.warnings:
        if name != part:
            continue
        path = b"" if shown == b"." else shown
        if reason.startswith(ATTRIBUTE) and (path + b"/").startswith(prefix):
            unread.attributes.add(path[len(prefix) :])
        if path + b"/" == prefix:
            # The directory itself.
            if reason.startswith(UNLISTED):
                unread.paths.add(b"")
            continue
        if not path.startswith(prefix) or not path:
            continue
        child = entries.get(path)
        if child is None:
            unread.paths.add(path[len(prefix) :])
            continue
        # A directory that could not be listed is stored empty.
        if reason.startswith(UNLISTED) and not open_directory(reader, child.ref):
            unread.paths.add(path[len(prefix) :])
    return unread


class _Entries:
    """Looks up entries of a tree; consecutive entries of a directory read it once."""

    def __init__(self, reader: StreamReader, root: Ref) -> None:
        self._reader = reader
        self._root = root
        self._folder: bytes | None = None
        self._children: dict[bytes, Child] = {}

    def get(self, path: bytes) -> Child | None:
        """Return the entry at a path, or None."""
        folder, _, name = path.rpartition(b"/")
        if folder != self._folder:
            self._folder, self._children = folder, {}
            try:
                above = look_up(self._reader, self._root, folder)
            except (NotFoundError, UsageError):
                return None
            if above.entry.is_dir:
                self._children = {
                    child.entry.name: child for child in open_directory(self._reader, above.ref)
                }
        return self._children.get(name)
