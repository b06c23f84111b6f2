"""What was done to services, and how it went."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One thing that castore did or tried."""

    kind: str
    """snapshot, rollback, recover, guard, follow, drill, prune."""
    service: str
    time: int
    """When it was begun: nanoseconds since 1970."""
    duration: int
    """Nanoseconds."""
    ok: bool
    number: int | None = None
    """The generation that it is about."""
    revision: str = ""
    text: str = ""
    """What came of it; of a failure, the reason."""
