"""Compare two generations, or a part or a path of both."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from castore.content.allowance import Allowance
from castore.content.diff import TIMES, diff_entries, diff_streams, diff_trees
from castore.errors import NotFoundError, UsageError
from castore.services.reading import child_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.streams import StreamReader
    from castore.model.generation import Part
    from castore.services.selectors import Selection


class Difference(msgspec.Struct, frozen=True):
    """How a part, or a path in a tree, differs between two generations."""

    part: str
    """The name of the part."""
    change: str
    """One of "added", "removed", "content", "metadata"."""
    path: bytes | None = None
    """The path in the tree, or None for the part itself."""
    removed_bytes: int | None = None
    """Of a dump: bytes in chunks that only the older one has; else None."""
    added_bytes: int | None = None
    """Of a dump: bytes in chunks that only the newer one has; else None."""


def differences(reader: StreamReader, old: Selection, new: Selection) -> Iterator[Difference]:
    """Yield what differs between two selections.

    A part or path in one of the two also applies to the other, unless that has its own. Raises NotFoundError
    if neither has the path; UsageError, IdentityError, DamageError.
    """
    before, after = old.generation, new.generation
    named = old.part or new.part
    if named is None:
        names = [part.name for part in before.parts]
        names += [part.name for part in after.parts if part.name not in names]
        for name in names:
            yield from _of_part(reader, name, before.part(name), after.part(name))
        return
    first = old.part or before.part(named.name)
    second = new.part or after.part(named.name)
    old_path = old.path if old.part else new.path
    new_path = new.path if new.part else old.path
    if (old_path or new_path) and first is not None and second is not None:
        yield from _of_path(reader, named.name, (first, old_path), (second, new_path))
    else:
        yield from _of_part(reader, named.name, first, second)


def _of_path(
    reader: StreamReader, name: str, old: tuple[Part, str], new: tuple[Part, str]
) -> Iterator[Difference]:
    """Yield the differences at and below a path of two trees. Raises NotFoundError if neither has it."""
    children: list[Any] = []
    missing: list[NotFoundError | UsageError] = []
    for part, path in (old, new):
        try:
            children.append(child_of(reader, part, path))
        except (NotFoundError, UsageError) as error:
            children.append(None)
            missing.append(error)
    if len(missing) == len(children):
        raise missing[0]
    top = os.fsencode((new[1] or old[1]).strip("/"))
    before, after = children
    allowance = Allowance.of([old[0], new[0]], TIMES)
    for difference in diff_entries(reader, before, after, top, allowance):
        yield Difference(name, difference.change, difference.path)


def _of_part(reader: StreamReader, name: str, old: Part | None, new: Part | None) -> Iterator[Difference]:
    if old is None or new is None or old.kind != new.kind:
        yield Difference(name, "added" if old is None else "removed" if new is None else "content")
    elif old.kind == "dump":
        found = diff_streams(reader.store, old.content, new.content)
        if found != (0, 0) or old.size != new.size:
            yield Difference(name, "content", None, found.removed, found.added)
    elif old.content is not None and new.content is not None:
        allowance = Allowance.of([old, new], TIMES)
        for difference in diff_trees(reader, old.content, new.content, allowance):
            yield Difference(name, difference.change, difference.path)
