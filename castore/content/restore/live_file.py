"""The live file that a restore replaces: what of its content is known, and who may share it."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from castore.content.restore.metadata import is_privileged
from castore.content.restore.undo_journal import Path  # noqa: TC001 - NamedTuple needs it
from castore.content.scan.cache import is_racily_clean, summary_of
from castore.content.scan.record_streams import own_streams
from castore.errors import DamageError
from castore.fs.beneath import open_regular
from castore.fs.stamp import Stamp, stamp_of
from castore.kernel.dir_listing import DOUBTFUL, SPARSE, entry_at
from castore.model.refs import Ref  # noqa: TC001 - NamedTuple needs it
from castore.model.tree import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Step
    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.stored_dirs import Child

LARGE: Final = 1 << 20
"""A file of at least this size may reuse content of the file that it replaces."""


class Proof(NamedTuple):
    """A stored stream that a live file has as its content, as long as the file has this stamp."""

    ref: Ref
    stamp: Stamp


class LiveFile(NamedTuple):
    """A live file that is to be replaced, open for reading."""

    fd: int
    stamp: Stamp
    """As it was when it was opened."""
    ref: Ref | None = None
    """The stored stream that is proven to be its content."""


def open_live(folder: int, name: bytes, proof: Proof | None) -> LiveFile | None:
    """Open a live file that is to be replaced; None if it is not regular, or cannot be read."""
    try:
        fd = open_regular(folder, name)
    except OSError:
        return None
    stamp = stamp_of(os.fstat(fd))
    return LiveFile(fd, stamp, proof.ref if proof is not None and stamp == proof.stamp else None)


def has_changed(live: LiveFile) -> bool:
    """Whether a live file was written to since it was opened. Its ctime may differ: new names change it."""
    return stamp_of(os.fstat(live.fd))[:4] != live.stamp[:4]


def is_large(step: Step) -> bool:
    """Whether a step replaces a file by a regular one with a stream of its own that is large."""
    child = step.child
    own = child is not None and child.entry.is_file and child.entry.content is not Content.SMALL_FILES
    return own and step.action == "replace" and step.size >= LARGE


def with_proofs(scan: ScanCacheReader | None, ids: tuple[int, int], steps: Sequence[Step]) -> list[Step]:
    """Add to the steps that replace large files what the last snapshot's scan proves of their content.

    ids: device and inode of the top. The rules are those by which a snapshot does not read a file again: its
    inode, size and times are as they were when it was read, and its ctime was not recent then.
    """
    if scan is None or summary_of(scan.record(scan.top)).ids != ids:
        return list(steps)
    proofs: dict[Path, dict[bytes, Proof]] = {}
    proven = []
    for step in steps:
        if not is_large(step):
            proven.append(step)
            continue
        folder = step.path[:-1]
        if folder not in proofs:
            proofs[folder] = _proofs(scan, folder)
        proven.append(msgspec.structs.replace(step, proof=proofs[folder].get(step.path[-1])))
    return proven


def _proofs(scan: ScanCacheReader, folder: Path) -> dict[bytes, Proof]:
    """Return what the scan proves of the large files of the directory at a path."""
    record = scan.record(scan.top)
    for name in folder:
        at = scan.below(record).get(name)
        if at is None:
            return {}
        record = scan.record(at)
    since = summary_of(record).time
    proofs = {}
    with contextlib.suppress(DamageError):
        for place, mark, ref, _ in own_streams(record):
            entry = entry_at(record.listing, place)
            # Of a file with holes, offsets in its stream are not those in the file.
            unsure = mark & (DOUBTFUL | SPARSE) or is_racily_clean(entry.ctime_ns, since)
            if not unsure and ref.size == entry.size:
                stamp = Stamp(entry.dev, entry.ino, entry.size, entry.mtime_ns, entry.ctime_ns)
                proofs[entry.name] = Proof(ref, stamp)
    return proofs


def may_share(ownership: Ownership, old: int, child: Child) -> bool:
    """Whether all users who may write to a replaced file, open as `old`, may also write to the new one.

    Otherwise they could change the replaced file's content between the comparison and the use of it.
    """
    entry = child.entry
    if is_privileged(entry.st_mode, entry.extra.xattrs):
        return False
    info = os.fstat(old)
    uid, gid = os.geteuid(), info.st_gid
    if ownership.change:
        uid, gid = ownership.of(entry, child.owners)
    if info.st_uid not in {uid, os.geteuid()}:
        return False
    more = info.st_mode & ~entry.mode & (stat.S_IWGRP | stat.S_IWOTH)
    return not more and (info.st_gid == gid or not info.st_mode & stat.S_IWGRP)
