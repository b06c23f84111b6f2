"""Restore stored parts into a new or empty directory, without touching the live state."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

import msgspec

from castore.content.restore import one_file
from castore.content.restore.metadata import drop_inherited
from castore.content.restore.planner import plan_entry
from castore.content.restore.report import Report
from castore.content.restore.resume import complete
from castore.content.restore.tree_writer import restore_directory, restore_file
from castore.content.streams import StreamReader
from castore.errors import CastoreError, RevertInterruptedError, StorageError
from castore.fs.beneath import OPEN_DIRECTORY, make_directory
from castore.fs.durable import create_file
from castore.fs.sparse import write_sparse
from castore.services.reading import child_of
from castore.services.restore_marker import Destination, RestoreMarker, open_marked

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import TreePlan
    from castore.content.stored_dirs import Child
    from castore.model.generation import Part
    from castore.progress import Progress
    from castore.services.selectors import Selection
    from castore.store import Store


class Restored(msgspec.Struct):
    """The result of a restore."""

    placed: list[str] = []
    """Paths of the restored files and directories."""
    report: Report = msgspec.field(default_factory=Report)


def restore(
    store: Store,
    selection: Selection,
    destination: str,
    ownership: Ownership,
    progress: Progress,
    *,
    resume: bool = False,
) -> Restored:
    """Restore a selection into the directory `destination`, which must be new or empty.

    A generation is restored as one directory or file per part, with the part's name. A tree, or a directory
    in one, is restored as its entries; a dump, or a file of a tree, as a file with its name. Damaged files
    are left out, and named in the report.

    resume: accept a destination that an interrupted restore of the same selection began to fill. Raises
    UsageError, DamageError, IdentityError, StorageError, and CastoreError with the command that continues an
    incomplete restore.
    """
    with StreamReader(store) as reader:
        parts = [selection.part] if selection.part else list(selection.generation.parts)
        # Resolve paths before creating the destination, so that a mistyped path leaves no empty directory.
        children = {part.name: child_of(reader, part, selection.path) for part in parts}
        # Likewise, fail early if the identity is wrong.
        store.keys.identity()
        progress.total = sum(size_below(part, children[part.name], selection.path) for part in parts)
        progress.most_files = sum(part.files for part in parts)
        marker = RestoreMarker.for_selection(store, selection)
        top = open_marked(destination, marker, resume=resume)
        try:
            work = _PartRestorer(reader, top, ownership, progress)
            for part in parts:
                work.restore(part, children[part.name], None if selection.part else os.fsencode(part.name))
            _end(top, children if selection.part else {})
        except BaseException as error:
            if top.is_empty:
                # Without this, the next try would find a directory that is not empty.
                top.discard()
                if isinstance(error, KeyboardInterrupt):
                    error.add_note("nothing was restored")
                raise
            raise _continued(error, f"to continue: {marker.command(destination)}") from error
        finally:
            os.close(top.fd)
    work.result.placed = [os.path.join(destination, name) for name in work.result.placed]
    return work.result


def _end(top: Destination, children: dict[str, Child | None]) -> None:
    """Remove the restore marker. Then set the directory's mtime, because removing a file changes it."""
    top.remove_marker()
    for child in children.values():
        if child is not None and child.entry.is_dir:
            with contextlib.suppress(OSError, OverflowError):
                os.utime(top.fd, ns=(child.entry.mtime, child.entry.mtime))


def _continued(error: BaseException, how: str) -> BaseException:
    """Return the error with the command that continues the restore that it ended."""
    if isinstance(error, KeyboardInterrupt):
        return RevertInterruptedError(f"the restore was interrupted and is incomplete; {how}")
    if isinstance(error, CastoreError):
        return type(error)(f"{error}; the restore is incomplete; {how}")
    if isinstance(error, OSError):
        return CastoreError(f"{error}; the restore is incomplete; {how}")
    return error


def size_below(part: Part, child: Child | None, path: str) -> int:
    """Return the bytes of content at a path of a part; for a directory below the top, an estimate."""
    if child is None or not path:
        return part.size
    return child.entry.size if child.ref is None or not child.entry.is_dir else scaled(part, child.ref.size)


def scaled(part: Part, size: int) -> int:
    """Estimate the bytes of content of a directory from its size with all entries."""
    return size * part.size // part.content.size if part.content is not None and part.content.size else size


def plan_size(part: Part, plan: TreePlan) -> int:
    """Estimate the bytes of content that the steps of a plan write."""
    steps = [(step.size, step.child is not None and step.child.entry.is_dir) for step in plan.steps]
    return sum(scaled(part, size) if is_dir else size for size, is_dir in steps)


class _PartRestorer:
    """Restores parts into the directory `top`, and collects the result."""

    def __init__(
        self, reader: StreamReader, top: Destination, ownership: Ownership, progress: Progress
    ) -> None:
        self.result = Restored()
        self._reader = reader
        self._top = top
        self._ownership = ownership
        self._progress = progress

    def restore(self, part: Part, child: Child | None, into: bytes | None) -> None:
        """Restore one part, or the entry `child` of a tree.

        into: the name of the directory in `top` that gets the entries of a tree; None: `top` itself.
        """
        if child is None:
            self._restore_dump(part)
            self.result.placed.append(part.name)
            return
        if not child.entry.is_dir:
            report = self._restore_file(child)
            self.result.placed.append(os.fsdecode(child.entry.name))
        elif into is None:
            report = self._restore_tree(self._top.fd, self._top.path, child)
            self.result.placed.append("")
        else:
            fd = _open_part(self._top, into)
            try:
                report = self._restore_tree(fd, os.path.join(self._top.path, part.name), child)
            finally:
                os.close(fd)
            self.result.placed.append(part.name)
        prefix = into + b"/" if into else b""
        self.result.report.warnings += [(prefix + path, reason) for path, reason in report.warnings]
        self.result.report.damaged += [(prefix + path, reason) for path, reason in report.damaged]

    def _restore_tree(self, fd: int, path: str, child: Child) -> Report:
        """Restore a tree into the directory at `path`, open as `fd`."""
        top = self._top
        own = top.own if fd == top.fd else frozenset()
        if {os.fsencode(name) for name in os.listdir(fd)} - top.own:
            return complete(
                self._reader,
                child,
                path,
                self._ownership,
                self._progress,
                trusted=top.trusted,
                own=own,
            )
        return restore_directory(self._reader, fd, child, self._ownership, self._progress)

    def _restore_file(self, child: Child) -> Report:
        top, name = self._top, child.entry.name
        if not os.path.lexists(os.path.join(os.fsencode(top.path), name)):
            return restore_file(self._reader, top.fd, name, child, self._ownership, self._progress)
        path = os.path.join(top.path, os.fsdecode(name))
        plan = plan_entry(self._reader, child, path, self._ownership, checksum=not top.trusted)
        warnings = one_file.carry_out(self._reader, plan, self._ownership, self._progress)
        return Report(warnings=warnings)

    def _restore_dump(self, part: Part) -> None:
        """Write a dump under a temporary name, then rename it: an incomplete dump must not look complete."""
        top = self._top
        self._progress.files += 1
        if top.resumed and _is_complete_dump(top, part):
            return
        partial = part.name + ".partial"
        if top.resumed:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(partial, dir_fd=top.fd)
        fd = create_file(partial, folder=top.fd)
        try:
            drop_inherited(fd)
            write_sparse(fd, counted(self._reader.read(part.content), self._progress))
            os.rename(partial, part.name, src_dir_fd=top.fd, dst_dir_fd=top.fd)
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=top.fd)
            if isinstance(error, OSError):
                raise StorageError(f"cannot write {partial}: {error.strerror}") from error
            raise
        finally:
            os.close(fd)


def _open_part(top: Destination, name: bytes) -> int:
    """Open the directory of a tree; create it unless an earlier restore did."""
    try:
        fd = make_directory(name, top.fd)
    except FileExistsError:
        return os.open(name, OPEN_DIRECTORY, dir_fd=top.fd)
    # Remove the default ACL that the directory inherited from its parent.
    drop_inherited(fd)
    return fd


def _is_complete_dump(top: Destination, part: Part) -> bool:
    """Whether an earlier restore wrote a dump completely."""
    try:
        info = os.stat(part.name, dir_fd=top.fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return top.trusted and stat.S_ISREG(info.st_mode) and info.st_size == part.size


def counted(pieces: Iterable[bytes], progress: Progress) -> Iterator[bytes]:
    """Yield pieces, and count their bytes in `progress`."""
    for data in pieces:
        yield data
        progress.read += len(data)
