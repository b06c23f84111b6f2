"""Progress counters for the callbacks of callers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.progress import Progress

if TYPE_CHECKING:
    from castore.progress import Watch


def counters(name: str, watch: Watch | None) -> Progress:
    """Return the counters of a task that begins, after passing them to `watch`."""
    made = Progress()
    if watch is not None:
        watch(name, made)
    return made
