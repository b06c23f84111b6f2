"""The record of an operation on a service, and its outcome."""

from __future__ import annotations

import msgspec


class Event(msgspec.Struct, frozen=True):
    """One operation that castore did or tried."""

    kind: str
    """snapshot, rollback, recover, guard, follow, drill, prune."""
    service: str
    time: int
    """When it began: nanoseconds since 1970."""
    duration: int
    """Nanoseconds."""
    ok: bool
    number: int | None = None
    """The generation that the operation took or used; None if there was none."""
    revision: str = ""
    text: str = ""
    """The outcome; for a failure, the reason."""
