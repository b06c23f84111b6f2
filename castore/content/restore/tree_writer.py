"""Write a stored tree into a directory.

Everything is created relative to the descriptor of its directory and never through a link. So restored files
stay below their destination, whatever a store contains. Metadata is set through the descriptor of the
created file, because the owner of a directory can replace files in it. A damaged file is not left incomplete:
it is missing, the report names it, and the restore continues.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from castore.content.allowance import Allowance
from castore.content.restore.file_writer import FileWriter, Made
from castore.content.restore.metadata import (
    Ownership,
    drop_inherited,
    inherits,
    is_private,
    new_owners,
    set_attributes,
)
from castore.content.restore.open_directory import OpenDirectory
from castore.content.restore.prefetch import ROOM, Prefetcher
from castore.content.restore.report import Report
from castore.content.stored_dirs import (
    Child,
    Opened,
    fetch_directory,
    open_fetched,
)
from castore.content.streams import RangeReader, SerialReader, StreamReader
from castore.errors import DamageError
from castore.fs.beneath import (
    OPEN_DIRECTORY,
    make_directory,
)
from castore.model.tree import Content
from castore.process.own_process import raise_file_limit
from castore.progress import Progress

if TYPE_CHECKING:
    from castore.content.restore.hard_links import Link
    from castore.content.restore.live_file import LiveFile
    from castore.model.refs import Ref

_WORKERS: Final = 2
_MOST_APART: Final = 1 << 24
"""The largest file that a worker creates by itself; the content of larger ones is read on two threads."""
_MOST_WAITING: Final = 64
"""How many files of one directory wait for workers, so that progress and errors are seen soon."""
_LEFT: Final = 32
"""How many directories' plain files may be in progress while other directories are entered."""

FILE_SYSTEMS_OWN: Final = b"lost+found"
"""A directory that many file systems have from the beginning: if it exists, a restore fills it."""


class _Work(NamedTuple):
    """The helpers for one tree."""

    pool: ThreadPoolExecutor
    ahead: Prefetcher
    depth: int
    """The depth of the tree's own top."""


def _is_for_worker(current: OpenDirectory, child: Child) -> bool:
    """Whether a worker creates a file: its content is not read yet, and no other file depends on it."""
    entry = child.entry
    return (
        entry.is_file
        and entry.content is Content.OWN
        and entry.extra.link is None
        and child.ref is not None
        and child.ref.id not in current.chunks
        and entry.size <= _MOST_APART
    )


class TreeWriter:
    """Writes stored trees below the directory open as `top`."""

    def __init__(self, reader: StreamReader, top: int, ownership: Ownership, progress: Progress) -> None:
        self.report = Report()
        self._files = FileWriter(reader, top, ownership, progress, self.report)
        self._reader = reader
        self._top = top
        self._ownership = ownership
        self._progress = progress
        self._allowance = Allowance(progress.most_files)
        self._left: deque[OpenDirectory] = deque()
        self._readers: dict[Ref | None, RangeReader] = {}
        """Readers of the small-file streams of the directory in which `make` created a file last."""

    def know_links(self, links: dict[tuple[int, int], Link]) -> None:
        """Set one name of each file that has several names and exists already."""
        self._files.links.update(links)

    def fill(self, child: Child, fd: int, path: tuple[bytes, ...] = ()) -> None:
        """Write the content of the stored directory `child` into the empty one open as `fd`, at `path`.

        The caller sets the metadata of `child` itself.
        """
        raise_file_limit()
        stack: list[OpenDirectory] = []
        pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-restore")
        with pool, Prefetcher(self._reader.store, child.ref) as ahead:
            work = _Work(pool, ahead, len(path))
            try:
                top = os.dup(fd)
                first = self._enter(work, child, path, top, None)
                if first is None:
                    os.close(top)
                else:
                    stack.append(first)
                while stack:
                    current = stack[-1]
                    if not current.children:
                        self._left.append(stack.pop())
                        while len(self._left) > _LEFT:
                            self._leave(self._left.popleft())
                        continue
                    entered = self._directory(work, current, current.children.pop())
                    if entered is not None:
                        stack.append(entered)
                while self._left:
                    self._leave(self._left.popleft())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
                for current in (*stack, *self._left):
                    os.close(current.fd)
                self._left.clear()

    def make(
        self, fd: int, path: tuple[bytes, ...], child: Child, old: LiveFile | None = None
    ) -> None:
        """Create the one file `child`, not a directory, at `path`, in the directory open as `fd`.

        old: a file that may have some of its content.
        """
        private = is_private(os.fstat(fd))
        parent = OpenDirectory(fd, path[:-1], [], inherited=inherits(fd), old=old, private=private)
        if child.ref in self._readers:
            # Another file of the same directory: their contents are probably in the same chunk.
            parent.small_files = self._readers
        self._files.make(parent, child)
        self._readers = parent.small_files

    def _enter(
        self, work: _Work, child: Child, path: tuple[bytes, ...], fd: int, own: Child | None
    ) -> OpenDirectory | None:
        """Open a stored directory, and create its files in the live one, open as `fd`.

        Returns None if it is damaged: the caller then still owns `fd`.
        """
        taken = None
        try:
            if child.ref is None:
                opened = Opened([])
            else:
                taken = work.ahead.take(child.ref, len(path) - work.depth)
                fetched = taken.fetched if taken else fetch_directory(self._reader, child.ref, ROOM)
                opened = open_fetched(self._reader, child.ref, fetched)
        except DamageError as error:
            self.report.damage(path, error)
            return None
        current = OpenDirectory(fd, path, [], own, opened.chunks, inherits(fd))
        # A directory that this restore has created is accessible to castore's user only until it is filled.
        current.private = own is not None or is_private(os.fstat(fd))
        others = opened.others
        if current.inherited or not current.private:
            others = [*others, *opened.plain_children()]
        elif opened.plain is not None:
            current.files, current.size = opened.plain.plain, opened.plain.plain_size
            current.plain = work.pool.submit(self._write_plain, fd, opened)
        try:
            for other in others:
                if other.entry.is_dir:
                    current.children.append(other)
                elif _is_for_worker(current, other):
                    current.others.append(work.pool.submit(self._make_apart, current, other))
                    self._settle(current, _MOST_WAITING)
                else:
                    self._files.make(current, other)
        except BaseException:
            current.wait()
            os.close(fd)
            raise
        current.children.reverse()
        current.chunks, current.small_files = {}, {}
        if taken is not None:
            work.ahead.done_with(taken, current.plain)
        return current

    def _make_apart(self, current: OpenDirectory, child: Child) -> tuple[Progress, Report]:
        """Create a file with content of its own, which is read on this thread. Runs on a worker."""
        progress, report = Progress(), Report()
        reader = SerialReader(self._reader.store)
        FileWriter(reader, self._top, self._ownership, progress, report).make(current, child)
        return progress, report

    def _settle(self, current: OpenDirectory, most: int) -> None:
        """Wait for the files that workers create in a directory, until at most `most` are not done."""
        while len(current.others) > most:
            progress, report = current.others.popleft().result()
            self._progress.files += progress.files
            self._progress.read += progress.read
            self.report.add(report)

    def _write_plain(self, fd: int, opened: Opened) -> list[Child]:
        """Create plain files; return those that could not be created. Runs on a worker."""
        plain = opened.plain
        if plain is None:
            return []
        failed: list[Child] = []
        owners = new_owners(opened.owners, self._ownership)
        readers: dict[int, RangeReader] = {}
        for run in plain.runs(ROOM):
            try:
                if run.length and run.stream not in readers:
                    content = opened.small_files[run.stream]
                    readers[run.stream] = RangeReader(self._reader.store, content, opened.chunks)
                data = readers[run.stream].read(run.start, run.length) if run.length else b""
            except DamageError:
                failed += opened.plain_children(run.first, run.end, run.stream)
                continue
            at = run.first
            while (at := plain.write(fd, run, at, owners, data)) < run.end:
                failed += opened.plain_children(at, at + 1)
                at += 1
        return failed

    def _leave(self, current: OpenDirectory) -> None:
        """Set a directory's own metadata, after all files in it have changed its time."""
        try:
            if current.plain is not None:
                failed = current.plain.result()
                self._progress.files += current.files - len(failed)
                self._progress.read += current.size - sum(child.entry.size for child in failed)
                for child in failed:
                    self._files.make(current, child)
            self._settle(current, 0)
            if current.own is not None:
                set_attributes(
                    current.fd,
                    current.own.entry,
                    current.own.owners,
                    self._ownership,
                    lambda reason: self.report.warn(current.path, reason),
                )
        finally:
            current.wait()
            os.close(current.fd)

    def _directory(self, work: _Work, current: OpenDirectory, child: Child) -> OpenDirectory | None:
        """Create a directory, and enter it."""
        entry = child.entry
        path = (*current.path, entry.name)
        self._allowance.enter()
        self._progress.files += 1
        try:
            fd = self._make_directory(current, entry.name, path)
        except OSError as error:
            self._files.failed(path, error)
            return None
        entered = self._enter(work, child, path, fd, child)
        if entered is None:
            try:
                self._files.set_metadata(Made(fd), current, child)
            finally:
                os.close(fd)
        return entered

    @staticmethod
    def _make_directory(current: OpenDirectory, name: bytes, path: tuple[bytes, ...]) -> int:
        try:
            fd = make_directory(name, current.fd)
        except FileExistsError:
            if path != (FILE_SYSTEMS_OWN,):
                raise
            fd = os.open(name, OPEN_DIRECTORY, dir_fd=current.fd)
        if current.inherited:
            drop_inherited(fd)
        return fd


def restore_directory(
    reader: StreamReader, top: int, child: Child, ownership: Ownership, progress: Progress
) -> Report:
    """Restore the stored directory `child` into the empty one open as `top`; return the report."""
    writer = TreeWriter(reader, top, ownership, progress)
    writer.fill(child, top)
    warnings = writer.report.warnings
    drop_inherited(top)
    set_attributes(top, child.entry, child.owners, ownership, lambda r: warnings.append((b".", r)))
    return writer.report


def restore_file(
    reader: StreamReader, top: int, name: bytes, child: Child, ownership: Ownership, progress: Progress
) -> Report:
    """Restore the stored file `child`, not a directory, as `name` in the directory `top`."""
    writer = TreeWriter(reader, top, ownership, progress)
    writer.make(top, (name,), named(child, name))
    return writer.report


def named(child: Child, name: bytes) -> Child:
    """Return a stored file under another name, without its other names."""
    extra = child.entry.extra
    if extra.link is not None:
        extra = msgspec.structs.replace(extra, link=None)
    return child._replace(entry=msgspec.structs.replace(child.entry, name=name, extra=extra))
