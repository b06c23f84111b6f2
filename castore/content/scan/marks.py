"""Marks of names in a scan cache, and what a later scan concludes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.kernel.dir_listing import (
    BUNDLED,
    DISTRUST,
    DOUBTFUL,
    ENTERED,
    OWN_STREAM,
    WITH_XATTRS,
    entry_bytes,
    name_at,
    places_of,
)

if TYPE_CHECKING:
    from castore.kernel.dir_listing import Record

def without_xattrs(record: Record, listing: bytes) -> set[bytes]:
    """Return the names in a listing that a record has unchanged, and without attributes."""
    return _as_before(record, listing, but=WITH_XATTRS | ENTERED)


def unchanged(record: Record, listing: bytes) -> set[bytes]:
    """Return the names in a listing of files that a record has unchanged, with their content."""
    return _as_before(record, listing, but=DOUBTFUL | ENTERED)


def _as_before(record: Record, listing: bytes, *, but: int) -> set[bytes]:
    """Return the names in a listing of files that a record has unchanged and without one of these marks."""
    if record.flags & DISTRUST:
        return set()
    before = {
        entry_bytes(record.listing, place)
        for place, mark in zip(places_of(record.listing), record.marks, strict=True)
        if mark & (BUNDLED | OWN_STREAM) and not mark & but
    }
    places = places_of(listing)
    return {name_at(listing, at) for at in places if entry_bytes(listing, at) in before}
