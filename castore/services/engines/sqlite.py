"""One SQLite database, taken while it is in use, and exchanged as a file."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import quote

from castore.errors import CastoreError, ProgramError, UsageError
from castore.model.counting import count as counted
from castore.services.engines.file import File
from castore.services.engines.sqlite_check import look
from castore.services.open_files import refuse_open
from castore.services.scratch import scratch_folder, sweep

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.services.engines.contract import Contents, Memo, Readinto

_SCRATCH: Final = ".castore-dump-"
_WAIT_SECONDS: Final = 60.0
_SWITCH_SECONDS: Final = 5.0


def _inventory(database: sqlite3.Connection) -> tuple[object, ...]:
    """Return what a database has, as SQLite's own tables say; each call begins a read, if none has begun."""
    # A name may be of bytes that are not UTF-8.
    database.text_factory = bytes
    (pages,) = database.execute("PRAGMA page_count").fetchone()
    columns = "type, name, tbl_name, sql"
    return pages, database.execute(f"SELECT {columns} FROM sqlite_master ORDER BY {columns}").fetchall()


class SQLite(File, frozen=True):
    """The database in one file, as its pages."""

    beside: ClassVar[tuple[str, ...]] = ("-wal", "-shm", "-journal")

    def check(self) -> None:
        """Look into it."""
        with self._opened() as database:
            database.execute("SELECT count(*) FROM sqlite_master").fetchone()

    def version(self) -> str:
        """Return SQLite's version."""
        return f"sqlite {sqlite3.sqlite_version}"

    @contextlib.contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        if not os.path.lexists(self.path):
            raise ProgramError(f"there is no database {self.path}")
        try:
            self._refuse_other(os.stat(self.path).st_mode)
        except OSError as error:
            raise ProgramError(f"{self.path} cannot be taken: {error.strerror}") from None
        uri = f"file:{quote(self.path)}?mode=rw"
        try:
            with contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=self.timeout or _WAIT_SECONDS)
            ) as database:
                yield database
        except (sqlite3.Error, UnicodeError) as error:
            raise ProgramError(f"{self.path} cannot be taken: {error}") from error

    @contextlib.contextmanager
    def dump(self) -> Iterator[Readinto]:
        """Give a function that reads a copy, made by SQLite's online backup: one moment of the database."""
        folder = os.path.dirname(self.path)
        # Beside the database where that can be: it is as large, and /tmp may be small or in memory.
        where = folder if os.access(folder, os.W_OK) else None
        with scratch_folder(_SCRATCH, where) as scratch:
            copy = os.path.join(scratch, "copy")
            with self._opened() as live, contextlib.closing(sqlite3.connect(copy)) as target:
                # A read that has begun is not held up by writers, and waits no longer than it may to begin;
                # all pages in one step, else a writer makes it begin again, and again.
                live.execute("BEGIN")
                before = _inventory(live)
                live.backup(target)
                # The copy is in the live one's mode; in this one it is a single file.
                target.execute("PRAGMA journal_mode = DELETE")
                if _inventory(target) != before:
                    raise ProgramError(f"SQLite's copy of {self.path} has not all that the database has")
            with open(copy, "rb", buffering=0) as file:
                yield lambda view: file.readinto(view) or 0

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Write the database beside the live one, and let SQLite look at it."""
        super().stage(memo, contents)
        sound = look(memo["new"], self.path)
        memo["made"] = sound.remarks
        self._set_mode(memo["new"], memo["mode"])

    def begin(self) -> Memo:
        """Return the names of the files that are made, and the mode that the database is in."""
        mode = ""
        with contextlib.suppress(ProgramError, UsageError), self._opened() as database:
            (mode,) = database.execute("PRAGMA journal_mode").fetchone()
        return {**super().begin(), "mode": mode}

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Exchange the files, if nobody has the live one open; its log is written back first."""
        self._close(memo["path"])
        super().switch(memo, contents)

    def remove(self, memo: Memo) -> None:
        """Move the file aside, if nobody has it open."""
        self._close(memo["path"])
        super().remove(memo)

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Exchange them back."""
        super().undo(memo, contents)
        sweep(_SCRATCH, os.path.dirname(memo["path"]))
        if os.path.isfile(memo["path"]):
            with contextlib.suppress(sqlite3.Error):
                self._set_mode(memo["path"], memo["mode"])

    def _close(self, path: str) -> None:
        """Leave all that a database holds in its one file. Raises CastoreError if somebody has it open."""
        if not os.path.isfile(path):
            return
        try:
            uri = f"file:{quote(path)}?mode=rw"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=_SWITCH_SECONDS)) as database:
                # Only who is alone can leave the mode of a log.
                (mode,) = database.execute("PRAGMA journal_mode = DELETE").fetchone()
                database.execute("BEGIN EXCLUSIVE")
                database.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            raise CastoreError(f"somebody has {path} open, stop what uses it: {error}") from error
        except sqlite3.DatabaseError:
            mode = "delete"  # it is not a valid database any more
        if mode != "delete":
            raise CastoreError(f"somebody has {path} open: stop what uses it")
        # An idle connection without a log holds no lock.
        refuse_open(path)

    @staticmethod
    def _set_mode(path: str, mode: str) -> None:
        if mode == "wal":
            with contextlib.closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA journal_mode = WAL")

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Write the database, and let SQLite check all of it."""
        path = os.path.join(folder, os.path.basename(self.path))
        with open(path, "xb") as file:
            file.writelines(contents.target())
        sound = look(path, self.path, thorough=True)
        size = counted(os.path.getsize(path), "byte")
        summary = f"{counted(sound.rows, 'row')}, {size}, integrity_check ok"
        yield f"{summary}; {sound.remarks}" if sound.remarks else summary, {"PATH": path}
