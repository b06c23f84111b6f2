"""Programs that make dumps, take them in, or print a line that is wanted.

They are argument lists, never run by a shell. What they write to standard error goes where
castore's own does. A program that fails raises ProgramError, and none is left running behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Final

from castore.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_PIPE_BYTES: Final = 1 << 20
"""What a user without privileges may ask for; the default of 64 KiB costs a wake-up a chunk."""

_GRACE_SECONDS: Final = 5.0
"""How long a program may take to end once it was asked to."""

_MAX_LINE_BYTES: Final = 1 << 20


@contextlib.contextmanager
def run_dump(argv: Sequence[str]) -> Iterator[Callable[[memoryview], int]]:
    """Run a program whose standard output is a dump; give a function that reads it.

    The function fills the beginning of a buffer and returns how many bytes it put there. It
    returns 0 at the end, if the program has exited with 0; else it raises ProgramError. Only
    what was read up to that 0 is a dump: a program that still runs when the block is left is
    terminated, and leaving the block raises ProgramError then, too.
    """
    process = _start(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        enlarge_pipe(process.stdout.fileno())
        yield partial(_read, process, argv[0])
    except BaseException:
        _stop(process)
        raise
    _stop(process)
    _check(argv[0], process.returncode)


def feed(argv: Sequence[str], chunks: Iterable[bytes | memoryview]) -> None:
    """Run a program and write `chunks` to its standard input.

    Raises ProgramError if the program does not exit with 0, or stops reading before it got
    everything. When `chunks` raises, the program is terminated *before* its standard input is
    closed: it must not take the end of what it got for the end of the dump.
    """
    process = _start(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    try:
        enlarge_pipe(process.stdin.fileno())
        fed, complete = _write_all(process.stdin.fileno(), chunks)
        process.stdin.close()
        process.wait()
    except BaseException:
        _stop(process)
        raise
    _check(argv[0], process.returncode)
    if not complete:
        raise ProgramError(
            f"{argv[0]} exited with status 0, but stopped reading after at most {fed} bytes, "
            "before it got everything"
        )


def output_of(argv: Sequence[str], *, interactive: bool = False) -> bytes:
    """Run a program and return its standard output, which must be short.

    With `interactive` it has castore's standard input, so that it can ask for something. Raises
    ProgramError if it does not exit with 0 or prints more than a mebibyte.
    """
    stdin = None if interactive else subprocess.DEVNULL
    process = _start(argv, stdin=stdin, stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        output = b""
        while data := os.read(process.stdout.fileno(), 1 << 16):
            output += data
            if len(output) > _MAX_LINE_BYTES:
                raise ProgramError(f"{argv[0]} prints more than the line that was expected of it")
        process.wait()
    finally:
        _stop(process)
    _check(argv[0], process.returncode)
    return output


def _start(argv: Sequence[str], stdin: int | None, stdout: int) -> subprocess.Popen[bytes]:
    if not argv:
        raise ProgramError("no program is named")
    try:
        # In castore's own process group: the program may ask for a password on the terminal, and
        # Ctrl-C reaches it and what it started.
        return subprocess.Popen(argv, stdin=stdin, stdout=stdout, bufsize=0)
    except FileNotFoundError:
        raise ProgramError(f"there is no program {argv[0]!r}: check its name and PATH") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ProgramError(f"cannot run {argv[0]!r}: {reason}") from error


def _read(process: subprocess.Popen[bytes], name: str, buffer: memoryview) -> int:
    assert process.stdout is not None
    count = os.readv(process.stdout.fileno(), [buffer])
    if not count:
        _check(name, process.wait())
    return count


def enlarge_pipe(descriptor: int) -> None:
    """Make room for more in a pipe, so that reader and writer wait less; other files are left alone."""
    # A user who has used up his share of pipe memory gets EPERM, and is served all the same.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)


def _write_all(descriptor: int, chunks: Iterable[bytes | memoryview]) -> tuple[int, bool]:
    """Write until the end, or until nobody reads; return the bytes written, and which it was."""
    written = 0
    for chunk in chunks:
        rest = memoryview(chunk)
        while rest:
            try:
                count = os.write(descriptor, rest)
            except BrokenPipeError:
                return written, False
            rest = rest[count:]
            written += count
    return written, True


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the program if it still runs, and close what is open towards it."""
    try:
        if process.poll() is None:
            process.terminate()
            # Closed now: a program that writes to a pipe that nobody reads would not see the
            # signal if it handles it by writing on. Its input stays open until it is gone.
            if process.stdout is not None:
                process.stdout.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _check(name: str, status: int) -> None:
    """Raise ProgramError unless `status`, as Popen gives it, is 0."""
    if status > 0:
        raise ProgramError(f"{name} failed: it exited with status {status}")
    if status < 0:
        try:
            killer = signal.Signals(-status).name
        except ValueError:
            killer = f"signal {-status}"
        raise ProgramError(f"{name} failed: it was killed by {killer}")
