"""Stored directories: their entries, each joined with the place of its content."""

from __future__ import annotations

import contextlib
import os
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_list
from castore.content.streams import RangeReader, read_chunks
from castore.errors import DamageError, NotFoundError, UsageError
from castore.kernel.dir_entries import Split, count_entries, split_entries
from castore.model.odd_text import escaped
from castore.model.refs import RefKind, decode_node
from castore.model.tree import (
    MAX_ENTRIES_BYTES,
    NOBODY,
    ROOT_NAME,
    Content,
    Entry,
    Located,
    Owners,
    decode_entries,
    decode_entry,
    decode_owners,
    locate,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from castore.content.allowance import Allowance
    from castore.content.streams import StreamReader
    from castore.model.refs import RecordId, Ref


_LEAST_ENTRY: Final = 16
"""The fewest bytes of an encoded entry."""
_FEW_REFS: Final = 4096
"""How many references are read before the entries are counted."""


class Child(NamedTuple):
    """An entry of a stored directory, and its content."""

    entry: Entry
    ref: Ref | None
    """The reference that holds its content: the directory, its own stream, or a small-file stream."""
    offset: int
    """The offset in the small-file stream at which its content begins."""
    owners: Owners
    """Names of users and groups, from the directory that contains the entry."""


def open_directory(reader: StreamReader, ref: Ref | None, *, root: bool = False) -> list[Child]:
    """Return the entries of the directory that `ref` names; None: its content was not stored.

    root: whether it is the root of a tree, in which the top directory has the empty name. Raises DamageError,
    MissingError, IdentityError.
    """
    if ref is None:
        return []
    refs = references(reader, ref)
    first = _first(refs, ref)
    owners, entries = decode_entries(reader.read_all(first, MAX_ENTRIES_BYTES))
    if not root and entries and entries[0].name == ROOT_NAME:
        raise DamageError(f"the directory {ref.id.hex()} has an entry without a name")
    located, ends = locate(owners, entries)
    return _joined(ref, refs[1:], located, owners, ends)[0]


class Opened(NamedTuple):
    """A directory that was opened to be restored."""

    others: list[Child]
    """The entries that are not in `plain`."""
    plain: Split | None = None
    """Its plain files."""
    small_files: Sequence[Ref | None] = ()
    """Its small-file streams; None for one that is too short."""
    owners: Owners = NOBODY
    chunks: Mapping[RecordId, bytes | memoryview] = MappingProxyType({})
    """Chunks that were read with it, by id."""

    def plain_children(
        self, first: int = 0, end: int | None = None, stream: int | None = None
    ) -> list[Child]:
        """Return its plain files, or those among its entries [first, end) that are in one stream."""
        found = self.plain.encoded(first, end, stream) if self.plain is not None else []
        return [self._child(*placed) for placed in found]

    def _child(self, frame: bytes, stream: int, offset: int) -> Child:
        entry = decode_entry(frame)
        content = self.small_files[stream] if entry.content is Content.SMALL_FILES else None
        return Child(entry, content, offset, self.owners)


class Fetched(NamedTuple):
    """The references of a directory, and the chunks that were read with them, by id."""

    refs: list[Ref]
    chunks: Mapping[RecordId, bytes | memoryview]


def fetch_directory(reader: StreamReader, ref: Ref, room: int) -> Fetched:
    """Read a directory, and those of its streams that are one chunk each, up to `room` bytes.

    The parts of one directory were stored together, so few requests read them. Raises as `open_directory`;
    damaged chunks are left out.
    """
    refs = references(reader, ref)
    wanted = []
    for one in refs:
        if one.kind is RefKind.CHUNK and one.size <= room:
            wanted.append(one)
            room -= one.size
    chunks: dict[RecordId, bytes] = {}
    with contextlib.suppress(DamageError):
        chunks = dict(zip((one.id for one in wanted), read_chunks(reader.store, wanted), strict=True))
    return Fetched(refs, chunks)


def fetch_directories(reader: StreamReader, wanted: list[Ref]) -> list[Fetched | None]:
    """Read the entries of several directories with few requests.

    Returns None for a directory that has to be read by itself: it is large, or a part of it is damaged.
    """
    try:
        nodes = reader.store.reader.read_nodes_bytes([ref.id for ref in wanted])
        listed = [_flat(ref, plain) for ref, plain in zip(wanted, nodes, strict=True)]
        firsts = {refs[0].id: refs[0] for refs in listed if refs}
        found = dict(zip(firsts, read_chunks(reader.store, list(firsts.values())), strict=True))
    except DamageError:
        return [None] * len(wanted)
    return [Fetched(refs, {refs[0].id: found[refs[0].id]}) if refs else None for refs in listed]


def _flat(ref: Ref, plain: bytes) -> list[Ref]:
    """Return the references of a directory that is one node; none if `references` has to be used."""
    refs = decode_node(plain)
    if sum(one.size for one in refs) != ref.size or refs[0].kind is not RefKind.CHUNK:
        return []
    if len(refs) > 2 + refs[0].size // _LEAST_ENTRY or any(one.kind is RefKind.INNER for one in refs):
        return []
    return refs


def open_fetched(reader: StreamReader, ref: Ref, fetched: Fetched) -> Opened:
    """Return the content of a directory that was read. Raises as `open_directory`."""
    refs, chunks = fetched
    first = _first(refs, ref)
    data = bytes(chunks.get(first.id, b"")) or reader.read_all(first, MAX_ENTRIES_BYTES)
    owners, at = decode_owners(data)
    split = split_entries(data, at, owners.runs)
    if split is None:
        return Opened(open_directory(reader, ref), owners=owners, chunks=chunks)
    located = [Located(decode_entry(frame), stream, offset) for frame, stream, offset in split.others]
    others, small_files = _joined(ref, refs[1:], located, owners, split.ends)
    return Opened(others, split, small_files, owners, chunks)


def references(reader: StreamReader, ref: Ref) -> list[Ref]:
    """Return the references of a directory. Raises DamageError.

    A few nodes that name each other often can represent more than any machine has room for. So only as many
    references are read as the entries, which come first, can need.
    """
    refs: list[Ref] = []
    most = counted = 0
    for _, child in iter_list(reader.store, ref):
        refs.append(child)
        if not most:
            most = 2 + child.size // _LEAST_ENTRY
        if len(refs) > _FEW_REFS and not counted:
            # A reference states the length of the entries, which need not be true.
            data = reader.read_all(refs[0], MAX_ENTRIES_BYTES)
            counted = count_entries(data)
            most = min(most, 1 + counted)  # the first of the counted are the owners
        if len(refs) > most:
            raise DamageError(f"the directory {ref.id.hex()} refers to more than its entries name")
    return refs


def _first(refs: list[Ref], ref: Ref) -> Ref:
    if not refs:
        raise DamageError(f"the directory {ref.id.hex()} lacks its entries")
    return refs[0]


def _joined(
    ref: Ref, found: list[Ref], located: list[Located], owners: Owners, ends: list[int]
) -> tuple[list[Child], list[Ref | None]]:
    """Return entries with their content, and the small-file streams.

    found: the directory's references after its entries. ends: where the last file of each small-file stream
    ends.
    """
    refs = iter(found)
    streams = (_expect(refs, ref) for _ in ends)
    # It is not known what is wrong with a stream that is too short: none of its files is restored.
    small_files = [stream if stream.size >= end else None for stream, end in zip(streams, ends, strict=True)]
    own = [entry for entry, _, _ in located if entry.content is Content.OWN]
    # Streams of files come before subdirectories, each in the order of entries.
    holders = sorted(own, key=lambda entry: entry.is_dir)
    held = {entry.name: _expect(refs, ref) for entry in holders}
    if next(refs, None) is not None:
        raise DamageError(f"the directory {ref.id.hex()} refers to more than its entries name")
    children = []
    for entry, stream, offset in located:
        if entry.content is Content.SMALL_FILES:
            children.append(Child(entry, small_files[stream], offset, owners))
            continue
        content = held.get(entry.name)
        if entry.is_dir and content is not None and content.kind is not RefKind.LIST:
            raise DamageError(f"the directory {ref.id.hex()} has a subdirectory that is not a list")
        children.append(Child(entry, content, 0, owners))
    return children, small_files


def _expect(refs: Iterator[Ref], ref: Ref) -> Ref:
    found = next(refs, None)
    if found is None:
        raise DamageError(f"the directory {ref.id.hex()} lacks content that its entries need")
    return found


def open_top(reader: StreamReader, root: Ref) -> Child:
    """Return the top directory of the tree with this root. Raises DamageError."""
    children = open_directory(reader, root, root=True)
    if len(children) != 1 or children[0].entry.name != ROOT_NAME or not children[0].entry.is_dir:
        raise DamageError(f"the tree {root.id.hex()} has no single top directory")
    return children[0]


def look_up(reader: StreamReader, root: Ref, path: bytes) -> Child:
    """Return the entry at `path` in a tree; links are not followed. Raises NotFoundError, UsageError."""
    child = open_top(reader, root)
    seen = b""
    for name in path.split(b"/"):
        if name in {b"", b"."}:
            continue
        shown = escaped(os.fsdecode(seen)) or "the top of the tree"
        if not child.entry.is_dir:
            raise UsageError(f"{shown} is not a directory: 'castore ls' lists the tree")
        matches = [c for c in open_directory(reader, child.ref) if c.entry.name == name]
        if not matches:
            raise NotFoundError(f"there is no {os.fsdecode(name)!r} in {shown}; 'castore ls' lists it")
        child = matches[0]
        seen = seen + b"/" + name if seen else name
    return child


def walk(
    reader: StreamReader, top: Child, allowance: Allowance, path: bytes = b""
) -> Iterator[tuple[bytes, Child]]:
    """Yield everything below `top`, depth first in the order of names, with its path. Raises DamageError."""
    stack = [_located(reader, top, path)]
    while stack:
        item = next(stack[-1], None)
        if item is None:
            stack.pop()
            continue
        yield item
        if item[1].entry.is_dir:
            allowance.enter()
            stack.append(_located(reader, item[1], item[0]))


def _located(reader: StreamReader, child: Child, path: bytes) -> Iterator[tuple[bytes, Child]]:
    for found in open_directory(reader, child.ref):
        name = found.entry.name
        yield (path + b"/" + name if path else name), found


def check_content(child: Child) -> None:
    """Raise DamageError unless the content of an entry has the length that the entry states."""
    entry, ref, _, _ = child
    if not entry.is_file:
        return
    if entry.content is Content.SMALL_FILES:
        if ref is None:
            raise DamageError("its small-file stream is shorter than the entries of its directory say")
        return
    stored = sum(length for _, length in entry.extents_or_whole)
    found = ref.size if ref is not None else 0
    if found != stored:
        how = "shorter" if found < stored else "longer"
        raise DamageError(f"a file's stream is {how} than its entry says: {found} and {stored} bytes")


def read_data(
    reader: StreamReader, child: Child, whole: bytes | memoryview | None = None
) -> Iterator[tuple[int, bytes | memoryview]]:
    """Yield the stored content of a regular file in pieces, each with its offset; holes are skipped.

    whole: its stream, if that was read before. Raises DamageError if the stored content is shorter or longer
    than the entry states.
    """
    check_content(child)
    entry, ref, offset, _ = child
    if entry.content is Content.SMALL_FILES:
        yield 0, RangeReader(reader.store, ref).read(offset, entry.size)
        return
    data: Iterator[bytes | memoryview] = iter((whole,)) if whole is not None else reader.read(ref)
    pending: bytes | memoryview = b""
    for start, length in entry.extents_or_whole:
        position, end = start, start + length
        while position < end:
            pending = pending or next(data, b"")
            if not pending:
                raise DamageError("a file's stream is shorter than its entry says")
            piece, pending = pending[: end - position], pending[end - position :]
            yield position, piece
            position += len(piece)
    if pending or next(data, None) is not None:
        raise DamageError("a file's stream is longer than its entry says")


def read_file(reader: StreamReader, child: Child) -> Iterator[bytes]:
    """Yield the bytes of a stored regular file, holes as zeros. Raises DamageError."""
    position = 0
    for offset, data in read_data(reader, child):
        yield from _zeros(offset - position)
        yield bytes(data)
        position = offset + len(data)
    yield from _zeros(child.entry.size - position)


def _zeros(count: int) -> Iterator[bytes]:
    """Yield `count` zero bytes in pieces."""
    block = bytes(1 << 16)
    while count > 0:
        yield block[:count]
        count -= len(block)
