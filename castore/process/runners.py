"""Programs that make dumps, take them in, or print a line that is wanted.

They are argument lists, never run by a shell. A program that fails, or takes longer than it may, raises
ProgramError, and none is left running behind. What they write to standard error goes where castore's own
does, and the end of it into the message if they fail; of programs that show what they are fed, only what a
filter lets through.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Final

from castore.errors import ProgramError
from castore.process.program import GRACE_SECONDS, Program, enlarge_pipe

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from castore.process.program import Filter

_MAX_LINE_BYTES: Final = 1 << 20


@contextlib.contextmanager
def run_dump(
    argv: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    idle: float | None = None,
    account: pwd.struct_passwd | None = None,
    kept: Sequence[int] = (),
    only: Filter | None = None,
) -> Iterator[Callable[[memoryview], int]]:
    """Run a program whose standard output is a dump; give a function that reads it.

    timeout: seconds that it may take. idle: seconds that it may neither run nor print anything.
    account: the user that it is run as; None: castore's own. kept: descriptors that the program has, too.
    only: what of a line of its standard error may be shown, and kept for the error; None: all.

    The function fills the beginning of a buffer and returns how many bytes it put there. It
    returns 0 at the end, if the program has exited with 0; else it raises ProgramError. Only
    what was read up to that 0 is a dump: a program that still runs when the block is left is
    terminated, and leaving the block raises ProgramError then, too.
    """
    pipes = None, subprocess.PIPE
    with Program(
        argv, *pipes, env=env, timeout=timeout, idle=idle, account=account, kept=kept, only=only
    ) as program:
        enlarge_pipe(program.output)

        def read(buffer: memoryview) -> int:
            count = program.read(buffer)
            if not count:
                program.wait()
            return count

        yield read
        program.stop()
        program.check()


def feed(
    argv: Sequence[str],
    chunks: Iterable[bytes | memoryview],
    *,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    account: pwd.struct_passwd | None = None,
    kept: Sequence[int] = (),
    only: Filter | None = None,
    shown: bool = True,
) -> None:
    """Run a program and write `chunks` to its standard input.

    account: the user that it is run as; None: castore's own. kept: descriptors that it has, too.
    only: for a program that shows what it is fed: what of its standard error may be told.
    shown: whether its standard error is copied to castore's own; the error has its last lines in any case.
    Raises ProgramError if the program does not exit with 0, or stops reading before it got
    everything. When `chunks` raises, the program is terminated *before* its standard input is
    closed: it must not take the end of what it got for the end of the dump.
    """
    pipes = subprocess.PIPE, subprocess.DEVNULL
    with Program(
        argv, *pipes, env=env, timeout=timeout, account=account, kept=kept, only=only, shown=shown
    ) as program:
        enlarge_pipe(program.input)
        fed, complete = program.write(chunks)
        program.close_input()
        program.wait()
        if not complete:
            raise ProgramError(
                f"{argv[0]} exited with status 0, but stopped reading after at most {fed} bytes, "
                "before it got everything"
            )


def output_of(
    argv: Sequence[str],
    *,
    interactive: bool = False,
    env: Mapping[str, str | None] | None = None,
    timeout: float | None = None,
    given: bytes | None = None,
    account: pwd.struct_passwd | None = None,
    cwd: str | None = None,
    limit: int = _MAX_LINE_BYTES,
    kept: Sequence[int] = (),
    only: Filter | None = None,
    shown: bool = True,
) -> bytes:
    """Run a program and return its standard output, which must be short.

    With `interactive` it has castore's standard input, so that it can ask for something; `given`: what
    it has there, not much. account: the user that it is run as. kept, only, shown: as of `feed`.
    Raises ProgramError if it does not exit with 0 or prints more than `limit` bytes, a mebibyte.
    """
    stdin = subprocess.PIPE if given is not None else None
    with Program(
        argv,
        stdin,
        subprocess.PIPE,
        env=env,
        timeout=timeout,
        interactive=interactive,
        account=account,
        cwd=cwd,
        kept=kept,
        only=only,
        shown=shown,
    ) as program:
        if given is not None:
            program.write([given])
            program.close_input()
        output = bytearray()
        room = memoryview(bytearray(1 << 16))
        while count := program.read(room):
            output += room[:count]
            if len(output) > limit:
                raise ProgramError(f"{argv[0]} prints more than the {limit} bytes that were expected of it")
        program.wait()
    return bytes(output)


def run(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    env: Mapping[str, str | None] | None = None,
    account: pwd.struct_passwd | None = None,
    grace: float | None = GRACE_SECONDS,
) -> None:
    """Run a program for what it does; it may leave others running. Raises ProgramError.

    account: the user that it is run as; None: castore's own.
    grace: seconds that it has to end when castore is told to; None: as long as it takes.
    """
    with Program(
        argv, None, None, env=env, timeout=timeout, account=account, captured=False, grace=grace
    ) as program:
        program.wait()
