"""The small-file streams of a stored tree."""

from __future__ import annotations

from castore.content.allowance import Allowance
from castore.content.stored_dirs import open_directory, open_top, walk
from castore.content.streams import StreamReader
from castore.model.generation import Generation
from castore.model.tree import Content
from tests.support.stores import Sandbox


def streams_of(sandbox: Sandbox, taken: Generation) -> dict[bytes, int]:
    """Return how many small-file streams each directory of a stored tree has."""
    found = {}
    with sandbox.open() as store, StreamReader(store) as reader:
        root = taken.parts[0].root
        assert root is not None
        top = open_top(reader, root.ref)
        for path, child in [(b"", top), *walk(reader, top, Allowance())]:
            if child.entry.is_dir and child.ref is not None:
                children = open_directory(reader, child.ref)
                small = [one.ref for one in children if one.entry.content == Content.SMALL_FILES]
                found[path] = len({*small})
    return found
