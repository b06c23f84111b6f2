"""Compare two stored trees, or two stored streams.

Parts that both share have the same reference, and are not read.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from castore.content.allowance import Allowance
from castore.content.stored_dirs import Child, open_directory, open_top, read_file
from castore.content.streams import RangeReader
from castore.kernel.id_set import IdSet
from castore.model.refs import Ref, RefKind
from castore.model.tree import Content
from castore.store.reachability import Walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.streams import StreamReader
    from castore.store import Store


TIMES: Final = 4
"""The most times that a comparison counts one entry in its allowance."""


class Difference(NamedTuple):
    """A path that differs between two trees."""

    change: Literal["added", "removed", "content", "metadata"]
    path: bytes


_Nested: TypeAlias = "Difference | Iterator[_Nested]"
"""A difference, or those in a directory."""


def diff_trees(
    reader: StreamReader, old: Ref, new: Ref, allowance: Allowance | None = None
) -> Iterator[Difference]:
    """Yield the differences between the tree `old` and the tree `new`, in the order of paths.

    Raises DamageError if there are more than `allowance` allows; an entry counts up to TIMES times.
    """
    if old == new:
        return
    contents = _Contents(reader)
    compared = _compare(reader, open_top(reader, old), open_top(reader, new), b"", contents)
    yield from _flattened(compared, allowance)


def diff_entries(
    reader: StreamReader,
    old: Child | None,
    new: Child | None,
    path: bytes,
    allowance: Allowance | None = None,
) -> Iterator[Difference]:
    """Yield the differences between two entries at `path` and below; None: there is no entry."""
    contents = _Contents(reader)
    if old is not None and new is not None:
        yield from _flattened(_compare(reader, old, new, path, contents), allowance)
    elif old is not None:
        yield Difference("removed", path)
        yield from _flattened(_all(reader, old, path, "removed"), allowance)
    elif new is not None:
        yield Difference("added", path)
        yield from _flattened(_all(reader, new, path, "added"), allowance)


def _flattened(differences: Iterator[_Nested], allowance: Allowance | None) -> Iterator[Difference]:
    """Yield the differences of nested iterators in order, without recursion, because trees may be deep."""
    allowance = allowance or Allowance()
    stack = [differences]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
        elif isinstance(found, Difference):
            yield found
        else:
            allowance.enter()
            stack.append(found)


class _Contents:
    """Compares the files of a directory; keeps the last chunk that was read of each small-file stream."""

    def __init__(self, reader: StreamReader) -> None:
        self._reader = reader
        self._small_files: dict[Ref | None, RangeReader] = {}

    def same(self, old: Child, new: Child) -> bool:
        """Whether two files of one size have the same bytes. Small files must be read."""
        kinds = {old.entry.content, new.entry.content}
        if kinds == {Content.OWN}:
            return False  # only content decides how a stream is cut: other references mean other bytes
        if kinds == {Content.SMALL_FILES}:
            return self._read(old) == self._read(new)
        return b"".join(read_file(self._reader, old)) == b"".join(read_file(self._reader, new))

    def _read(self, child: Child) -> bytes | memoryview:
        small_files = self._small_files.get(child.ref)
        if small_files is None:
            small_files = self._small_files[child.ref] = RangeReader(self._reader.store, child.ref)
        return small_files.read(child.offset, child.entry.size)


def _compare(
    reader: StreamReader, old: Child, new: Child, path: bytes, contents: _Contents
) -> Iterator[_Nested]:
    if old.entry.is_dir and new.entry.is_dir:
        if _metadata(old) != _metadata(new):
            yield Difference("metadata", path or b".")
        if old.ref != new.ref:
            yield _compare_directories(reader, old, new, path)
    elif not _same_content(contents, old, new):
        yield Difference("content", path)
        yield _below(reader, old, new, path)
    elif _metadata(old) != _metadata(new):
        yield Difference("metadata", path)


def _below(reader: StreamReader, old: Child, new: Child, path: bytes) -> Iterator[_Nested]:
    """Yield the content of a directory that was replaced by another kind of file, or that replaced one."""
    if old.entry.is_dir:
        yield _all(reader, old, path, "removed")
    if new.entry.is_dir:
        yield _all(reader, new, path, "added")


def _compare_directories(
    reader: StreamReader, old: Child, new: Child, path: bytes
) -> Iterator[_Nested]:
    before = _children(reader, old)
    after = _children(reader, new)
    contents = _Contents(reader)
    for name in sorted(before.keys() | after.keys()):
        below = path + b"/" + name if path else name
        if name not in after:
            yield Difference("removed", below)
            yield _all(reader, before[name], below, "removed")
        elif name not in before:
            yield Difference("added", below)
            yield _all(reader, after[name], below, "added")
        else:
            yield _compare(reader, before[name], after[name], below, contents)


def _all(
    reader: StreamReader, child: Child, path: bytes, change: Literal["added", "removed"]
) -> Iterator[_Nested]:
    if not child.entry.is_dir:
        return
    for name, below in _children(reader, child).items():
        yield Difference(change, path + b"/" + name)
        yield _all(reader, below, path + b"/" + name, change)


def _children(reader: StreamReader, child: Child) -> dict[bytes, Child]:
    return {found.entry.name: found for found in open_directory(reader, child.ref)}


def _metadata(child: Child) -> tuple[object, ...]:
    """Return the metadata of an entry that is compared: inode numbers carry no information."""
    entry = child.entry
    return entry.mode, entry.uid, entry.gid, entry.mtime, entry.extra.xattrs


def _same_content(contents: _Contents, old: Child, new: Child) -> bool:
    one, other = old.entry, new.entry
    kind = (one.type, one.size, one.extra.target, one.extra.device, one.extra.extents)
    if kind != (other.type, other.size, other.extra.target, other.extra.device, other.extra.extents):
        return False
    if old.ref == new.ref and old.offset == new.offset:
        return True
    return contents.same(old, new)


class StreamDifference(NamedTuple):
    """How two streams differ, counted in whole chunks."""

    removed: int
    """Bytes of the old stream in chunks that the new one does not have."""
    added: int
    """Bytes of the new stream in chunks that the old one does not have."""


def diff_streams(store: Store, old: Ref | None, new: Ref | None) -> StreamDifference:
    """Return how much of two streams is not shared, from their references only.

    Memory grows by 12 to 16 bytes per chunk.
    """
    if old == new:
        return StreamDifference(0, 0)
    before, after = IdSet(), IdSet()
    removed = added = 0
    for ids, sizes in _chunks(store, old):
        removed += sum(itertools.compress(sizes, before.add(ids)))
    for ids, sizes in _chunks(store, new):
        is_shared = before.find(ids)
        for size, is_first, shared in zip(sizes, after.add(ids), is_shared, strict=True):
            if is_first and shared:
                removed -= size
            elif is_first:
                added += size
    return StreamDifference(removed, added)


def _chunks(store: Store, ref: Ref | None) -> Iterator[tuple[bytes, list[int]]]:
    """Yield the joined ids of chunks of a stream, and their lengths; each node is read once."""
    for refs in Walk(store).refs([ref] if ref is not None else []):
        chunks = [one for one in refs if one.kind is RefKind.CHUNK]
        yield b"".join([chunk.id for chunk in chunks]), [chunk.size for chunk in chunks]
