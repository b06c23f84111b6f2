"""Events: what castore did to a service is kept on this machine, whether it went well or not."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from castore.errors import CastoreError, StorageError
from castore.model.events import Event
from castore.model.odd_text import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation
    from castore.store import Store

_LONGEST = 2000


@dataclass
class Note:
    """What is going to be told of an event."""

    number: int | None = None
    revision: str = ""
    text: str = ""

    def of(self, generation: Generation) -> None:
        """It is about this generation."""
        self.number, self.revision = generation.number, generation.revision


@contextlib.contextmanager
def event(store: Store, kind: str, service: str) -> Iterator[Note]:
    """Keep what the block does, or why it failed, as an event."""
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
        # What it is about counts, not whether it can be noted.
        with contextlib.suppress(StorageError):
            store.event_log.append(
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
    """Return the last drill of each generation that was drilled, by service and number."""
    return {
        (found.service, found.number): found
        for found in reversed(store.event_log.read())
        if found.kind == "drill" and found.number is not None
    }
