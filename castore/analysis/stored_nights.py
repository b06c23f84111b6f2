"""Generations of a store as nights: their streams are read, and cut again in trial stores.

A stored tree consists of streams: of each directory its entries, its small files and each of its large files.
The same streams in the same order are what a scan of the tree would pass to the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from castore.analysis.nights import Night, Stored
from castore.content.pipeline import Pipeline
from castore.content.previous_stream import PreviousStream
from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.stored_dirs import open_directory, references
from castore.content.streams import StreamReader
from castore.model.tree import Content
from castore.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.analysis.trial import TrialStore
    from castore.model.generation import Generation, Part
    from castore.model.refs import RecordId, Ref
    from castore.progress import Watch
    from castore.store import Store

_LARGE: Final = 1 << 20
"""Bytes: files of this length are compared with their previous versions, as in a snapshot."""


@dataclass
class TrialParts:
    """What a trial store has of a generation, for the next one to be compared with."""

    roots: dict[str, Ref | None] = field(default_factory=dict)
    """The parts, by name."""
    directories: dict[RecordId, Ref] = field(default_factory=dict)
    """The lists of directories, by their ids in the source."""
    files: dict[bytes, Ref] = field(default_factory=dict)
    """The streams of large files, by part and path."""


class StoredNight(Night):
    """A generation of a store. Reading it needs the identity."""

    def __init__(self, source: Store, generation: Generation, before: StoredNight | None) -> None:
        """before: the night before it, or None."""
        super().__init__(f"{generation.service}@{generation.number}")
        self._source = source
        self._generation = generation
        self._before = before
        self.parts = TrialParts()
        """What the trial store of the present setting has of it, until the next night is stored."""

    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Store each part. Raises IdentityError, DamageError, StorageError."""
        parts = self.parts = TrialParts()
        before = self._before.parts if self._before is not None else TrialParts()
        unique = 0
        with trial.session() as session, StreamReader(self._source) as reader:
            for part in self._generation.parts:
                progress = Progress(total=part.size)
                watch(part.name, progress)
                with Pipeline(session, trial.keys.cutter, progress) as pipeline:
                    if part.kind == "tree":
                        self._store_tree(_Refeed(trial, pipeline, reader, before, parts), part)
                    else:
                        self._store_dump(trial, pipeline, reader, part, before.roots.get(part.name))
                unique += progress.new_bytes
        if self._before is not None:
            self._before.parts = TrialParts()
        return Stored(
            plain=self._generation.size,
            unique=unique,
            files=sum(part.files for part in self._generation.parts),
            roots=[root for root in parts.roots.values() if root is not None],
        )

    def _store_tree(self, refeed: _Refeed, part: Part) -> None:
        def done(root: Ref) -> None:
            self.parts.roots[part.name] = root

        if part.content is not None:
            refeed.tree(part.name, part.content, done)

    def _store_dump(
        self, trial: TrialStore, pipeline: Pipeline, reader: StreamReader, part: Part, previous: Ref | None
    ) -> None:
        if previous is not None:
            pipeline.compare_with(PreviousStream(iter_runs_of_chunks(trial, previous)))

        def done(root: Ref | None) -> None:
            self.parts.roots[part.name] = root

        for data in reader.read(part.content):
            pipeline.write(data)
            pipeline.progress.read += len(data)
        pipeline.end_stream(done)


@dataclass
class _Directory:
    """A directory whose subdirectories are being stored."""

    id: RecordId
    path: bytes
    entries: Ref
    left: list[tuple[Ref, bytes]]
    """Subdirectories that are not stored yet, with their paths, the last one first."""
    close: Callable[[Ref], None]
    """Called with its list in the trial store."""
    streams: list[Ref] = field(default_factory=list)
    directories: list[Ref] = field(default_factory=list)


class _Refeed:
    """Feeds the streams of a stored tree to a pipeline, without those of unchanged directories."""

    def __init__(
        self,
        trial: TrialStore,
        pipeline: Pipeline,
        reader: StreamReader,
        before: TrialParts,
        parts: TrialParts,
    ) -> None:
        self._trial = trial
        self._pipeline = pipeline
        self._reader = reader
        self._before = before
        self._parts = parts

    def tree(self, part: str, root: Ref, done: Callable[[Ref], None]) -> None:
        """Store a tree without recursion, because trees may be deep."""
        stack = [self._begin(root, part.encode(), done, root=True)]
        while stack:
            directory = stack[-1]
            if not directory.left:
                self._finish(stack.pop())
                continue
            child, path = directory.left.pop()
            same = self._before.directories.get(child.id)
            if same is None:
                stack.append(self._begin(child, path, directory.directories.append))
                continue
            self._parts.directories[child.id] = same
            self._pipeline.progress.read += child.size
            self._join(directory, same)

    def _join(self, directory: _Directory, same: Ref) -> None:
        self._pipeline.call_when_stored(lambda: directory.directories.append(same))

    def _begin(
        self, ref: Ref, path: bytes, close: Callable[[Ref], None], *, root: bool = False
    ) -> _Directory:
        """Feed the streams of a directory's files."""
        children = open_directory(self._reader, ref, root=root)
        entries, *content = references(self._reader, ref)
        paths = [path + b"/" + child.entry.name for child in children]
        below = [at for at, child in enumerate(children) if child.entry.is_dir and child.ref is not None]
        own = {
            child.ref.id: paths[at]
            for at, child in enumerate(children)
            if child.ref is not None and child.entry.is_file and child.entry.content is Content.OWN
        }
        first = len(content) - len(below)
        left = [(one, paths[at]) for one, at in zip(content[first:], below, strict=True)]
        directory = _Directory(ref.id, path, entries, left[::-1], close)
        for stream in content[:first]:
            self._feed_file(directory, stream, own.get(stream.id) if stream.size >= _LARGE else None)
        return directory

    def _feed_file(self, directory: _Directory, stream: Ref, path: bytes | None) -> None:
        """Feed a stream of a directory; path: that of a large file, whose stream it is."""
        previous = self._before.files.get(path) if path is not None else None
        if previous is not None:
            self._pipeline.compare_with(PreviousStream(iter_runs_of_chunks(self._trial, previous)))
        self._feed(stream)

        def end(found: Ref | None) -> None:
            if found is not None:
                directory.streams.append(found)
                if path is not None:
                    self._parts.files[path] = found

        self._pipeline.end_stream(end)

    def _feed(self, stream: Ref) -> None:
        for data in self._reader.read(stream):
            self._pipeline.write(data)
            self._pipeline.progress.read += len(data)

    def _finish(self, directory: _Directory) -> None:
        self._feed(directory.entries)

        def end(entries: Ref | None) -> None:
            refs = [*([entries] if entries else []), *directory.streams, *directory.directories]
            stored = self._parts.directories[directory.id] = self._pipeline.put_list(refs)
            directory.close(stored)

        self._pipeline.end_stream(end)
