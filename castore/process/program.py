"""Run one program: its pipes, time limits, standard error, and termination."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, Final, Self

import msgspec

from castore.errors import ProgramError
from castore.process.environment import environment
from castore.process.pipes import OwnPipes, run_as
from castore.process.signal_shield import ignoring_sigint, start_without_signals
from castore.process.standard_error import StandardError
from castore.process.termination import MARK, kill_tree, pidfd_of, send

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from castore.process.standard_error import Filter

GRACE_SECONDS: Final = 5.0
"""Seconds that a program gets to end after SIGTERM."""


class Command(msgspec.Struct, frozen=True):
    """A program, and how to run it."""

    argv: Sequence[str]
    env: Mapping[str, str | None] | None = None
    """Changes of the environment; None removes a variable."""
    account: pwd.struct_passwd | None = None
    """The user that runs it; None: castore's own."""
    cwd: str | None = None
    """Its working directory; None: castore's, or / for another user, who may be unable to enter castore's."""
    kept: Sequence[int] = ()
    """Descriptors that it inherits."""
    timeout: float | None = None
    """Seconds that it may take; None: no limit."""
    idle: float | None = None
    """Seconds for which it may neither run nor print; None: no limit."""
    grace: float | None = GRACE_SECONDS
    """Seconds that it gets to end after SIGTERM; None: no limit."""
    interactive: bool = False
    """Whether it has castore's standard input and standard error, and can ask the user."""
    captured: bool = True
    """Messages have the last lines of its standard error, and no process that it starts outlives it."""
    only: Filter | None = None
    """The filter of its standard error; None: all is shown and recorded."""
    shown: bool = True
    """Copy its standard error to castore's own."""

    @property
    def name(self) -> str:
        """The program, and the user that runs it if that is another one, for messages."""
        name = self.argv[0] if self.argv else ""
        return name if self.account is None else f"{name} (as {self.account.pw_name})"


class Program:
    """A running program; use it in a `with` block, at whose end it is terminated."""

    def __init__(self, command: Command, stdin: int | None, stdout: int | None) -> None:
        """Start the program. stdin, stdout: as of Popen; stdin is empty if None, unless it is interactive."""
        self._command = command
        is_watched = command.captured and not command.interactive
        self._errors = StandardError(command.only, shown=command.shown) if is_watched else None
        # A program that is run for its effect may leave others running on purpose: they get no mark.
        self._mark = os.urandom(12).hex() if is_watched else ""
        self._limit = f"took longer than {command.timeout:g} s" if command.timeout is not None else ""
        self._late = False
        self._alarm: int | None = None
        given = stdin if stdin is not None or command.interactive else subprocess.DEVNULL
        try:
            with ignoring_sigint():
                self._process = self._start(given, stdout)
            self._pidfd = pidfd_of(self._process)
        except BaseException:
            if self._errors is not None:
                self._errors.close()
            raise
        if self._errors is not None:
            self._errors.start()
        self._watchers: list[threading.Thread] = []
        self._stopped = threading.Event()
        if command.timeout is not None:
            self._watch(self._end_late_after, command.timeout)
        if command.idle is not None:
            self._watch(self._end_idle_after, command.idle)

    def _watch(self, watcher: Callable[[float], None], seconds: float) -> None:
        """Start a thread that ends the program when its time is over."""
        if self._alarm is None:
            self._alarm = os.eventfd(0)
        thread = threading.Thread(target=watcher, args=(seconds,), daemon=True)
        self._watchers.append(thread)
        start_without_signals(thread)

    def _start(self, stdin: int | None, stdout: int | None) -> subprocess.Popen[bytes]:
        argv, account, cwd = self._command.argv, self._command.account, self._command.cwd
        if not argv:
            raise ProgramError("no program is named")
        errors = None if self._errors is None else self._errors.write
        mark = {MARK: self._mark} if self._mark else {}
        try:
            with OwnPipes(account, stdin, stdout, errors) as pipes:
                # The program stays in castore's process group: it may ask for a password on the terminal, and
                # Ctrl-C reaches it and its children.
                process = subprocess.Popen(
                    argv,
                    stdin=pipes.stdin,
                    stdout=pipes.stdout,
                    stderr=errors,
                    bufsize=0,
                    env=environment({**(self._command.env or {}), **mark}, account),
                    cwd=cwd if cwd is not None or account is None else "/",
                    pass_fds=self._command.kept,
                    # With castore's terminal, another user could type commands for root into it.
                    start_new_session=account is not None,
                    **run_as(account),
                )
                pipes.hand_over(process)
                return process
        except FileNotFoundError:
            raise ProgramError(f"there is no program {argv[0]!r}: check its name and PATH") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            who = f" as {account.pw_name}" if account is not None else ""
            raise ProgramError(f"cannot run {argv[0]!r}{who}: {reason}") from error

    @property
    def input(self) -> int:
        """The descriptor of the program's standard input."""
        assert self._process.stdin is not None
        return self._process.stdin.fileno()

    @property
    def output(self) -> int:
        """The descriptor of the program's standard output."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def read(self, buffer: memoryview) -> int:
        """Read from the program's standard output; return 0 at its end.

        Raises ProgramError if the program exceeds its time. A process that it started may keep the pipe open
        after the program has ended.
        """
        if self._alarm is not None:
            poll = select.poll()
            poll.register(self.output, select.POLLIN)
            poll.register(self._alarm, select.POLLIN)
            poll.poll()
            if self._late:
                self.wait()
        return os.readv(self.output, [buffer])

    def write(self, chunks: Iterable[bytes | memoryview]) -> tuple[int, bool]:
        """Write chunks until the program stops reading; return the bytes, and whether all were written."""
        descriptor, written = self.input, 0
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

    def close_input(self) -> None:
        """Close the program's standard input: it reads the end."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _end_late_after(self, seconds: float) -> None:
        if not self._stopped.wait(seconds):
            self._end_late()

    def _end_idle_after(self, seconds: float) -> None:
        """End the program when it has neither run nor printed anything for `seconds`."""
        last, since = -1, time.monotonic()
        with contextlib.suppress(OSError, ValueError):  # `stop` closes the output
            while not self._stopped.wait(min(seconds / 4, 5)):
                now = _switches(self._process.pid)
                # Output that castore has not read yet means that the program waits for castore.
                if now != last or select.select([self.output], [], [], 0)[0]:
                    last, since = now, time.monotonic()
                elif time.monotonic() - since >= seconds:
                    self._limit = f"did nothing for {seconds:g} s"
                    self._end_late()
                    return

    def _end_late(self) -> None:
        self._late = True
        try:
            kill_tree(self._process.pid, self._pidfd, self._mark)
        finally:
            assert self._alarm is not None
            os.eventfd_write(self._alarm, 1)

    def wait(self) -> None:
        """Wait for the end of the program. Raises ProgramError if it failed."""
        self._process.wait()
        self.check()

    def check(self) -> None:
        """Raise ProgramError unless the program exited with 0 in time."""
        status = self._process.returncode
        if status == 0 and not self._late:
            return
        if self._errors is not None:
            self._errors.close()
        lines = self._errors.last_lines() if self._errors is not None else ""
        lines = f": {lines}" if lines else ""
        if self._late:
            raise ProgramError(f"{self._command.name} failed: it {self._limit}{lines}")
        if status > 0:
            raise ProgramError(f"{self._command.name} failed: it exited with status {status}{lines}")
        try:
            killer = signal.Signals(-status).name
        except ValueError:
            killer = f"signal {-status}"
        raise ProgramError(f"{self._command.name} failed: it was killed by {killer}{lines}")

    def stop(self) -> None:
        """Terminate the program if it still runs, and close its pipes."""
        process = self._process
        try:
            if process.poll() is None:
                send(self._pidfd, signal.SIGTERM)
                if self._command.account is not None:
                    # Ctrl-C does not reach its session. Before a wait, its number is not reused.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGTERM)
                # Close the output now: a program that handles SIGTERM by writing on would block in a pipe
                # that nobody reads. Its input stays open until it has ended.
                if process.stdout is not None:
                    process.stdout.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self._command.grace)
        finally:
            if process.poll() is None:
                kill_tree(process.pid, self._pidfd, self._mark)
                process.wait()
            self._stopped.set()
            for watcher in self._watchers:
                watcher.join()
            if self._alarm is not None:
                os.close(self._alarm)
                self._alarm = None
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1
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


def _switches(pid: int) -> int:
    """Return the number of context switches of a process, which is constant while it waits."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        return sum(int(line.split()[1]) for line in file if b"_ctxt_switches:" in line)
    return -1
