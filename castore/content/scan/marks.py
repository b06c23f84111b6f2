"""Marks of names in a scan cache, and what a later scan concludes from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.kernel.dir_compare import MarksRule
from castore.kernel.dir_listing import BUNDLED, DISTRUST, DOUBTFUL, EMPTY, ENTERED, OWN_STREAM, WITH_XATTRS

if TYPE_CHECKING:
    from castore.kernel.dir_listing import Record


def known_marks(record: Record, *, content: bool) -> MarksRule | None:
    """Return which files a record knows, if they are unchanged; None: it is not to be trusted.

    content: whether the content that the scan stored is of interest.
    """
    if record.flags & DISTRUST:
        return None
    but = DOUBTFUL | ENTERED
    return MarksRule(BUNDLED | OWN_STREAM | EMPTY, but if content else None, WITH_XATTRS | ENTERED)
