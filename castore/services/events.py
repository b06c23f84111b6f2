"""Record what castore did to a service, with success or failure, as events on this machine."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from castore.errors import CastoreError, StorageError
from castore.model.events import Event
from castore.model.odd_text import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation
    from castore.store import Store

_LONGEST = 2000
"""Characters that are kept of an event's text."""


class Note(msgspec.Struct):
    """The details of an event, which the block fills in."""

    number: int | None = None
    revision: str = ""
    text: str = ""

    def of(self, generation: Generation) -> None:
        """Set the generation that the event is about."""
        self.number, self.revision = generation.number, generation.revision


@contextlib.contextmanager
def event(store: Store, kind: str, service: str) -> Iterator[Note]:
    """Record the block as an event: its duration, details, and why it failed if it raises."""
    note = Note()
    began, clock = time.time_ns(), time.monotonic_ns()
    failure = ""
    try:
        yield note
    except BaseException as error:
        interrupted = "interrupted" if isinstance(error, KeyboardInterrupt) else type(error).__name__
        failure = (str(error) if isinstance(error, CastoreError) else interrupted) or interrupted
        raise
    finally:
        # A failure to record the event must not fail the operation.
        with contextlib.suppress(StorageError):
            store.state.event_log.append(
                Event(
                    kind,
                    service,
                    began,
                    time.monotonic_ns() - clock,
                    not failure,
                    note.number,
                    note.revision,
                    message(failure or note.text)[:_LONGEST],
                )
            )


def drills(store: Store) -> dict[tuple[str, int], Event]:
    """Return the last drill of each drilled generation, by service and number."""
    return {
        (found.service, found.number): found
        for found in reversed(store.state.event_log.read())
        if found.kind == "drill" and found.number is not None
    }
