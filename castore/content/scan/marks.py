"""Marks of names in a scan cache, and what a later scan concludes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from castore.content.scan.cache import racy_since, summary_of
from castore.kernel.dir_compare import MarksRule
from castore.kernel.dir_listing import BUNDLED, DISTRUST, DOUBTFUL, EMPTY, ENTERED, OWN_STREAM, WITH_XATTRS

if TYPE_CHECKING:
    from castore.kernel.dir_listing import Record
    from castore.model.refs import Ref

_SECOND: Final = 10**9


def known_marks(record: Record, stored: Ref | None) -> MarksRule | None:
    """Return which files a record knows, if they are unchanged; None: it is not to be trusted.

    stored: the directory with which the live one is compared. Content is known only if the scan stored it.
    """
    if record.flags & DISTRUST:
        return None
    summary = summary_of(record)
    same = summary.ref == stored
    return MarksRule(
        BUNDLED | OWN_STREAM | EMPTY | ENTERED,
        DOUBTFUL | ENTERED if same else None,
        WITH_XATTRS,
        same,
        racy_since(summary.time) // _SECOND,
    )
