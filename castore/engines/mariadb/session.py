"""A client that stays connected and answers queries that only read: a rollback asks more than a hundred.

It only saves time. If it cannot be started or a query fails, there is no answer, and the caller runs the
query in a client of its own, whose error is reported. An account that may have few connections needs them
for the other clients: the session ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

from castore.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from castore.process.program import Program

_LONGEST: Final = 1 << 15
"""Bytes of a script that a pipe takes at once: the client may print before it has read all of it."""
_LIMIT: Final = b"SELECT @@max_user_connections;\n"
"""Of the account, or else of the server; 0: none."""
_OTHERS: Final = 2
"""The other connections at one time: of what loads or dumps, and of a lock."""


class Session:
    """A client that stays. `start` gives a new one, with pipes for its input and output."""

    def __init__(self, start: Callable[[int, int], AbstractContextManager[Program]], limit: int) -> None:
        self._start = start
        self._limit = limit
        self._open = contextlib.ExitStack()
        self._program: Program | None = None
        self._is_allowed = True
        self._end = b"castore " + os.urandom(12).hex().encode()

    def answer(self, sql: str) -> bytes | None:
        """Return what statements that only read print; None: there is no answer."""
        script = os.fsencode(sql.rstrip("; \n")) + b";\nSELECT '%b';\n" % self._end
        if len(script) > _LONGEST or not self._is_allowed:
            return None
        try:
            if self._program is None:
                self._program = self._open.enter_context(self._start(subprocess.PIPE, subprocess.PIPE))
                most = self._exchange(self._program, _LIMIT + b"SELECT '%b';\n" % self._end)
                self._is_allowed = most is not None and not 0 < int(most) <= _OTHERS
            found = self._exchange(self._program, script) if self._is_allowed else None
        except (ProgramError, OSError):
            found = None
        if found is None:
            self.close()
        return found

    def _exchange(self, program: Program, script: bytes) -> bytes | None:
        _, complete = program.write([script])
        answer = bytearray()
        room = memoryview(bytearray(1 << 16))
        end = self._end + b"\n"
        while complete and len(answer) <= self._limit:
            count = program.read(room)
            if not count:
                break
            answer += room[:count]
            if answer.endswith(end) and bytes(answer[-len(end) - 1 : -len(end)]) in {b"", b"\n"}:
                return bytes(answer[: -len(end)])
        return None

    def close(self) -> None:
        """End the client. A later question starts another one."""
        program, self._program = self._program, None
        if program is not None:
            # A client that sees the end of its input takes leave of the server.
            with contextlib.suppress(ProgramError, OSError):
                program.close_input()
                program.wait()
        with contextlib.suppress(ProgramError):
            self._open.close()
