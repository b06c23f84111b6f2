"""Start database servers for a drill or a rollback, as a user without privileges."""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import subprocess
import tempfile
import time
from typing import IO, TYPE_CHECKING, Final

from castore.errors import ProgramError
from castore.process.environment import client_environment, environment
from castore.process.pipes import run_as
from castore.process.scratch_dir import scratch_folder
from castore.process.standard_error import LAST_LINES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_START_SECONDS: Final = 60.0
_MOST_LOG: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1


class Running:
    """A running server."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._log = log

    def wait_for(self, question: Sequence[str]) -> None:
        """Wait until the program `question`, a client, exits with 0.

        Raises ProgramError, with the end of the server's log, if it exits or does not answer within a minute.
        """
        end = time.monotonic() + _START_SECONDS
        null = subprocess.DEVNULL
        own = environment(client_environment())
        while subprocess.run(question, check=False, stdin=null, stdout=null, stderr=null, env=own).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                lines = os.pread(self._log.fileno(), _MOST_LOG, 0).decode(errors="replace").splitlines()
                raise ProgramError(f"{self._name} did not start: {'; '.join(lines[-LAST_LINES:])}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    ending: int,
    *,
    account: pwd.struct_passwd | None,
    cwd: str,
) -> Iterator[Running]:
    """Run a server during the block, and stop it with the signal `ending`. Raises ProgramError."""
    # The log has no name: in a directory of the server's user, its name could be a link to any file.
    with tempfile.TemporaryFile() as log:
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=cwd,
                env=environment(client_environment()),
                process_group=0,
                # The server ends when castore is killed: no drill leaves a server running.
                preexec_fn=_ends_with_castore(ending),  # noqa: PLW1509 - one system call, nothing else
                **run_as(account),
            )
        except OSError as error:
            raise ProgramError(f"cannot run {argv[0]!r}: {error.strerror}") from error
        try:
            yield Running(argv[0], process, log)
        finally:
            process.send_signal(ending)
            try:
                process.wait(_START_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _ends_with_castore(ending: int) -> Callable[[], None]:
    """Return a function with which a new process requests that signal for the end of castore.

    The process has to call it after its user was changed, which would clear the request (prctl(2)).
    """
    prctl = ctypes.CDLL(None).prctl
    castore = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, ending)
        if os.getppid() != castore:
            os._exit(1)

    return call


def unprivileged(name: str) -> pwd.struct_passwd | None:
    """Return the user that runs a scratch server: nobody, else `name`; None: castore is not root.

    A dump may make a server run programs as that user, and `name` owns the live server's files. Raises
    ProgramError if neither user exists.
    """
    if os.geteuid() != 0:
        return None
    for user in ("nobody", name):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(user)
    raise ProgramError(f"cannot run a scratch server: there is neither a user 'nobody' nor {name!r}")


@contextlib.contextmanager
def socket_folder(account: pwd.struct_passwd | None) -> Iterator[str]:
    """Create a directory with a short path for the socket of a server that runs as `account`.

    The path of a socket has at most 107 bytes.
    """
    with scratch_folder("castore-run-", mode=0o711) as top:
        folder = os.path.join(top, "s")
        os.mkdir(folder, 0o700)
        give(folder, account)
        yield folder


def give(path: str | int, account: pwd.struct_passwd | None) -> None:
    """Change the owner of a file to `account`. path: an open file, or a path in a directory of castore's."""
    if account is not None:
        follow = isinstance(path, int)
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=follow)
