"""The standard error of a program: copied to castore's own, and its last lines kept for messages."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections import deque
from typing import TYPE_CHECKING, Final

from castore.process.signal_shield import start_without_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Filter = Callable[[bytes], bytes | None]
    """Returns the text of a line of standard error that may be shown and recorded; None: nothing."""

LAST_LINES: Final = 5
"""Number of lines of a program's standard error in the message that it failed."""
_LINE: Final = 300
"""Bytes that are kept of a line of standard error."""
_FILTERED_LINE: Final = 4096
"""Bytes of the beginning of a line that a filter gets."""

_shown = True


@contextlib.contextmanager
def errors_unshown() -> Iterator[None]:
    """Do not copy programs' standard error to castore's own during the block: the caller shows the errors."""
    global _shown  # noqa: PLW0603 - one per process, as standard error is
    before, _shown = _shown, False
    try:
        yield
    finally:
        _shown = before


class StandardError:
    """The standard error of a program: keeps its last lines, and copies it to castore's own if `shown`."""

    def __init__(self, only: Filter | None, *, shown: bool) -> None:
        self._only = only
        self._shown = shown and _shown
        self._read, self.write = os.pipe()
        self._lines: deque[bytes] = deque(maxlen=LAST_LINES)
        self._rest = b""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, name="castore-errors", daemon=True)

    def start(self) -> None:
        """Start reading, after the program has inherited the writing end."""
        os.close(self.write)
        start_without_signals(self._thread)

    def _pass_on(self) -> None:
        poll = select.poll()
        poll.register(self._read)
        while True:
            over = self._over.is_set()
            if poll.poll(100):
                data = os.read(self._read, 1 << 14)
                if not data:
                    break
                if self._only is None:
                    self._show(data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._keep(line)
                self._rest = self._rest[-_LINE:] if self._only is None else self._rest[:_FILTERED_LINE]
            elif over:
                break  # a process that the program started still has it open
        rest, self._rest = self._rest, b""
        self._keep(rest)
        os.close(self._read)

    def _show(self, data: bytes) -> None:
        if not self._shown:
            return
        with contextlib.suppress(OSError):
            os.write(2, data)

    def _keep(self, line: bytes) -> None:
        if self._only is not None:
            found = self._only(line[:_FILTERED_LINE])
            if found is None:
                return
            line = found
            self._show(line + b"\n")
        if line.strip():
            self._lines.append(line[-_LINE:])

    def close(self) -> None:
        """Stop reading, when the program has ended."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            os.close(self._read)
            os.close(self.write)

    def last_lines(self) -> str:
        """Return the last lines, separated by semicolons."""
        return "; ".join(line.decode(errors="backslashreplace").strip() for line in self._lines)
