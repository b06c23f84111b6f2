"""Find what does not restore in stored trees. Each directory is decoded once, by the code of a restore."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from castore.content.ref_tree import iter_chunks
from castore.content.stored_dirs import (
    check_content,
    fetch_directories,
    fetch_directory,
    open_fetched,
    open_top,
)
from castore.errors import DamageError
from castore.model.refs import RefKind
from castore.model.tree import Content

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.stored_dirs import Fetched, Opened
    from castore.content.streams import StreamReader
    from castore.maintenance.impact import Reasons
    from castore.model.refs import Ref


_AT_ONCE: Final = 64
"""Number of directories that are read in one batch."""
_ROOM: Final = 1 << 24
"""Bytes of content in a batch; the metadata that is read for them is a small part of that."""


class _Directory(NamedTuple):
    """A directory, decoded or not."""

    ref: Ref
    reason: str
    """Why it does not decode; empty if it does."""
    opened: Opened | None
    below: list[tuple[bytes, Ref]]
    """Its subdirectories."""


class _Open(NamedTuple):
    """A directory whose subdirectories are being examined; `found` is None for the parent of the top."""

    found: _Directory | None
    below: Iterator[_Directory]


class Trees:
    """Reports what does not restore in trees; each directory is decoded once, in however many trees it is.

    Content is not read: `reasons` says which chunks and nodes do not open.
    """

    def __init__(self, reader: StreamReader, reasons: Reasons) -> None:
        self._reader = reader
        self._reasons = reasons
        self._intact: dict[tuple[bytes, int], bool] = {}
        """Whether a directory and everything below it restores."""

    def lost(self, root: Ref) -> Iterator[tuple[bytes, str]]:
        """Yield (path, reason) for each part of a tree that does not restore; the top's path is empty.

        Raises IdentityError.
        """
        try:
            top = open_top(self._reader, root).ref
        except DamageError as error:
            yield b"", str(error)
            return
        if top is None or self._intact.get(_key(top)) or self._is_intact(top):
            return
        stack = [(b"", top)]
        while stack:
            path, ref = stack.pop()
            directory = self._decoded(ref)
            for name, reason in self._lost(directory):
                yield _joined(path, name), reason
            stack += [
                (_joined(path, name), below)
                for name, below in reversed(directory.below)
                if not self._intact[_key(below)]
            ]

    def _is_intact(self, top: Ref) -> bool:
        """Return whether everything below a directory restores."""
        # Depth first without recursion.
        stack = [_Open(None, iter(self._opened([top])))]
        while True:
            current = stack[-1]
            directory = next(current.below, None)
            if directory is not None:
                below = [one for _, one in directory.below]
                stack.append(_Open(directory, iter(self._opened(below))))
                continue
            stack.pop()
            if current.found is None:
                return self._intact[_key(top)]
            # Only now, so that no node is read twice: the nodes below have been examined by now.
            lost = any(True for _ in self._lost(current.found))
            self._intact[_key(current.found.ref)] = not lost and all(
                self._intact[_key(one)] for _, one in current.found.below
            )

    def _opened(self, wanted: list[Ref]) -> Iterator[_Directory]:
        """Yield the directories that are not known yet: read in batches, decoded as in a restore."""
        at = 0
        while at < len(wanted):
            end, room = at, _ROOM
            while end < len(wanted) and end - at < _AT_ONCE and room > 0:
                room -= wanted[end].size
                end += 1
            several = [ref for ref in wanted[at:end] if _key(ref) not in self._intact]
            at = end
            found = list(zip(several, fetch_directories(self._reader, several), strict=True))
            self._reasons.expect([(ref, fetched.refs) for ref, fetched in found if fetched is not None])
            for ref, fetched in found:
                if _key(ref) not in self._intact:
                    yield self._decoded(ref, fetched)

    def _decoded(self, ref: Ref, fetched: Fetched | None = None) -> _Directory:
        """Decode a directory as a restore does."""
        try:
            opened = open_fetched(self._reader, ref, fetched or fetch_directory(self._reader, ref, 0))
        except DamageError as error:
            return _Directory(ref, str(error), None, [])
        below = [
            (child.entry.name, child.ref)
            for child in opened.others
            if child.entry.is_dir and child.ref is not None
        ]
        return _Directory(ref, "", opened, below)

    def _lost(self, directory: _Directory) -> Iterator[tuple[bytes, str]]:
        """Yield (name, reason) for each file in a directory that does not restore.

        The name is empty if the directory itself does not decode.
        """
        ref, reason, opened, _ = directory
        if opened is None:
            yield b"", reason
            return
        files = [child for child in opened.others if not child.entry.is_dir]
        # If everything that the directory references opens, each of its chunks opens.
        sound = not self._reasons.below(ref)
        small_files = {child.ref for child in files if child.entry.content is Content.SMALL_FILES}
        small_files |= {*opened.small_files}
        spans = {}
        for stream in small_files:
            if stream is not None and not (sound and stream.kind is RefKind.CHUNK):
                spans[stream] = self._lost_spans(stream)
        if opened.plain is not None and opened.plain.ends and (None in small_files or any(spans.values())):
            files += opened.plain_children()
        for child in sorted(files, key=lambda child: child.entry.name):
            try:
                check_content(child)
            except DamageError as error:
                yield child.entry.name, str(error)
                continue
            reason = ""
            if child.entry.content is Content.OWN and child.ref is not None:
                known = sound and child.ref.kind is RefKind.CHUNK
                reason = "" if known else self._reasons.of_stream(child.ref)
            elif child.entry.content is Content.SMALL_FILES:
                start, end = child.offset, child.offset + child.entry.size
                lost = spans.get(child.ref, []) if child.ref is not None else []
                reason = next((why for first, last, why in lost if first < end and start < last), "")
            if reason:
                yield child.entry.name, reason

    def _lost_spans(self, stream: Ref) -> list[tuple[int, int, str]]:
        """Return which byte ranges of a small-file stream are lost: (start, end, reason)."""
        if not (reason := self._reasons.of_stream(stream)):
            return []
        try:
            chunks = list(iter_chunks(self._reader.store, stream))
        except DamageError:
            return [(0, stream.size, reason)]
        checked = ((offset, one, self._reasons.of_chunks([one])) for offset, one in chunks)
        return [(offset, offset + one.size, why) for offset, one, why in checked if why]


def _key(ref: Ref) -> tuple[bytes, int]:
    """Return the key under which directories are remembered."""
    return ref.id, ref.size


def _joined(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path and name else path or name
