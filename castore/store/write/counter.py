"""Numbers for records, each of which is part of the nonce of one record."""

from __future__ import annotations

import threading
from typing import Final

from castore.errors import StorageError

MAX_COUNTER: Final = 0xFFFFFFFF


class RecordCounter:
    """Gives each number once, to any thread: two records under one nonce reveal their contents."""

    def __init__(self, start: int = 0) -> None:
        # A lock, not an atomic step of the interpreter: a free-threaded Python does not promise one.
        self._lock = threading.Lock()
        self._next = start

    def take(self) -> int:
        """Return the next number. Raises StorageError after the last one, and at every call from then on."""
        with self._lock:
            if self._next > MAX_COUNTER:
                raise StorageError(
                    "this session is full: it has 2^32 records; snapshot its parts as separate services"
                )
            number = self._next
            self._next += 1
        return number
