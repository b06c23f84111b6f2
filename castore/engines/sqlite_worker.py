"""SQLite, in a process that first becomes the user who owns a database.

SQLite trusts the files next to a database: a journal can name any file to be deleted, or bring back old
pages. A user who can write these files must therefore not make SQLite run with more rights than their own.

castore.engines.sqlite_process starts this process. Everything is imported before the user is changed, since
that user may not be able to read castore's own files. The answer is a line of JSON on standard output; a
dump follows it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sqlite3
import stat
import sys
import tempfile
from typing import TYPE_CHECKING, Any, Final

from castore.engines.sqlite_check import connect, look, uri
from castore.errors import CastoreError, ProgramError
from castore.process.scratch_dir import scratch_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SCRATCH: Final = ".castore-dump-"
BESIDE: Final = ("-wal", "-shm", "-journal")
"""Endings of the names of files that SQLite reads or writes next to a database."""
_MOST_MEMORY: Final = 2 << 30
_BLOCK: Final = 1 << 20
_CLONE_NEWNS: Final = 0x20000
_MS_BIND, _MS_REC, _MS_PRIVATE = 4096, 16384, 1 << 18
_CAP_DAC_READ_SEARCH: Final = 2
_PR_SET_KEEPCAPS: Final = 8
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_OPENING_SECONDS: Final = 600
"""Seconds that SQLite may take to open a database, apart from waiting for its lock: to undo a large
transaction."""


def main() -> None:
    """Carry out the request in the last argument, and print the answer."""
    request = json.loads(sys.argv[-1])
    path = os.fsdecode(bytes.fromhex(request["path"]))
    try:
        _prepare()
        if request.get("early"):
            _open_early(path)
        if request["user"] is not None:
            path = _become(request["user"], request["folder"], path)
        _end_with(request["parent"])
        if not _early:
            _refuse_special(path)
        _ACTS[request["act"]](path, request)
    except ProgramError as error:
        _answer(error=str(error))
    except CastoreError as error:
        _answer(refused=str(error))
    except sqlite3.OperationalError as error:
        _answer(operational=str(error))
    except (sqlite3.Error, UnicodeError) as error:
        _answer(invalid=str(error))
    except OSError as error:
        _answer(error=str(error.strerror))
    except MemoryError:
        _answer(error=f"SQLite needed more than {_MOST_MEMORY >> 30} GiB of memory for it")


def _prepare() -> None:
    """Limit the resources of this process."""
    os.umask(0o077)
    os.chdir("/")
    # Without this, the process could type into the terminal, although another user runs it.
    os.setsid()
    for limit, most in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MOST_MEMORY)):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(limit, (most, most))


def _become(user: list[Any], folder: int, path: str) -> str:
    """Become another user for good; return the path by which that user reaches the database.

    user: the numbers of the user, of the group and of all groups. folder: the database's directory, open.
    """
    uid, gid, groups = user
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.seteuid(uid)
    try:
        if not _early:
            os.stat(os.path.dirname(path))
    except PermissionError:
        # As in a container's volume: the user may enter the directory, but not those above it.
        os.seteuid(0)
        mounted = _mounted(folder, path)
        if mounted == path:
            # The owner cannot get there to place anything; nor can this process write files of other users.
            ctypes.CDLL(None).prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)
            os.setresuid(uid, uid, uid)
            _keep_only(_CAP_DAC_READ_SEARCH)
            return path
        path = mounted
    os.setresuid(uid, uid, uid)
    return path


def _keep_only(capability: int) -> None:
    """Give up all rights of root but one (capset(2), version 3)."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)(1 << capability, 1 << capability, 0, 0, 0, 0)
    if ctypes.CDLL(None).capset(header, data):
        # All rights of root remain then, and the process must not continue with them.
        os._exit(1)
    _capabilities.append(capability)


_capabilities: Final[list[int]] = []
"""The capabilities that this process has kept."""


def _refuse_others() -> None:
    """Refuse open files of other users, which this process's user could not read without its capability.

    A link to such a file may have replaced the database, or its log, after these were checked. Raises
    ProgramError.
    """
    if not _capabilities:
        return
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the descriptor that listed them is closed
            info = os.fstat(int(name))
            if int(name) > 2 and stat.S_ISREG(info.st_mode) and info.st_uid != os.getuid():
                raise ProgramError(
                    "another user's file took its place, or that of a file next to it: remove that file, or "
                    "the link"
                )


_early: Final[list[sqlite3.Connection]] = []
"""Connections that were opened before the user was changed."""


def _open_early(path: str) -> None:
    """Open a copy in a directory of castore's own, which its user may not enter; nothing is read yet."""
    _early.extend(connect(path) for _ in range(2))


def _mounted(folder: int, path: str) -> str:
    """Mount a directory where any user reaches it, for this process only; return the path of the database.

    Where mounting is not allowed, as in most containers, the path is returned unchanged.
    """
    libc = ctypes.CDLL(None)
    temporary = tempfile.gettempdir()
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        return path
    # Opened again: the kernel mounts only directories of this process's own mounts.
    here = os.open(os.path.dirname(path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not os.path.samestat(os.fstat(here), os.fstat(folder)):
            raise ProgramError("its directory was replaced meanwhile: repeat the command")
        if libc.mount(b"/proc/self/fd/%d" % here, os.fsencode(temporary), None, _MS_BIND, None):
            return path
    finally:
        os.close(here)
    return os.path.join(temporary, os.path.basename(path))


def _end_with(parent: int) -> None:
    """Have this process end together with castore, and never gain rights."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # SIGTERM, so that scratch files are removed. Set last, since a change of the user clears it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _answer(**fields: object) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def _refuse_special(path: str) -> None:
    """Refuse a database that is not a regular file, or has anything but regular files as its journals.

    SQLite would wait for ever for a pipe.
    """
    for ending in ("", *BESIDE):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISREG(os.stat(path + ending, follow_symlinks=False).st_mode):
                name = os.path.basename(path) + ending
                raise ProgramError(f"{name} is not a regular file: remove it, or move it away")


@contextlib.contextmanager
def _opened(path: str, seconds: float) -> Iterator[sqlite3.Connection]:
    """Open a live database. seconds: how long to wait for its lock."""
    # A pipe may replace a journal after the check: the alarm then ends this process.
    signal.alarm(int(seconds) + _OPENING_SECONDS)
    where = f"{uri(path)}?mode=rw"
    with contextlib.closing(sqlite3.connect(where, uri=True, timeout=seconds)) as database:
        database.execute("PRAGMA trusted_schema = OFF")
        _refuse_others()
        yield database
    signal.alarm(0)


def _inventory(database: sqlite3.Connection) -> tuple[object, ...]:
    """Return what a database has, from SQLite's own tables; a call begins a read if none has begun."""
    # A name may consist of bytes that are not UTF-8.
    database.text_factory = bytes
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    columns = "type, name, tbl_name, sql"
    return pages, database.execute(f"SELECT {columns} FROM sqlite_master ORDER BY {columns}").fetchall()


def _check(path: str, request: dict[str, Any]) -> None:
    with _opened(path, request["seconds"]) as database:
        database.execute("SELECT count(*) FROM sqlite_master").fetchone()
    _answer()


def _mode(path: str, request: dict[str, Any]) -> None:
    with _opened(path, request["seconds"]) as database:
        (mode,) = database.execute("PRAGMA journal_mode").fetchone()
    _answer(mode=mode)


def _set_mode(path: str, request: dict[str, Any]) -> None:
    with _opened(path, request["seconds"]) as database:
        wanted = "WAL" if request["wal"] else "DELETE"
        (mode,) = database.execute(f"PRAGMA journal_mode = {wanted}").fetchone()
        if not request["wal"]:
            # Only a single connection can leave WAL mode.
            database.execute("BEGIN EXCLUSIVE")
            database.execute("ROLLBACK")
    _answer(mode=mode)


def _look(path: str, request: dict[str, Any]) -> None:
    what = os.fsdecode(bytes.fromhex(request["what"]))
    connected = (lambda _path: _early.pop()) if _early else connect
    sound = look(path, what, thorough=request["thorough"], connected=connected)
    _answer(rows=sound.rows, remarks=sound.remarks)


def _dump(path: str, request: dict[str, Any]) -> None:
    """Print a copy that SQLite's online backup makes: it is consistent."""
    folder = os.path.dirname(path)
    # Next to the database if this user may write there: the copy is as large, and castore's own directory
    # may be small.
    where = folder if os.access(folder, os.W_OK) else tempfile.gettempdir()
    with scratch_folder(SCRATCH, where, anywhere=True) as scratch:
        copy = os.path.join(scratch, "copy")
        with (
            _opened(path, request["seconds"]) as live,
            contextlib.closing(sqlite3.connect(copy)) as target,
        ):
            # Writers do not hold up a read that has begun, and it waits to begin no longer than it may. All
            # pages are copied in one step, else a writer makes the backup start again and again.
            live.execute("BEGIN")
            before = _inventory(live)
            signal.alarm(0)
            live.backup(target)
            # The copy has the live one's journal mode; in this mode it is a single file.
            target.execute("PRAGMA journal_mode = DELETE")
            if _inventory(target) != before:
                raise ProgramError("SQLite's copy of it is incomplete: repeat the command")
            _refuse_others()
        with open(copy, "rb", buffering=0) as file:
            _answer(size=os.fstat(file.fileno()).st_size)
            while block := file.read(_BLOCK):
                _write(block)


def _write(block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[os.write(1, rest) :]


_ACTS: Final[dict[str, Callable[[str, dict[str, Any]], None]]] = {
    "check": _check,
    "mode": _mode,
    "set-mode": _set_mode,
    "look": _look,
    "dump": _dump,
}
