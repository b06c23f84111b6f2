"""Complete a tree that an interrupted restore left incomplete."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castore.content.restore.in_place import PlanWriter
from castore.content.restore.plan import Comparison
from castore.content.restore.planner import plan_tree
from castore.errors import CastoreError
from castore.fs.beneath import open_below
from castore.fs.removing import remove

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Step
    from castore.content.restore.report import Report
    from castore.content.stored_dirs import Child
    from castore.content.streams import StreamReader
    from castore.progress import Progress


def complete(
    reader: StreamReader,
    child: Child,
    top: str,
    ownership: Ownership,
    progress: Progress,
    *,
    trusted: bool,
    own: AbstractSet[bytes],
) -> Report:
    """Make the directory `top`, which a restore began to fill, equal to the stored one.

    trusted: files of the right size and time are complete, because the time is set last. own: names in it
    that do not belong to the tree. Other files that the tree does not have are left and reported. Raises
    CastoreError.
    """
    plan = plan_tree(reader, child, top, ownership, Comparison(checksum=not trusted))
    work = PlanWriter(reader, plan, ownership, progress)
    try:
        for step in plan.steps:
            if step.child is None:
                if step.path[0] not in own:
                    where = b"/".join(step.path)
                    work.report.warnings.append((where, "is not in the generation; left alone"))
                continue
            try:
                _do(work, step)
            except OSError as error:
                shown = os.path.join(top, os.fsdecode(b"/".join(step.path)))
                raise CastoreError(f"cannot restore {shown}: {error.strerror}") from error
    finally:
        work.close()
    work.report.warnings += plan.skipped
    return work.report


def _do(work: PlanWriter, step: Step) -> None:
    path = step.path or (b".",)
    if step.child is None:
        return
    fd = open_below(work.top, path[:-1])
    try:
        if step.action == "metadata":
            work.set(fd, path, step.child, step.ids)
            return
        if step.action == "replace":
            remove(path[-1], fd)
        work.make(fd, path, step.child, None)
    finally:
        os.close(fd)
