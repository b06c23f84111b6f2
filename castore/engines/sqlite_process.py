"""Run SQLite in a process of its own, as the user who owns the database."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import sys
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.engines.dump_stream import preceded
from castore.errors import CastoreError, ProgramError, UsageError
from castore.fs.beneath import Located, locate
from castore.fs.trusted import directories_above, kind_of, others_write, user_text
from castore.process.runners import run_dump
from castore.process.scratch_dir import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.engines.dump_stream import Readinto

_KEPT: Final = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
"""Environment variables of castore that the process also gets: Python may need them to start."""
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); from castore.engines.sqlite_worker import main; main()"
)
_IDLE_SECONDS: Final = 30.0
"""Seconds that the process may be idle, apart from waiting for a lock.

Its user can stop it, and a pipe that replaces one of its files makes it wait for ever.
"""
_LEAST_SECONDS: Final = 600.0
_LEAST_SPEED: Final = 1 << 16
"""Without a `timeout` the process may take _LEAST_SECONDS, plus a second per this many bytes of the database.

Its user could stop and continue it in turns, so that it is never idle and never ends.
"""
_MOST_ANSWER: Final = 1 << 20
_ROOT: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
"""The directory that contains the package castore."""


class User(NamedTuple):
    """A user that SQLite runs as."""

    uid: int
    gid: int
    groups: list[int]

    @property
    def text(self) -> str:
        """The user's name for messages."""
        return user_text(self.uid)


class Looked(NamedTuple):
    """The result of checking a copy."""

    rows: int
    """Rows; only a thorough check counts them."""
    remarks: str
    """What was not checked, and rows that do not fit the schema; empty if there is neither."""


class LockedError(ProgramError):
    """SQLite failed because another process uses the database."""


class InvalidError(ProgramError):
    """SQLite does not accept a file as a database."""


def user_of_account(account: pwd.struct_passwd) -> User:
    """Return an account with all its groups."""
    return User(account.pw_uid, account.pw_gid, os.getgrouplist(account.pw_name, account.pw_gid))


def _user(uid: int, gid: int) -> User:
    try:
        return user_of_account(pwd.getpwuid(uid))
    except KeyError:  # a user that exists only in a container
        return User(uid, gid, [])


def owner_of(path: str, account: pwd.struct_passwd | None = None) -> User | None:
    """Return the user that SQLite has to run as for a database; None: castore's own.

    That is `account`, if given; else the file's owner; for a file of root, the owner of the first directory
    above it that does not belong to root. Raises CastoreError if others could have placed files next to one
    of root's.
    """
    if os.geteuid() != 0:
        return None
    if account is not None:
        return user_of_account(account)
    try:
        with _located(path) as located:
            folder = os.fstat(located.folder)
            info = folder
            with contextlib.suppress(FileNotFoundError):
                info = os.stat(located.name, dir_fd=located.folder, follow_symlinks=False)
            real = located.path
        if info.st_uid:
            return _user(info.st_uid, info.st_gid)
        for above, status in directories_above(real):
            if status.st_uid:
                return _user(status.st_uid, status.st_gid)
            if status.st_mode & others_write() and not status.st_mode & 0o1000:
                _refuse_open_directory(path, above)
    except OSError as error:
        raise UsageError(f"{path} cannot be taken: {error.strerror}") from None
    if folder.st_mode & others_write():
        _refuse_open_directory(path, os.path.dirname(real))
    return None


def _refuse_open_directory(path: str, folder: bytes) -> None:
    shown = os.fsdecode(folder)
    raise CastoreError(
        f"{path} belongs to root, and other users may write in {shown}: with a journal next to the database "
        f"they could make SQLite, as root, delete any file; chmod go-w {shown}, or give the database to its "
        "user (chown), or name that user as `run-as`"
    )


def _located(path: str) -> Located:
    try:
        return locate(path)
    except FileNotFoundError:
        raise UsageError(f"there is no database {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be taken: {error.strerror}") from None


def refuse_special(path: str) -> None:
    """Raise UsageError unless a path leads to a regular file, through trusted links only."""
    try:
        with _located(path) as located:
            kind = kind_of(os.stat(located.name, dir_fd=located.folder, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        raise UsageError(f"there is no database {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be taken: {error.strerror}") from None
    if kind:
        raise UsageError(
            f"{path} is {kind}, not a database"
            + (": take it with --tree" if kind == "a directory" else ": remove it, or move it away")
        )


@contextlib.contextmanager
def _asked(
    act: str, path: str, user: User | None, timeout: float | None, more: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], Readinto]]:
    """Run an operation on a database in a process; yield its answer, and a function that reads what follows.

    timeout: seconds that it may take in all, until the block is left. Raises ProgramError, LockedError,
    CastoreError.
    """
    env: dict[str, str | None] = {name: None for name in os.environ if name not in _KEPT}
    with _located(path) as located, scratch_folder("castore-run-", mode=0o711) as top:
        request = {"act": act, "path": located.path.hex(), "folder": located.folder, "parent": os.getpid()}
        request |= {"user": user and [*user], **more}
        argv = [sys.executable, "-I", "-S", "-c", _START, _ROOT, json.dumps(request)]
        temporary = os.path.join(top, "t")
        os.mkdir(temporary, 0o700)
        if user is not None:
            os.chown(temporary, user.uid, user.gid)
        env |= {"LC_ALL": "C", "TMPDIR": temporary, "SQLITE_TMPDIR": temporary}
        fds = [] if user is None else [located.folder]
        waiting = more.get("seconds", 0)
        limit = timeout or waiting + _LEAST_SECONDS + _size(located) / _LEAST_SPEED
        idle = waiting + _IDLE_SECONDS
        with run_dump(argv, env=env, timeout=limit, idle=idle, kept=fds) as readinto:
            line, rest = _first_line(readinto)
            answer = json.loads(line) if line else {}
            _raise(path if user is None else f"{path} (as {user.text})", answer)
            yield answer, preceded(rest, readinto)


def _size(located: Located) -> int:
    try:
        return os.stat(located.name, dir_fd=located.folder, follow_symlinks=False).st_size
    except OSError:
        return 0  # the process reports what is wrong


def _raise(path: str, answer: dict[str, Any]) -> None:
    if reason := answer.get("refused"):
        raise CastoreError(reason)
    for key, kind in (("operational", LockedError), ("invalid", InvalidError), ("error", ProgramError)):
        if reason := answer.get(key):
            raise kind(f"{path} cannot be taken: {reason}")


def _first_line(readinto: Readinto) -> tuple[bytes, bytes]:
    """Return the first line of a program's output, and what was read after it."""
    found = b""
    room = memoryview(bytearray(1 << 16))
    while b"\n" not in found and len(found) < _MOST_ANSWER and (count := readinto(room)):
        found += room[:count]
    line, _, rest = found.partition(b"\n")
    return line, rest


def ask(act: str, path: str, user: User | None, timeout: float | None = None, **more: Any) -> dict[str, Any]:
    """Run an operation on a database in a process, and return its answer.

    timeout: seconds that it may take in all; without it the limit depends on the size of the database. Raises
    LockedError if another process uses the database, ProgramError, CastoreError.
    """
    with _asked(act, path, user, timeout, more) as (answer, readinto):
        # Read to the end: the exit code is known only then.
        readinto(memoryview(bytearray(1)))
        return answer


@contextlib.contextmanager
def copied(path: str, user: User | None, seconds: float, timeout: float | None = None) -> Iterator[Readinto]:
    """Yield a function that reads a consistent copy of a database.

    seconds: how long to wait for its lock. timeout: seconds until all is read; the default is that of `ask`.
    """
    with _asked("dump", path, user, timeout, {"seconds": seconds}) as (answer, readinto):
        remaining = answer.get("size", 0)

        def read(view: memoryview) -> int:
            nonlocal remaining
            count = readinto(view)
            remaining -= count
            if not count and remaining:
                raise ProgramError(f"{path} cannot be taken: the copy of it is incomplete")
            return count

        yield read


def looked(
    path: str, what: str, user: User | None, timeout: float | None = None, *, drill: bool = False
) -> Looked:
    """Check a copy of the database `what`, as castore.engines.sqlite_check.look does.

    timeout: as for `ask`. drill: check thoroughly; the copy is in a directory of castore's own, which the
    user may not enter.
    """
    found = ask("look", path, user, timeout, what=os.fsencode(what).hex(), thorough=drill, early=drill)
    return Looked(found["rows"], found["remarks"])
