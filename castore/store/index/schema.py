"""The layout of an index: the encoding of keys and values, and how tables are iterated."""

from __future__ import annotations

import itertools
import struct
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb

if TYPE_CHECKING:
    from collections.abc import Iterator

LOCATION: Final = struct.Struct("<IIIIIIBBB")
"""Pack, offset, sealed length, plain length, counter, session, codec, member number, size of its group."""
PACK_NUMBER: Final = slice(0, 4)
"""Position of the pack number in a location; little-endian, unlike in keys."""
RECORD: Final = slice(0, 8)
"""Position of pack number and offset in a location: together they identify a record."""
SEALED: Final = slice(8, 12)
"""Position of the sealed length in a location."""
PLAIN: Final = slice(12, 16)
"""Position of the plain length in a location."""
SESSION_NUMBER: Final = slice(20, 24)
"""Position of the session number in a location; little-endian, unlike in keys."""
CODEC: Final = 24
"""Position of the codec in a location."""
GROUP_SIZE: Final = 26
"""Position of the size of the delta group in a location."""
NUMBER: Final = struct.Struct(">I")
PACK: Final = struct.Struct("<32sQQ")
"""Id, length, and bytes of records."""
BATCH: Final = 1 << 14
"""Records that are examined in one call of the kernel."""
TABLES: Final = (
    "chunks",
    "nodes",
    "copies",
    "bases",
    "features",
    "usage",
    "packs",
    "pack_numbers",
    "sessions",
    "session_numbers",
    "generations",
    "revisions",
    "records",
    "meta",
    "verified",
    "ended",
    "owners",
)

# Keys of the table `meta`.
MARK: Final = b"mark"
"""Layout and store that the index is of."""
NEXT_PACK: Final = b"next pack"
NEXT_SESSION: Final = b"next session"
EPOCH: Final = b"epoch"
ROTATION: Final = b"rotation"
NOT_REFERENCED: Final = b"deletions"
BEGUN: Final = (b"verifying 1", b"verifying 2")
"""When a verification of depth 1 or 2 began that has not ended."""
LOADED: Final = b"verification loaded"
OF_CONTENT: Final = frozenset({EPOCH, NOT_REFERENCED, LOADED})
"""Keys whose values refer to the pack numbers of an index, or to what it has indexed."""

_Item = TypeVar("_Item")


def forwards(before: bytes, key: bytes) -> bytes:
    """Return a key, which must come after `before`: a damaged page may lead back, and so loop forever.

    Raises lmdb.CorruptedError.
    """
    if key <= before:
        raise lmdb.CorruptedError("its keys are out of order")
    return key


def batches(items: Iterator[_Item]) -> Iterator[list[_Item]]:
    """Yield the entries of a table in batches."""
    while batch := list(itertools.islice(items, BATCH)):
        yield batch
