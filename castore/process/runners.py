"""Run programs: those that write a dump, read one, print a short text, or do something.

Programs are argument lists, and never run by a shell. A program that fails, or exceeds its time, raises
ProgramError, and none is left running. Their standard error is copied to castore's own, and its last lines
are in the message if they fail. If a program shows its input there, a filter passes only permitted lines.
"""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Final

from castore.errors import ProgramError
from castore.process.pipes import enlarge_pipe
from castore.process.program import GRACE_SECONDS, Command, Program

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from castore.process.standard_error import Filter

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
    """Run a program whose standard output is a dump; yield a function that reads it.

    timeout: seconds that the program may take. idle: seconds for which it may neither run nor print.
    account: the user that runs it; None: castore's own. kept: descriptors that the program inherits. only:
    the filter of its standard error, for what is shown and for the message; None: no filter.

    The function reads into the beginning of a buffer and returns the number of bytes. At the end, it returns
    0 if the program exited with 0, else it raises ProgramError. A dump is complete only if that 0 was
    returned: a program that still runs at the end of the block is terminated, and the block raises
    ProgramError.
    """
    command = Command(argv, env=env, timeout=timeout, idle=idle, account=account, kept=kept, only=only)
    with Program(command, None, subprocess.PIPE) as program:
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

    timeout: seconds that it may take. account: the user that runs it; None: castore's own. kept: descriptors
    that it inherits. only: for a program that shows its input: the filter of its standard error. shown: copy
    its standard error to castore's own; an error has its last lines in any case.

    Raises ProgramError if the program does not exit with 0, or stops reading before the end. If `chunks`
    raises, the program is terminated *before* its standard input is closed: it must not mistake the end of
    the incomplete input for the end of the dump.
    """
    command = Command(argv, env=env, timeout=timeout, account=account, kept=kept, only=only, shown=shown)
    with Program(command, subprocess.PIPE, subprocess.DEVNULL) as program:
        enlarge_pipe(program.input)
        fed, complete = program.write(chunks)
        program.close_input()
        program.wait()
        if not complete:
            raise ProgramError(
                f"{argv[0]} exited with status 0, but stopped reading after at most {fed} bytes, "
                "before the end of its input"
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

    interactive: the program has castore's standard input and can ask the user. given: the bytes of its
    standard input, at most what a pipe holds. cwd: its working directory. limit: bytes that it may print, one
    MiB by default. The other arguments are those of `feed`. Raises ProgramError if it does not exit with 0,
    or prints more than `limit` bytes.
    """
    command = Command(
        argv,
        env=env,
        account=account,
        cwd=cwd,
        kept=kept,
        timeout=timeout,
        interactive=interactive,
        only=only,
        shown=shown,
    )
    with Program(command, subprocess.PIPE if given is not None else None, subprocess.PIPE) as program:
        if given is not None:
            program.write([given])
            program.close_input()
        output = bytearray()
        room = memoryview(bytearray(1 << 16))
        while count := program.read(room):
            output += room[:count]
            if len(output) > limit:
                raise ProgramError(f"{argv[0]} prints more than the {limit} bytes that castore reads")
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
    """Run a program for its effect; it may leave others running. Raises ProgramError.

    timeout: seconds that it may take. account: the user that runs it; None: castore's own. grace: seconds
    that it gets to end when castore is interrupted; None: no limit.
    """
    command = Command(argv, env=env, timeout=timeout, account=account, captured=False, grace=grace)
    with Program(command, None, None) as program:
        program.wait()
