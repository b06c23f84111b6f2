"""Records of the last snapshot of a tree, on this machine: unchanged files are not read again.

A scan cache is a file: a header, then a record (castore/kernel/dir_listing.py) of each directory, depth first
in the order of names, then a hash of it all. If anything is wrong with it, the tree is scanned without it.
It names the references of directories in the store, so it belongs to one generation. It is useful as long as
the last generation of its service has the root that it names.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.model.refs import RecordId, Ref, RefKind

if TYPE_CHECKING:
    from castore.kernel.dir_listing import Record
    from castore.store import Store

LINKED: Final = 2
"""Flag of a record: it, or one below it, has a file with several names."""

MAGIC: Final = b"castoren"
VERSION: Final = 3
HEADER: Final = struct.Struct("<8sQ32s16s32sQ")
"""Magic, version, digest of the scan's rules, the index's epoch, id and size of the root."""
SUMMARY: Final = struct.Struct("<QQQQ32sQQQ8x")
HASH_BYTES: Final = 32
_RACY_NS: Final = 2_000_000_000
"""Files that changed so shortly before the listing may change again with the same time: FAT stores
two-second times."""


class DirectorySummary(NamedTuple):
    """A record's summary of a directory and all below it."""

    time: int
    """When it was listed: ns since 1970."""
    files: int
    size: int
    """Bytes of content."""
    chunks: int
    """References to chunks."""
    ref: Ref
    ids: tuple[int, int]
    """The directory's device and inode."""


def scan_path(store: Store, service: str, part: str) -> str:
    """Return the path of this machine's scan cache of a tree."""
    folder = store.paths.scans_of(store.store_id, store.storage.canonical_location)
    return os.path.join(folder, f"{service}:{part}")


def summary_of(record: Record) -> DirectorySummary:
    """Return the summary in a record."""
    return decode_summary(record.summary)


def decode_summary(summary: bytes) -> DirectorySummary:
    """Return the summary of a directory from its bytes in a record."""
    time, files, size, chunks, ref, ref_size, dev, ino = SUMMARY.unpack(summary)
    return DirectorySummary(time, files, size, chunks, Ref(RefKind.LIST, RecordId(ref), ref_size), (dev, ino))


def racy_since(time: int) -> int:
    """Return the first ctime (ns) of files that may have changed, unnoticed, after they were listed."""
    return time - _RACY_NS


def is_racily_clean(ctime: int, time: int) -> bool:
    """Whether a file with this ctime may have changed, unnoticed, after it was listed at `time` (ns)."""
    return ctime >= racy_since(time)
