"""Numbers of records; each is part of the nonce of one record."""

from __future__ import annotations

import threading
from typing import Final

from castore.errors import StorageError

MAX_COUNTER: Final = 0xFFFFFFFF


class RecordCounter:
    """Issues each number once, to any thread: two records under one nonce reveal their content."""

    def __init__(self, start: int = 0) -> None:
        # A lock, because a free-threaded Python does not promise that the interpreter's steps are atomic.
        self._lock = threading.Lock()
        self._next = start

    def take(self) -> int:
        """Return the next number. After the last one, every call raises StorageError."""
        with self._lock:
            if self._next > MAX_COUNTER:
                raise StorageError(
                    "this session is full: it has 2^32 records; snapshot its parts as separate services"
                )
            number = self._next
            self._next += 1
        return number
