"""Write the parts of one snapshot, and collect what its generation records of them."""

from __future__ import annotations

import contextlib
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Self

from castore.content.pipeline import Pipeline
from castore.content.previous_stream import PreviousStream
from castore.content.ref_tree import iter_runs_of_chunks
from castore.content.scan.cache import scan_path
from castore.content.scan.file_record import FileRecord, is_unchanged, write_record
from castore.content.streams import store_stream
from castore.engines.dump_stream import DumpStream
from castore.errors import ProgramError, StorageError
from castore.model.generation import Details, Generation, Part, StoredRef, encode
from castore.model.names import check_name
from castore.process.pipes import enlarge_pipe
from castore.progress import Progress
from castore.services.last_scan import expected_size, last_part
from castore.services.sources import EngineSource, Stream, Tree, dated, left_out, origin, rules_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.content.scan.cache_writer import ScanCacheWriter
    from castore.fs.stamp import Stamp
    from castore.model.generation import Origin
    from castore.model.refs import Ref
    from castore.services.snapshot import SnapshotRequest
    from castore.services.sources import Source
    from castore.store import Session, Store


class PartWriter:
    """Writes the parts of one snapshot. At the end of the block, scan caches are lost unless kept before."""

    def __init__(self, store: Store, session: Session, request: SnapshotRequest) -> None:
        self.parts: list[Part] = []
        self.origins: dict[str, Origin] = dict(request.absent.origins)
        """Where each part was taken from, or would have been."""
        self._store = store
        self._session = session
        self._request = request
        self._skip = left_out(store, request.leave_out)
        self._warnings: list[tuple[str, bytes, str]] = []
        self._scans: list[ScanCacheWriter] = []
        self._records: list[tuple[str, FileRecord]] = []
        """The path and the record of each dump that was read from a file."""
        self._kept = False
        """Whether chunks are used that this run has not seen: those of unchanged trees and files."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for scan in self._scans:
            scan.discard()

    def write(self, name: str, source: Source) -> None:
        """Store one part. Raises UsageError, ProgramError, StorageError."""
        progress = Progress(total=expected_size(self._store, self._request.service, name))
        self._request.watch(check_name("part", name), progress)
        if isinstance(source, Tree):
            root = self._store_tree(name, source, progress)
        else:
            root = self._store_dump(name, source, progress)
        self.parts.append(_part(name, source, root, progress))
        self.origins[name] = dated(origin(source), source)
        self._warnings += [(name, path, reason) for path, reason in progress.warnings]

    def finish(self, started: int, duration: int) -> Generation:
        """End the session; return the record of the generation, without a number.

        started: Unix time, and duration, in nanoseconds. Raises StorageError.
        """
        request, store = self._request, self._store
        hooks = request.hooks.programs if request.hooks is not None else ()
        details = Details(self.origins, tuple(self._warnings), hooks, request.absent.kinds)
        stored = _store_bytes(store, self._session, encode(details))
        self._session.finish()
        return Generation(
            service=request.service,
            number=0,
            time=started,
            revision=request.revision,
            host=store.hosts.current.name,
            host_id=store.hosts.current.id,
            parts=tuple(self.parts),
            details=stored,
            session=self._session.id,
            pre_rollback=request.pre_rollback or request.interrupted,
            interrupted=request.interrupted,
            missing_parts=request.missing_parts,
            duration=duration,
        )

    def keep_scans(self) -> None:
        """Keep the new scan caches, and which packs the service uses; called once it is committed."""
        for scan in self._scans:
            scan.keep()
        for path, record in self._records:
            write_record(path, record)
        usage = self._store.index.usage
        with contextlib.suppress(StorageError):  # costs space or time at most
            used = self._session.pack_usage
            if self._scans or self._kept:
                # The packs of unchanged parts are not known here: those used so far count as used still.
                used = used | usage.of(self._request.service)
            usage.set(self._request.service, used)
            self._store.base_cache.evict(usage.total())

    def _store_tree(self, name: str, tree: Tree, progress: Progress) -> Ref | None:
        from castore.content.scan.cache_writer import ScanCacheWriter
        from castore.content.scan.walker import store_tree
        from castore.services.last_scan import last_scan
        from castore.services.underway import refuse_unfinished, report_foreign

        store, service = self._store, self._request.service
        if not self._request.interrupted:
            refuse_unfinished(store.paths.journals, tree.path)
        report_foreign(store, tree.path)
        new = ScanCacheWriter(scan_path(store, service, name), store.index.epoch())
        self._scans.append(new)
        rules = rules_of(tree, self._skip)
        roots: list[Ref | None] = []
        with (
            last_scan(store, service, name, tree.path, rules) as old,
            Pipeline(self._session, store.keys.cutter, progress) as pipeline,
        ):
            store_tree(pipeline, tree.path, rules, roots.append, new, old)
        return roots[0]

    def _store_dump(self, name: str, source: Source, progress: Progress) -> Ref | None:
        store, service = self._store, self._request.service
        part = last_part(store, service, name)
        previous = part if part is not None and part.kind == "dump" else None
        epoch = store.index.epoch()
        roots: list[Ref | None] = []
        with Pipeline(self._session, store.keys.cutter, progress) as pipeline, ExitStack() as stack:
            if previous is not None:
                pipeline.compare_with(PreviousStream(iter_runs_of_chunks(store, previous.content)))
            if isinstance(source, EngineSource):
                secret = store.keys.writer_key.dump_key(service, name)
                dump = stack.enter_context(source.engine.stable_dump(secret))
            elif isinstance(source, Stream):
                dump = DumpStream(_stream_reader(source))
            else:
                raise TypeError(source)
            if previous is not None and self._is_unchanged(name, dump, previous):
                progress.read += previous.size
                progress.chunks += previous.chunks
                self._kept = True
                return previous.content
            store_stream(pipeline, dump.readinto, roots.append)
            progress.warnings += dump.warnings
        self._record(name, dump.stamp, roots[0], epoch)
        return roots[0]

    def _is_unchanged(self, name: str, dump: DumpStream, previous: Part) -> bool:
        """Whether a dump is a file that has not changed since the previous snapshot read it."""
        if dump.stamp is None or previous.content is None:
            return False
        path = scan_path(self._store, self._request.service, name)
        return is_unchanged(self._store, path, dump.stamp, previous.content)

    def _record(self, name: str, stamp: Stamp | None, content: Ref | None, epoch: bytes) -> None:
        """Record what a file was read as, if it cannot change and keep its stamp."""
        stored = StoredRef.of(content)
        if stamp is not None and stored is not None:
            path = scan_path(self._store, self._request.service, name)
            self._records.append((path, FileRecord(stamp, stored, epoch)))


def _part(name: str, source: Source, root: Ref | None, progress: Progress) -> Part:
    return Part(
        name=name,
        kind="tree" if isinstance(source, Tree) else "dump",
        root=StoredRef.of(root),
        size=progress.read,
        files=progress.files,
        chunks=progress.chunks,
        new_chunks=progress.new_chunks,
        new_bytes=progress.new_bytes,
        stored_bytes=progress.stored,
        after_delta=progress.after_delta,
        after_compression=progress.after_compression,
        skipped_files=len(progress.warnings),
    )


def _stream_reader(source: Stream) -> Callable[[memoryview], int]:
    """Return a function that reads from an open file; it raises ProgramError if the file is empty."""
    enlarge_pipe(source.descriptor)
    empty = not source.allow_empty

    def readinto(view: memoryview) -> int:
        nonlocal empty
        count = os.readv(source.descriptor, [view])
        if not count and empty:
            raise ProgramError(
                "the dump that was read from standard input or a pipe is empty: the program that writes it "
                "may have failed; nothing was committed (if it is to be empty: --allow-empty)"
            )
        empty = False
        return count

    return readinto


def _store_bytes(store: Store, session: Session, data: bytes) -> StoredRef:
    refs: list[Ref | None] = []
    # A delta would save a few bytes only, and keep packs of earlier generations in use.
    with Pipeline(session, store.keys.cutter, Progress(), deltas=False) as pipeline:
        pipeline.write(data)
        pipeline.end_stream(refs.append)
    stored = StoredRef.of(refs[0])
    if stored is None:
        raise AssertionError("details are never empty")
    return stored
