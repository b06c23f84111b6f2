"""A client that stays connected for statements that may be repeated: a rollback runs more than a hundred.

This only saves time. If the client cannot be started or a statement fails, there is no answer, and the caller
runs the statement in a client of its own, whose error is reported. If the account may have only few
connections, the session ends, because the other clients need them.
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
"""Bytes of a script that fit into a pipe at once: the client may print before it has read all of it."""
_OTHERS: Final = 2
"""How many other connections castore needs at one time: for a load or dump, and for a lock."""


class QuerySession:
    """A client that stays connected.

    start: starts a client with pipes for its input and output. most: the largest answer in bytes. allowed:
    SQL that returns how many connections the account may have; 0 or less: any number. separator: what the
    client prints after a record.
    """

    def __init__(
        self,
        start: Callable[[int, int], AbstractContextManager[Program]],
        *,
        most: int,
        allowed: str,
        separator: bytes,
    ) -> None:
        self._start = start
        self._most = most
        self._allowed = allowed
        self._separator = separator
        self._open = contextlib.ExitStack()
        self._program: Program | None = None
        self._is_allowed = True
        self._end = b"castore " + os.urandom(12).hex().encode()

    def answer(self, sql: str) -> bytes | None:
        """Return what the statements print; None: there is no answer, and they may have been run or not."""
        script = self._marked(sql)
        if len(script) > _LONGEST or not self._is_allowed:
            return None
        try:
            if self._program is None:
                self._program = self._open.enter_context(self._start(subprocess.PIPE, subprocess.PIPE))
                allowed = self._exchange(self._program, self._marked(self._allowed))
                self._is_allowed = allowed is not None and not 0 < int(allowed.strip(b"\0")) <= _OTHERS
            output = self._exchange(self._program, script) if self._is_allowed else None
        except (ProgramError, OSError):
            output = None
        if output is None:
            self.close()
        return output

    def _marked(self, sql: str) -> bytes:
        """Return a script whose last record marks the end of the answer."""
        return os.fsencode(sql.rstrip("; \n")) + b";\nSELECT '%b';\n" % self._end

    def _exchange(self, program: Program, script: bytes) -> bytes | None:
        _, complete = program.write([script])
        answer = bytearray()
        room = memoryview(bytearray(1 << 16))
        end = self._end + self._separator
        while complete and len(answer) <= self._most:
            count = program.read(room)
            if not count:
                break
            answer += room[:count]
            if answer.endswith(end) and bytes(answer[-len(end) - 1 : -len(end)]) in {b"", self._separator}:
                return bytes(answer[: -len(end)])
        return None

    def close(self) -> None:
        """End the client. A later query starts another one."""
        program, self._program = self._program, None
        if program is not None:
            # At the end of its input a client disconnects from the server.
            with contextlib.suppress(ProgramError, OSError):
                program.close_input()
                program.wait()
        with contextlib.suppress(ProgramError):
            self._open.close()
