"""Run one program: its pipes, time limits, standard error, and termination."""

from __future__ import annotations

import contextlib
import fcntl
import glob
import os
import select
import signal
import subprocess
import threading
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self

from castore.errors import ProgramError
from castore.process.signal_shield import ignoring_sigint, start_without_signals

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from types import TracebackType

    Filter = Callable[[bytes], bytes | None]
    """Returns the text of a line of standard error that may be shown and recorded; None: nothing."""

GRACE_SECONDS: Final = 5.0
"""Seconds that a program gets to end after SIGTERM."""
TOLD_LINES: Final = 5
"""Number of lines of a program's standard error in the message that it failed."""

_PIPE_BYTES: Final = 1 << 20
"""The most that an unprivileged user may request; the default of 64 KiB costs a wake-up per chunk."""
_LINE: Final = 300
"""Bytes that are kept of a line of standard error."""
_FILTERED_LINE: Final = 4096
"""Bytes of the beginning of a line that a filter gets."""
_OF_A_USER: Final = (
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
    "DBUS_SESSION_BUS_ADDRESS",
)
"""Environment variables that name directories and sockets of castore's own user."""
_MARK: Final = "CASTORE_PROGRAM"
"""Environment variable that a program passes on: it identifies all processes that the program started."""
_CLIENT_SETTINGS: Final = ("PG", "PSQL", "MYSQL", "MARIADB", "LIBMYSQL", "LDAP", "REDISCLI", "SQLITE", "LC_")
"""Prefixes of environment variables that change what database clients do."""
_LOCALE: Final = ("LANG", "LANGUAGE", "TZ", "OUTPUT_CHARSET", "POSIXLY_CORRECT")


def client_environment(**own: str) -> dict[str, str | None]:
    """Return the environment changes for database clients, and for the servers of drills.

    The administrator's settings (variables of the client, locale, language of messages, time zone) must not
    change a dump or how it is loaded. A value of None removes a variable. own: variables to set.
    """
    removed = (name for name in os.environ if name.startswith(_CLIENT_SETTINGS) or name in _LOCALE)
    return {**dict.fromkeys(removed), "LC_ALL": "C", **own}


def environment(
    changes: Mapping[str, str | None], account: pwd.struct_passwd | None = None
) -> dict[str, str]:
    """Return the environment of a program with changes; None removes a variable.

    account: the user that the program is run as; None: castore's own.
    """
    changed = {**environment_of(account), **changes}
    return {name: value for name, value in changed.items() if value is not None}


_shown = True


@contextlib.contextmanager
def errors_unshown() -> Iterator[None]:
    """Do not copy programs' standard error to castore's own during the block: the caller shows the errors."""
    global _shown  # noqa: PLW0603 - one per process, as standard error is
    before, _shown = _shown, False
    try:
        yield
    finally:
        _shown = before


class _Errors:
    """The standard error of a program: keeps its last lines, and copies it to castore's own if `shown`."""

    def __init__(self, only: Filter | None, *, shown: bool) -> None:
        self._only = only
        self._shown = shown and _shown
        self._read, self.write = os.pipe()
        self._lines: deque[bytes] = deque(maxlen=TOLD_LINES)
        self._rest = b""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._pass_on, name="castore-errors", daemon=True)

    def start(self) -> None:
        """Start reading, after the program has inherited the writing end."""
        os.close(self.write)
        start_without_signals(self._thread)

    def _pass_on(self) -> None:
        poll = select.poll()
        poll.register(self._read)
        while True:
            over = self._over.is_set()
            if poll.poll(100):
                data = os.read(self._read, 1 << 14)
                if not data:
                    break
                if self._only is None:
                    self._show(data)
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._keep(line)
                self._rest = self._rest[-_LINE:] if self._only is None else self._rest[:_FILTERED_LINE]
            elif over:
                break  # a process that the program started still has it open
        rest, self._rest = self._rest, b""
        self._keep(rest)
        os.close(self._read)

    def _show(self, data: bytes) -> None:
        if not self._shown:
            return
        with contextlib.suppress(OSError):
            os.write(2, data)

    def _keep(self, line: bytes) -> None:
        if self._only is not None:
            found = self._only(line[:_FILTERED_LINE])
            if found is None:
                return
            line = found
            self._show(line + b"\n")
        if line.strip():
            self._lines.append(line[-_LINE:])

    def close(self) -> None:
        """Stop reading, when the program has ended."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
        else:
            os.close(self._read)
            os.close(self.write)

    def last_lines(self) -> str:
        """Return the last lines, separated by semicolons."""
        return "; ".join(line.decode(errors="backslashreplace").strip() for line in self._lines)


class Program:
    """A running program; use it in a `with` block, at whose end it is terminated."""

    def __init__(
        self,
        argv: Sequence[str],
        stdin: int | None,
        stdout: int | None,
        *,
        env: Mapping[str, str | None] | None,
        timeout: float | None,
        idle: float | None = None,
        interactive: bool = False,
        captured: bool = True,
        account: pwd.struct_passwd | None = None,
        cwd: str | None = None,
        grace: float | None = GRACE_SECONDS,
        kept: Sequence[int] = (),
        only: Filter | None = None,
        shown: bool = True,
    ) -> None:
        self._grace = grace
        self._kept = kept
        self._apart = account is not None
        self._errors = _Errors(only, shown=shown) if captured and not interactive else None
        # A program that is run for its effect may leave others running on purpose: they get no mark.
        self._mark = os.urandom(12).hex() if captured and not interactive else ""
        self._name = argv[0] if argv else ""
        if account is not None:
            self._name += f" (as {account.pw_name})"
        self._limit = f"took longer than {timeout:g} s" if timeout is not None else ""
        self._late = False
        self._alarm: int | None = None
        given = stdin if stdin is not None or interactive else subprocess.DEVNULL
        try:
            with ignoring_sigint():
                self._process = self._start(argv, given, stdout, env, account, cwd)
            self._pidfd = _pidfd_of(self._process)
        except BaseException:
            if self._errors is not None:
                self._errors.close()
            raise
        if self._errors is not None:
            self._errors.start()
        self._watchers: list[threading.Thread] = []
        self._stopped = threading.Event()
        if timeout is not None:
            self._watch(self._end_late_after, timeout)
        if idle is not None:
            self._watch(self._end_idle_after, idle)

    def _watch(self, watcher: Callable[[float], None], seconds: float) -> None:
        """Start a thread that ends the program when its time is over."""
        if self._alarm is None:
            self._alarm = os.eventfd(0)
        thread = threading.Thread(target=watcher, args=(seconds,), daemon=True)
        self._watchers.append(thread)
        start_without_signals(thread)

    def _start(
        self,
        argv: Sequence[str],
        stdin: int | None,
        stdout: int | None,
        env: Mapping[str, str | None] | None,
        account: pwd.struct_passwd | None,
        cwd: str | None,
    ) -> subprocess.Popen[bytes]:
        if not argv:
            raise ProgramError("no program is named")
        errors = None if self._errors is None else self._errors.write
        mark = {_MARK: self._mark} if self._mark else {}
        try:
            with _OwnPipes(account, stdin, stdout, errors) as pipes:
                # The program stays in castore's process group: it may ask for a password on the terminal, and
                # Ctrl-C reaches it and its children.
                process = subprocess.Popen(
                    argv,
                    stdin=pipes.stdin,
                    stdout=pipes.stdout,
                    stderr=errors,
                    bufsize=0,
                    env=environment({**(env or {}), **mark}, account),
                    # Another user may not be able to enter castore's working directory.
                    cwd=cwd if cwd is not None or account is None else "/",
                    pass_fds=self._kept,
                    # With castore's terminal, another user could type commands for root into it.
                    start_new_session=self._apart,
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
            _kill(self._process.pid, self._pidfd, self._mark)
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
            raise ProgramError(f"{self._name} failed: it {self._limit}{lines}")
        if status > 0:
            raise ProgramError(f"{self._name} failed: it exited with status {status}{lines}")
        try:
            killer = signal.Signals(-status).name
        except ValueError:
            killer = f"signal {-status}"
        raise ProgramError(f"{self._name} failed: it was killed by {killer}{lines}")

    def stop(self) -> None:
        """Terminate the program if it still runs, and close its pipes."""
        process = self._process
        try:
            if process.poll() is None:
                _send(self._pidfd, signal.SIGTERM)
                if self._apart:
                    # Ctrl-C does not reach its session. Before a wait, its number is not reused.
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.killpg(process.pid, signal.SIGTERM)
                # Close the output now: a program that handles SIGTERM by writing on would block in a pipe
                # that nobody reads. Its input stays open until it has ended.
                if process.stdout is not None:
                    process.stdout.close()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self._grace)
        finally:
            if process.poll() is None:
                _kill(process.pid, self._pidfd, self._mark)
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


class _OwnPipes:
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


def environment_of(account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return the environment of a program that `account` runs; None: castore's own."""
    found = dict(os.environ)
    if account is None:
        return found
    for name in _OF_A_USER:
        found.pop(name, None)
    return {**found, "HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}


def run_as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    """Return Popen's arguments to run a program as another user, in all its groups; None: as castore."""
    if account is None:
        return {}
    groups = os.getgrouplist(account.pw_name, account.pw_gid)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": groups}


def _pidfd_of(process: subprocess.Popen[bytes]) -> int:
    """Return a pidfd of a process that was not waited for: its number cannot be reused before that."""
    try:
        return os.pidfd_open(process.pid)
    except OSError as error:
        process.kill()
        process.wait()
        raise ProgramError(f"cannot watch a program that was started: {error.strerror}") from error


def _kill(pid: int, pidfd: int, mark: str = "") -> None:
    """Kill a program, its descendants, and every process with its mark.

    For each process a pidfd is opened first, and then the process is checked again: its number alone may
    belong to another process by now.
    """
    held, left = {pid: pidfd}, [pid]
    try:
        while left:
            while left:
                one = left.pop()
                # A stopped process starts no others while the children of each of its threads are listed.
                _send(held[one], signal.SIGSTOP)
                left += _hold(held, _children(one), partial(_is_child, one, held[one]))
            # Processes whose parent has ended have another parent now: the mark identifies them.
            left += _hold(held, _marked(mark), partial(_bears, mark))
    finally:
        # Also after an error: the stopped processes would stay stopped for ever.
        for descriptor in held.values():
            _send(descriptor, signal.SIGKILL)
        for descriptor in held.values():
            if descriptor != pidfd:
                os.close(descriptor)


def _hold(held: dict[int, int], found: Iterable[int], is_own: Callable[[int], bool]) -> list[int]:
    """Add pidfds of those processes to `held` that `is_own` accepts; return their numbers."""
    added = []
    for pid in found:
        if pid in held:
            continue
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            continue  # it has ended, or no descriptor is available: kill the others nevertheless
        if is_own(pid):
            held[pid] = descriptor
            added.append(pid)
        else:
            os.close(descriptor)
    return added


def _send(pidfd: int, number: int) -> bool:
    """Send a signal; return whether the process still exists."""
    try:
        signal.pidfd_send_signal(pidfd, number)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for children in glob.glob(f"/proc/{pid}/task/*/children"):
        with contextlib.suppress(OSError), open(children, encoding="ascii") as file:
            found += map(int, file.read().split())
    return found


def _is_child(parent: int, parent_fd: int, pid: int) -> bool:
    """Whether a process is the child of `parent`, which must still exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The name may contain any characters. The state and the parent come after it.
            is_child = int(file.read().rpartition(b")")[2].split()[1]) == parent
    except (OSError, IndexError):
        return False
    return is_child and _send(parent_fd, 0)


def _bears(mark: str, pid: int) -> bool:
    """Whether a process has inherited the mark of a program."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"{_MARK}={mark}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _marked(mark: str) -> list[int]:
    """Return the processes that have inherited the mark of a program."""
    if not mark:
        return []
    return [pid for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))) if _bears(mark, pid)]


def enlarge_pipe(descriptor: int) -> None:
    """Enlarge the buffer of a pipe, so that reader and writer wait less; other files are unchanged."""
    # A user who has exhausted the limit of pipe memory gets EPERM, and works with a small pipe.
    with contextlib.suppress(OSError):
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
