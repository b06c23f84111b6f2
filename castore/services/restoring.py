"""Stored parts into a directory beside the live state."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.content.directories import Child, look_up, open_top, read_file
from castore.content.live import OPEN_DIRECTORY
from castore.content.restore import Report, open_destination, restore_directory, restore_file
from castore.content.streams import StreamReader
from castore.errors import StorageError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.attributes import Ownership
    from castore.model.generation import Part
    from castore.model.tally import Tally
    from castore.services.select import Selection
    from castore.store import Store

_CREATE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass
class Restored:
    """What a restore put where, and what it could not do."""

    placed: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def restore(
    store: Store, selection: Selection, destination: str, ownership: Ownership, tally: Tally
) -> Restored:
    """Put what is selected into `destination`, which must be new or empty.

    A whole generation: each tree and each dump under its part's name. A part or path that is a
    directory: what is in it. A dump, or one file of a tree: as a file of its name. Files that are
    damaged are missing, and named in the report. Raises UsageError, DamageError, IdentityError.
    """
    with StreamReader(store) as reader:
        parts = [selection.part] if selection.part else list(selection.generation.parts)
        # Looked up before the destination is made: a wrong path leaves nothing behind.
        children = {part.name: child_of(reader, part, selection.path) for part in parts}
        # A wrong identity, too.
        store.identity()
        made = not os.path.lexists(destination)
        top = open_destination(destination)
        try:
            result = Restored()
            for part in parts:
                into = None if selection.part else os.fsencode(part.name)
                _restore_part(reader, top, part, children[part.name], into, ownership, tally, result)
        except BaseException:
            if made:
                # If nothing is in it: it would stand in the way of the next try.
                with contextlib.suppress(OSError):
                    os.rmdir(destination)
            raise
        finally:
            os.close(top)
    result.placed = [os.path.join(destination, name) for name in result.placed]
    return result


def child_of(reader: StreamReader, part: Part, path: str) -> Child | None:
    """Return what is at `path` in a tree; None for a dump."""
    if part.kind == "dump":
        if path:
            raise UsageError(f"{part.name!r} is a dump: there are no paths in it")
        return None
    if part.content is None:
        raise AssertionError("a tree has a root")
    if not path:
        return open_top(reader, part.content)
    return look_up(reader, part.content, os.fsencode(path))


def _restore_part(
    reader: StreamReader,
    top: int,
    part: Part,
    child: Child | None,
    into: bytes | None,
    ownership: Ownership,
    tally: Tally,
    result: Restored,
) -> None:
    if child is None:
        _restore_dump(reader, top, part, tally)
        result.placed.append(part.name)
        return
    if not child.entry.is_dir:
        report = restore_file(reader, top, child.entry.name, child, ownership, tally)
        result.placed.append(os.fsdecode(child.entry.name))
    elif into is None:
        report = restore_directory(reader, top, child, ownership, tally)
        result.placed.append("")
    else:
        os.mkdir(into, 0o700, dir_fd=top)
        fd = os.open(into, OPEN_DIRECTORY, dir_fd=top)
        try:
            report = restore_directory(reader, fd, child, ownership, tally)
        finally:
            os.close(fd)
        result.placed.append(part.name)
    prefix = into + b"/" if into else b""
    result.report.warnings += [(prefix + path, reason) for path, reason in report.warnings]
    result.report.damaged += [(prefix + path, reason) for path, reason in report.damaged]


def _restore_dump(reader: StreamReader, top: int, part: Part, tally: Tally) -> None:
    """Write a dump under another name until it is whole: half a dump must not look like one."""
    partial = part.name + ".partial"
    fd = os.open(partial, _CREATE, 0o600, dir_fd=top)
    try:
        for data in reader.read(part.content):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(fd, rest) :]
            tally.read += len(data)
        os.rename(partial, part.name, src_dir_fd=top, dst_dir_fd=top)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(partial, dir_fd=top)
        if isinstance(error, OSError):
            raise StorageError(f"cannot write {partial}: {error.strerror}") from error
        raise
    finally:
        os.close(fd)


def read(reader: StreamReader, selection: Selection) -> Iterator[bytes]:
    """Yield the bytes of a selected dump, or of a selected file of a tree."""
    part = selection.part
    if part is None:
        raise UsageError("name a part: SERVICE@SELECTOR:PART, or :PART/PATH for a file of a tree")
    child = child_of(reader, part, selection.path)
    if child is None:
        return reader.read(part.content)
    if not child.entry.is_file:
        raise UsageError(
            f"{selection.path or part.name!r} is no regular file: 'castore ls' lists directories"
        )
    return read_file(reader, child)
