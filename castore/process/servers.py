"""Servers of databases that are started for a drill or a roll-back, as a user without privileges."""

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
from castore.process.program import TOLD_LINES, client_environment, environment, run_as
from castore.process.scratch_dir import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_START_SECONDS: Final = 60.0
_MOST_LOG: Final = 1 << 20
_PR_SET_PDEATHSIG: Final = 1


class Running:
    """A server that was started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._name = name
        self._process = process
        self._log = log

    def wait_for(self, question: Sequence[str]) -> None:
        """Wait until a program that asks it exits with 0. Raises ProgramError, with the end of its log."""
        end = time.monotonic() + _START_SECONDS
        null = subprocess.DEVNULL
        own = environment(client_environment())
        while subprocess.run(question, check=False, stdin=null, stdout=null, stderr=null, env=own).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                lines = os.pread(self._log.fileno(), _MOST_LOG, 0).decode(errors="replace").splitlines()
                raise ProgramError(f"{self._name} did not start: {'; '.join(lines[-TOLD_LINES:])}")
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
    """Run a server through the block; it is ended by the signal `ending`. Raises ProgramError."""
    # Its log has no name: in a directory of the server's user, a name may lead to any file.
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
                # Whatever ends castore ends the server: a killed drill leaves none behind.
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
    """Return what a new process calls so that it gets that signal when castore is gone.

    It has to be called by the process itself, after its user was changed: that would clear it (prctl(2)).
    """
    prctl = ctypes.CDLL(None).prctl
    castore = os.getpid()

    def call() -> None:
        prctl(_PR_SET_PDEATHSIG, ending)
        if os.getppid() != castore:
            os._exit(1)

    return call


def unprivileged(name: str) -> pwd.struct_passwd | None:
    """Return the user that root runs a scratch server as: nobody, else `name`; None: castore is not root.

    A dump may have a server run programs as that user. `name` has the live server's files.
    """
    if os.geteuid() != 0:
        return None
    for one in ("nobody", name):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(one)
    raise ProgramError(f"there is no user {name!r} to run a server as")


@contextlib.contextmanager
def socket_folder(account: pwd.struct_passwd | None) -> Iterator[str]:
    """Give a new directory for the socket of a server that runs as that account; its path is short.

    The path of a socket has at most 107 bytes.
    """
    with scratch_folder("castore-run-", mode=0o711) as top:
        folder = os.path.join(top, "s")
        os.mkdir(folder, 0o700)
        give(folder, account)
        yield folder


def give(path: str | int, account: pwd.struct_passwd | None) -> None:
    """Give a file, by its path in a directory of castore's own or open, to the user that a server runs as."""
    if account is not None:
        follow = isinstance(path, int)
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=follow)
