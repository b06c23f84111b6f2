"""Generations of a store as nights: their streams are read, and cut again in trial stores.

A stored tree consists of streams: of each directory its entries, its small files and each of its large files.
The same streams in the same order are what a scan of the tree would pass to the pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from castore.analysis.nights import Night, Stored
from castore.content.pipeline import Pipeline
from castore.content.previous_stream import PreviousStream
from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.stored_dirs import open_directory, references
from castore.content.streams import StreamReader
from castore.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.analysis.trial import TrialStore
    from castore.model.generation import Generation, Part
    from castore.model.refs import RecordId, Ref
    from castore.progress import Watch
    from castore.store import Store

Known = dict["RecordId", "Ref"]
"""The directories of a generation: their lists in the trial store, by their ids in the source."""


class StoredNight(Night):
    """A generation of a store. Reading it needs the identity."""

    def __init__(self, source: Store, generation: Generation, before: StoredNight | None) -> None:
        """before: the night before it, or None."""
        super().__init__(f"{generation.service}@{generation.number}")
        self._source = source
        self._generation = generation
        self._before = before
        self._known: Known = {}
        self._roots: dict[str, Ref | None] = {}
        """The parts in the trial store of the present setting."""

    def store(self, trial: TrialStore, watch: Watch) -> Stored:
        """Store each part. Raises IdentityError, DamageError, StorageError."""
        self._known, self._roots = {}, {}
        before = self._before
        unique = 0
        with trial.session() as session, StreamReader(self._source) as reader:
            for part in self._generation.parts:
                progress = Progress(total=part.size)
                watch(part.name, progress)
                with Pipeline(session, trial.keys.cutter, progress) as pipeline:
                    if part.kind == "tree":
                        known = before._known if before is not None else {}  # noqa: SLF001 - of its own kind
                        self._store_tree(_Refeed(pipeline, reader, known, self._known), part)
                    else:
                        self._store_dump(trial, pipeline, reader, part)
                unique += progress.new_bytes
        if before is not None:
            before._known = {}  # noqa: SLF001 - of its own kind
        return Stored(
            plain=self._generation.size,
            unique=unique,
            files=sum(part.files for part in self._generation.parts),
            roots=[root for root in self._roots.values() if root is not None],
        )

    def _store_tree(self, refeed: _Refeed, part: Part) -> None:
        def done(root: Ref) -> None:
            self._roots[part.name] = root

        if part.content is not None:
            refeed.tree(part.content, done)

    def _store_dump(self, trial: TrialStore, pipeline: Pipeline, reader: StreamReader, part: Part) -> None:
        previous = self._before._roots.get(part.name) if self._before is not None else None  # noqa: SLF001
        if previous is not None:
            pipeline.compare_with(PreviousStream(iter_runs_of_chunks(trial, previous)))

        def done(root: Ref | None) -> None:
            self._roots[part.name] = root

        for data in reader.read(part.content):
            pipeline.write(data)
            pipeline.progress.read += len(data)
        pipeline.end_stream(done)


@dataclass
class _Directory:
    """A directory whose subdirectories are being stored."""

    id: RecordId
    entries: Ref
    left: list[Ref]
    """Subdirectories that are not stored yet, the last one first."""
    close: Callable[[Ref], None]
    """Called with its list in the trial store."""
    streams: list[Ref] = field(default_factory=list)
    directories: list[Ref] = field(default_factory=list)


class _Refeed:
    """Feeds the streams of a stored tree to a pipeline, without those of unchanged directories."""

    def __init__(self, pipeline: Pipeline, reader: StreamReader, before: Known, known: Known) -> None:
        self._pipeline = pipeline
        self._reader = reader
        self._before = before
        self._known = known

    def tree(self, root: Ref, done: Callable[[Ref], None]) -> None:
        """Store a tree without recursion, because trees may be deep."""
        stack = [self._begin(root, done, root=True)]
        while stack:
            directory = stack[-1]
            if not directory.left:
                self._finish(stack.pop())
                continue
            child = directory.left.pop()
            same = self._before.get(child.id) or self._known.get(child.id)
            if same is None:
                stack.append(self._begin(child, directory.directories.append))
                continue
            self._known[child.id] = same
            self._pipeline.progress.read += child.size
            self._join(directory, same)

    def _join(self, directory: _Directory, same: Ref) -> None:
        self._pipeline.call_when_stored(lambda: directory.directories.append(same))

    def _begin(self, ref: Ref, close: Callable[[Ref], None], *, root: bool = False) -> _Directory:
        """Feed the streams of a directory's files."""
        children = open_directory(self._reader, ref, root=root)
        entries, *content = references(self._reader, ref)
        below = sum(1 for child in children if child.entry.is_dir and child.ref is not None)
        first = len(content) - below
        directory = _Directory(ref.id, entries, content[first:][::-1], close)
        for stream in content[:first]:
            self._feed(stream)
            self._pipeline.end_stream(lambda found: directory.streams.extend([found] if found else []))
        return directory

    def _feed(self, stream: Ref) -> None:
        for data in self._reader.read(stream):
            self._pipeline.write(data)
            self._pipeline.progress.read += len(data)

    def _finish(self, directory: _Directory) -> None:
        self._feed(directory.entries)

        def end(entries: Ref | None) -> None:
            refs = [*([entries] if entries else []), *directory.streams, *directory.directories]
            stored = self._known[directory.id] = self._pipeline.put_list(refs)
            directory.close(stored)

        self._pipeline.end_stream(end)
