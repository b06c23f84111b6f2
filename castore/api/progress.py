"""Progress callbacks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.progress import Progress

if TYPE_CHECKING:
    from collections.abc import Callable

    Watch = Callable[[str, Progress], None]
    """Is called with the name of each work that begins, and the counters that the work updates."""


def counters(name: str, watch: Watch | None) -> Progress:
    """Return the counters of a work that begins, after passing them to `watch`."""
    made = Progress()
    if watch is not None:
        watch(name, made)
    return made
