"""Restore one stored file to its place, in one step."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Final

from castore.content.restore.copying import check_overwritable, copy, overwrite
from castore.content.restore.live_file import open_live
from castore.content.restore.metadata import mode_of, replace_attributes
from castore.content.restore.tree_writer import TreeWriter, named
from castore.errors import CastoreError, DamageError
from castore.fs.beneath import open_entry, open_regular, open_top, path_of
from castore.fs.durable import sync_if_supported
from castore.fs.removing import remove

if TYPE_CHECKING:
    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Step, TreePlan
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.progress import Progress

_NEW: Final = ".castore-new-"


def carry_out(
    reader: StreamReader, plan: TreePlan, ownership: Ownership, progress: Progress
) -> list[tuple[bytes, str]]:
    """Carry out a plan of `plan_entry`; return (path, reason) of the metadata that could not be set.

    After any failure the file is complete or unchanged. Raises CastoreError, DamageError.
    """
    problems: list[tuple[bytes, str]] = []
    for step in plan.steps:
        shown = os.path.join(plan.top, os.fsdecode(b"/".join(step.path)))
        try:
            top = open_top(plan.top)
            try:
                info = os.fstat(top)
                if plan.ids not in {None, (info.st_dev, info.st_ino)}:
                    raise OSError(errno.ESTALE, "its directory has been replaced by another one")
                problems += _do(reader, top, step, ownership, progress)
            finally:
                os.close(top)
        except OSError as error:
            raise CastoreError(f"cannot {step.action} {shown}: {error.strerror}") from error
    return problems


def _do(
    reader: StreamReader, top: int, step: Step, ownership: Ownership, progress: Progress
) -> list[tuple[bytes, str]]:
    (name,), child = step.path, step.child
    if child is None:
        raise AssertionError("one file is not removed")
    if step.action == "metadata":
        problems: list[tuple[bytes, str]] = []

        def warn(reason: str) -> None:
            problems.append((name, reason))

        held = open_entry(top, name)
        try:
            info = os.fstat(held)
            if step.ids not in {None, (info.st_dev, info.st_ino)}:
                raise OSError(errno.ESTALE, "another file has taken its place")
            mode = mode_of(child.entry, ownership)
            replace_attributes(path_of(held), child.entry, child.owners, ownership, warn, mode=mode)
        finally:
            os.close(held)
        return problems
    new = f"{_NEW}{os.urandom(8).hex()}".encode()
    writer = TreeWriter(reader, top, ownership, progress)
    try:
        _make(writer, top, new, name, child)
        _exchange(top, new, name)
        sync_if_supported(top)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            remove(new, top)
        raise
    return [(name, reason) for _, reason in writer.report.warnings]


def _make(writer: TreeWriter, top: int, new: bytes, name: bytes, child: Child) -> None:
    """Create the stored file under a temporary name, durably. Raises DamageError, CastoreError."""
    old = open_live(top, name, None)
    try:
        writer.make(top, (new,), named(child, new), old)
    finally:
        if old is not None:
            os.close(old.fd)
    for _, reason in writer.report.damaged:
        raise DamageError(f"{os.fsdecode(name)} is damaged in the store, and was not touched: {reason}")
    for _, reason in writer.report.unmade:
        raise CastoreError(f"cannot restore {os.fsdecode(name)}: it {reason}")
    if child.entry.is_file:
        # castore opens it only to sync it, but its mode may be 0: then only root can open it.
        with contextlib.suppress(PermissionError):
            fd = open_regular(top, new)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _exchange(top: int, new: bytes, name: bytes) -> None:
    """Replace the live file by the new one; a mount point is overwritten."""
    try:
        os.rename(new, name, src_dir_fd=top, dst_dir_fd=top)
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.EXDEV}:
            raise
        _overwrite(top, new, name)


def _overwrite(top: int, new: bytes, name: bytes) -> None:
    """Overwrite a mount point; if that fails, restore its content from a copy. Raises OSError."""
    check_overwritable(top, name)
    before = new + b"-before"
    copy(top, name, top, before)
    try:
        overwrite(top, new, top, name)
    except BaseException as cause:
        try:
            overwrite(top, before, top, name)
        except OSError as error:
            raise CastoreError(
                f"{os.fsdecode(name)} is a mount point that could be neither overwritten nor restored "
                f"({error.strerror}): its previous content is in {os.fsdecode(before)} next to it"
            ) from cause
        os.unlink(before, dir_fd=top)
        raise
    os.unlink(before, dir_fd=top)
    os.unlink(new, dir_fd=top)
