"""List what a generation, a part or a directory of it contains."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castore.content.allowance import Allowance
from castore.content.stored_dirs import look_up, open_directory, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.model.generation import Part
    from castore.services.selectors import Selection


def list_entries(
    reader: StreamReader, selection: Selection, *, recursive: bool = False
) -> Iterator[tuple[bytes, Child | Part]]:
    """Yield (path, entry) of what is selected: a dump is listed as its part.

    Of a generation: its parts; of a directory: its entries; of a file: the file itself. recursive: everything
    below, too; then paths in a generation begin with the name of the part. Raises NotFoundError, UsageError,
    DamageError, IdentityError.
    """
    parts = [selection.part] if selection.part else list(selection.generation.parts)
    for part in parts:
        prefix = b"" if selection.part else os.fsencode(part.name)
        if part.kind == "dump" or part.content is None:
            yield os.fsencode(part.name), part
            continue
        top = look_up(reader, part.content, os.fsencode(selection.path))
        if not selection.part and not recursive:
            yield prefix, top
        elif not top.entry.is_dir:
            yield top.entry.name, top
        elif recursive:
            yield from walk(reader, top, Allowance.of([part]), prefix)
        else:
            for child in open_directory(reader, top.ref):
                yield child.entry.name, child
