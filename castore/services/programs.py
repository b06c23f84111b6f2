"""Programs that make dumps, take them in, or print a line that is wanted.

They are argument lists, never run by a shell. What they write to standard error goes where
castore's own does, and the end of it into the message if they fail. A program that fails, or takes longer
than it may, raises ProgramError, and none is left running behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import select
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Self

from castore.errors import ProgramError
from castore.services.interrupts import unheard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

_PIPE_BYTES: Final = 1 << 20
"""What a user without privileges may ask for; the default of 64 KiB costs a wake-up a chunk."""

_GRACE_SECONDS: Final = 5.0
"""How long a program may take to end once it was asked to."""

_MAX_LINE_BYTES: Final = 1 << 20


_TOLD_LINES: Final = 5
"""Of a program's standard error, in the message that it failed."""
_LINE: Final = 300
_START_SECONDS: Final = 60.0


@contextlib.contextmanager
def run_dump(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    kept: Sequence[int] = (),
) -> Iterator[Callable[[memoryview], int]]:
    """Run a program whose standard output is a dump; give a function that reads it.

    kept: descriptors that the program has, too.

    The function fills the beginning of a buffer and returns how many bytes it put there. It
    returns 0 at the end, if the program has exited with 0; else it raises ProgramError. Only
    what was read up to that 0 is a dump: a program that still runs when the block is left is
    terminated, and leaving the block raises ProgramError then, too.
    """
    with _Program(argv, None, subprocess.PIPE, env=env, timeout=timeout, kept=kept) as program:
        output = program.output
        enlarge_pipe(output)

        def read(buffer: memoryview) -> int:
            count = os.readv(output, [buffer])
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
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    kept: Sequence[int] = (),
) -> None:
    """Run a program and write `chunks` to its standard input. kept: descriptors that it has, too.

    Raises ProgramError if the program does not exit with 0, or stops reading before it got
    everything. When `chunks` raises, the program is terminated *before* its standard input is
    closed: it must not take the end of what it got for the end of the dump.
    """
    pipes = subprocess.PIPE, subprocess.DEVNULL
    with _Program(argv, *pipes, env=env, timeout=timeout, kept=kept) as program:
        enlarge_pipe(program.input)
        fed, complete = _write_all(program.input, chunks)
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
    env: Mapping[str, str] | None = None,
    timeout: float | None = None,
    given: bytes | None = None,
    account: pwd.struct_passwd | None = None,
    cwd: str | None = None,
    limit: int = _MAX_LINE_BYTES,
    kept: Sequence[int] = (),
) -> bytes:
    """Run a program and return its standard output, which must be short.

    With `interactive` it has castore's standard input, so that it can ask for something; `given`: what
    it has there, not much. account: whom it is run as. kept: descriptors that it has, too. Raises
    ProgramError if it does not exit with 0 or prints more than `limit` bytes, a mebibyte.
    """
    stdin = subprocess.PIPE if given is not None else None
    with _Program(
        argv,
        stdin,
        subprocess.PIPE,
        env=env,
        timeout=timeout,
        interactive=interactive,
        account=account,
        cwd=cwd,
        kept=kept,
    ) as program:
        if given is not None:
            _write_all(program.input, [given])
            program.close_input()
        output = bytearray()
        while data := os.read(program.output, 1 << 16):
            output += data
            if len(output) > limit:
                raise ProgramError(f"{argv[0]} prints more than the {limit} bytes that were expected of it")
        program.wait()
    return bytes(output)


def run(
    argv: Sequence[str],
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    grace: float | None = _GRACE_SECONDS,
) -> None:
    """Run a program for what it does; it may leave others running. Raises ProgramError.

    grace: seconds that it has to end when castore is told to; None: as long as it takes.
    """
    with _Program(argv, None, None, env=env, timeout=timeout, captured=False, grace=grace) as program:
        program.wait()


class Running:
    """A server that was started."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: str) -> None:
        self._name = name
        self._process = process
        self._log = log

    def wait_for(self, question: Sequence[str]) -> None:
        """Wait until a program that asks it exits with 0. Raises ProgramError, with the end of its log."""
        end = time.monotonic() + _START_SECONDS
        null = subprocess.DEVNULL
        while subprocess.run(question, check=False, stdin=null, stdout=null, stderr=null).returncode:
            if self._process.poll() is not None or time.monotonic() > end:
                with open(self._log, encoding="utf-8", errors="replace") as file:
                    told = "; ".join(file.read().splitlines()[-_TOLD_LINES:])
                raise ProgramError(f"{self._name} did not start: {told}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)


@contextlib.contextmanager
def running(
    argv: Sequence[str],
    ending: int,
    *,
    account: pwd.struct_passwd | None,
    cwd: str,
    log: str,
) -> Iterator[Running]:
    """Run a server through the block; it is ended by the signal `ending`. Raises ProgramError."""
    try:
        with open(log, "wb") as file:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                cwd=cwd,
                process_group=0,
                **_as(account),
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


def unprivileged(name: str) -> pwd.struct_passwd | None:
    """Return whom root runs a server as: that user, or nobody; None where castore is not root."""
    if os.geteuid() != 0:
        return None
    for one in (name, "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(one)
    raise ProgramError(f"there is no user {name!r} to run a server as")


@contextlib.contextmanager
def socket_folder(account: pwd.struct_passwd | None) -> Iterator[str]:
    """Give a new directory for the socket of a server that runs as that account; its path is short.

    The path of a socket has at most 107 bytes.
    """
    folder = tempfile.mkdtemp(prefix="castore-")
    try:
        give(folder, account)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def give(path: str, account: pwd.struct_passwd | None) -> None:
    """Give a file to whom a server runs as, if that is another."""
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid)


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


class _Errors:
    """A program's standard error, shown, and its last lines kept."""

    def __init__(self) -> None:
        self._read, self.write = os.pipe()
        self._lines: deque[bytes] = deque(maxlen=_TOLD_LINES)
        self._rest = b""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, name="castore-errors", daemon=True)

    def start(self) -> None:
        """Begin: the program has the writing end now."""
        os.close(self.write)
        self._thread.start()

    def _pass_on(self) -> None:
        poll = select.poll()
        poll.register(self._read)
        while True:
            over = self._over.is_set()
            if poll.poll(100):
                data = os.read(self._read, 1 << 14)
                if not data:
                    break
                with contextlib.suppress(OSError):
                    os.write(2, data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                self._lines.extend(line[-_LINE:] for line in lines if line.strip())
                self._rest = self._rest[-_LINE:]
            elif over:
                break  # something that the program started has it still
        os.close(self._read)

    def close(self) -> None:
        """End with the program."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            os.close(self._read)
            os.close(self.write)

    def told(self) -> str:
        """Return the last lines."""
        lines = [*self._lines, *([self._rest] if self._rest.strip() else [])]
        return "; ".join(line.decode(errors="backslashreplace").strip() for line in lines)


class _Program:
    """A program that runs; use it in a `with` block, which it does not outlive."""

    def __init__(
        self,
        argv: Sequence[str],
        stdin: int | None,
        stdout: int | None,
        *,
        env: Mapping[str, str] | None,
        timeout: float | None,
        interactive: bool = False,
        captured: bool = True,
        account: pwd.struct_passwd | None = None,
        cwd: str | None = None,
        grace: float | None = _GRACE_SECONDS,
        kept: Sequence[int] = (),
    ) -> None:
        self._grace = grace
        self._kept = kept
        self._errors = _Errors() if captured and not interactive else None
        self._name = argv[0] if argv else ""
        self._timeout = timeout
        self._late = False
        given = stdin if stdin is not None or interactive else subprocess.DEVNULL
        try:
            with unheard():
                self._process = self._start(argv, given, stdout, env, account, cwd)
        except BaseException:
            if self._errors is not None:
                self._errors.close()
            raise
        if self._errors is not None:
            self._errors.start()
        self._timer: threading.Timer | None = None
        if timeout is not None:
            self._timer = threading.Timer(timeout, self._end_late)
            self._timer.daemon = True
            self._timer.start()

    def _start(
        self,
        argv: Sequence[str],
        stdin: int | None,
        stdout: int | None,
        env: Mapping[str, str] | None,
        account: pwd.struct_passwd | None,
        cwd: str | None,
    ) -> subprocess.Popen[bytes]:
        if not argv:
            raise ProgramError("no program is named")
        try:
            # In castore's own process group: the program may ask for a password on the terminal, and
            # Ctrl-C reaches it and what it started.
            return subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=stdout,
                stderr=None if self._errors is None else self._errors.write,
                bufsize=0,
                env=None if env is None else {**os.environ, **env},
                cwd=cwd,
                pass_fds=self._kept,
                **_as(account),
            )
        except FileNotFoundError:
            raise ProgramError(f"there is no program {argv[0]!r}: check its name and PATH") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ProgramError(f"cannot run {argv[0]!r}: {reason}") from error

    @property
    def input(self) -> int:
        """The descriptor of what it reads."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def output(self) -> int:
        """The descriptor of what it prints."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def close_input(self) -> None:
        """Let it see the end of its input."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _end_late(self) -> None:
        self._late = True
        _kill(self._process.pid)

    def wait(self) -> None:
        """Wait for its end. Raises ProgramError if it has failed."""
        self._process.wait()
        self.check()

    def check(self) -> None:
        """Raise ProgramError unless it has exited with 0."""
        status = self._process.returncode
        if status == 0:
            return
        if self._errors is not None:
            self._errors.close()
        told = self._errors.told() if self._errors is not None else ""
        told = f": {told}" if told else ""
        if self._late:
            raise ProgramError(f"{self._name} failed: it took longer than {self._timeout:g} s{told}")
        if status > 0:
            raise ProgramError(f"{self._name} failed: it exited with status {status}{told}")
        try:
            killer = signal.Signals(-status).name
        except ValueError:
            killer = f"signal {-status}"
        raise ProgramError(f"{self._name} failed: it was killed by {killer}{told}")

    def stop(self) -> None:
        """End the program if it still runs, and close what is open towards it."""
        process = self._process
        try:
            if process.poll() is None:
                process.terminate()
                # Closed now: a program that writes to a pipe that nobody reads would not see the
                # signal if it handles it by writing on. Its input stays open until it is gone.
                if process.stdout is not None:
                    process.stdout.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self._grace)
        finally:
            if process.poll() is None:
                _kill(process.pid)
                process.wait()
            if self._timer is not None:
                self._timer.cancel()
                self._timer.join()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        if self._errors is not None:
            self._errors.close()


def _kill(pid: int) -> None:
    """Kill a program, and what it has started and still is its own."""
    found = [pid]
    for one in found:
        # What is stopped starts no other while its children are looked for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGSTOP)
        children = f"/proc/{one}/task/{one}/children"
        with contextlib.suppress(OSError), open(children, encoding="ascii") as file:
            found += map(int, file.read().split())
    for one in found:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(one, signal.SIGKILL)


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
