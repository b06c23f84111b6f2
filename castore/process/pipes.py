"""The pipes of a program, and running it as another user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    import pwd

_PIPE_BYTES: Final = 1 << 20
"""The most that an unprivileged user may request; the default of 64 KiB costs a wake-up per chunk."""


class OwnPipes:
    """The pipes of a program that runs as another user, owned by that user.

    Without that, the program could not open /dev/stdin or /dev/stdout. For castore's own user, Popen creates
    the pipes.
    """

    def __init__(
        self, account: pwd.struct_passwd | None, stdin: int | None, stdout: int | None, errors: int | None
    ) -> None:
        self.stdin = stdin
        self.stdout = stdout
        self._account = account
        self._errors = errors
        self._theirs: list[int] = []
        self._ours: list[int] = []
        self._input: int | None = None
        self._output: int | None = None

    def __enter__(self) -> Self:
        if self._account is not None:
            try:
                self._open(self._account)
            except BaseException:
                self.__exit__()
                raise
        return self

    def _open(self, account: pwd.struct_passwd) -> None:
        if self.stdin == subprocess.PIPE:
            self.stdin, self._input = self._pipe(account)
        if self.stdout == subprocess.PIPE:
            self._output, self.stdout = self._pipe(account, writes=True)
        if self._errors is not None:
            os.fchown(self._errors, account.pw_uid, account.pw_gid)

    def _pipe(self, account: pwd.struct_passwd, *, writes: bool = False) -> tuple[int, int]:
        """Return both ends of a new pipe; writes: the program gets the writing end."""
        ends = os.pipe()
        self._theirs.append(ends[writes])
        self._ours.append(ends[not writes])
        os.fchown(ends[0], account.pw_uid, account.pw_gid)
        return ends

    def hand_over(self, process: subprocess.Popen[bytes]) -> None:
        """Attach castore's ends to the process object, as if Popen had created them."""
        if self._input is not None:
            process.stdin = open(self._input, "wb", buffering=0)  # noqa: SIM115 - Program.stop closes it
        if self._output is not None:
            process.stdout = open(self._output, "rb", buffering=0)  # noqa: SIM115
        self._ours.clear()

    def __exit__(self, *_: object) -> None:
        for end in (*self._theirs, *self._ours):
            os.close(end)


def run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return Popen's arguments to run a program as another user, in all its groups; None: as castore."""
    if account is None:
        return {}
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


def enlarge_pipe(descriptor: int) -> None:
    """Enlarge the buffer of a pipe, so that reader and writer wait less; other files are unchanged."""
    # A user who has exhausted the limit of pipe memory gets EPERM, and works with a small pipe.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
