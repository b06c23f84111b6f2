"""One SQLite database: dumped while it is in use, and replaced as a file.

SQLite itself runs in another process: castore.engines.sqlite_process gives the reasons.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from castore.engines.dump_stream import DumpStream
from castore.engines.file import FileEngine
from castore.engines.sqlite_process import (
    InvalidError,
    LockedError,
    User,
    ask,
    copied,
    looked,
    owner_of,
    refuse_special,
    user_of_account,
)
from castore.engines.state import EngineState, FileSwap
from castore.errors import CastoreError, ProgramError, UsageError
from castore.model.counting import count as counted
from castore.process.open_files import refuse_open
from castore.process.servers import unprivileged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.engines.base import Contents

_WAIT_SECONDS: Final = 60.0
_SWITCH_SECONDS: Final = 5.0


class SQLiteSwap(FileSwap, kw_only=True):
    """A database file that is replaced by renaming."""

    mode: str = ""
    """The journal mode of the live database; empty: not known."""


class SQLite(FileEngine[SQLiteSwap], frozen=True):
    """The database in one file, as its pages."""

    runs_programs: ClassVar[bool] = True
    sidecar_suffixes: ClassVar[tuple[str, ...]] = ("-wal", "-shm", "-journal")
    state_type: ClassVar[type[EngineState]] = SQLiteSwap

    def _user(self, path: str | None = None) -> User | None:
        """Return the user that SQLite runs as; None: castore's own. Raises CastoreError."""
        return owner_of(self.path if path is None else path, self.account)

    @property
    def _seconds(self) -> float:
        """Seconds to wait for a lock of the live database."""
        return self.timeout or _WAIT_SECONDS

    def check(self) -> None:
        """Check that SQLite can open the database."""
        refuse_special(self.path)
        ask("check", self.path, self._user(), self.timeout, seconds=self._seconds)

    def version(self) -> str:
        """Return SQLite's version."""
        return f"sqlite {sqlite3.sqlite_version}"

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of a consistent copy, which SQLite's online backup makes."""
        refuse_special(self.path)
        with copied(self.path, self._user(), self._seconds, self.timeout) as readinto:
            yield DumpStream(readinto)

    def stage(self, state: SQLiteSwap, contents: Contents) -> list[str]:
        """Write the database next to the live one, and check it with SQLite."""
        super().stage(state, contents)
        remarks = looked(state.new, self.path, self._user(state.live), self.timeout).remarks
        self._set_mode(state.new, state.mode)
        return remarks.splitlines()

    def prepare(self) -> SQLiteSwap:
        """Return the names of the files that the rollback creates, and the database's journal mode."""
        mode = ""
        with contextlib.suppress(ProgramError, UsageError):
            refuse_special(self.path)
            mode = ask("mode", self.path, self._user(), self.timeout, seconds=self._seconds)["mode"]
        return SQLiteSwap(**msgspec.structs.asdict(self._prepare()), mode=mode)

    def swap(self, state: SQLiteSwap, contents: Contents) -> list[str]:
        """Replace the file if no process has it open; its write-ahead log is checkpointed first."""
        self._close(state.live)
        return super().swap(state, contents)

    def remove(self, state: SQLiteSwap) -> None:
        """Move the file aside if no process has it open."""
        self._close(state.live)
        super().remove(state)

    def revert(self, state: SQLiteSwap, contents: Contents, *, swapped: bool) -> None:
        """Restore the replaced file, and its journal mode."""
        super().revert(state, contents, swapped=swapped)
        if os.path.isfile(state.live):
            with contextlib.suppress(ProgramError, UsageError):
                self._set_mode(state.live, state.mode)

    def _close(self, path: str) -> None:
        """Checkpoint a database into its one file. Raises CastoreError if another process has it open."""
        if not os.path.isfile(path):
            return
        try:
            # Only a single connection can leave WAL mode.
            mode = self._switched(path, wal=False)["mode"]
        except LockedError as error:
            raise CastoreError(f"another process has {path} open, stop what uses it: {error}") from error
        except InvalidError:
            mode = "delete"  # it is no longer a valid database
        if mode != "delete":
            raise CastoreError(f"another process has {path} open: stop what uses it")
        # An idle connection without a log holds no lock, so open files are searched, too.
        refuse_open(path)

    def _set_mode(self, path: str, mode: str) -> None:
        if mode == "wal":
            self._switched(path, wal=True)

    def _switched(self, path: str, *, wal: bool) -> dict[str, Any]:
        return ask("set-mode", path, self._user(path), self.timeout, seconds=_SWITCH_SECONDS, wal=wal)

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Write the database, and have SQLite check all of it."""
        path = os.path.join(folder, os.path.basename(self.path))
        with open(path, "xb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.writelines(contents.restore_dump())
        size = counted(os.path.getsize(path), "byte")
        sound = looked(path, self.path, self._drilling_user(), self.timeout, drill=True)
        summary = f"{counted(sound.rows, 'row')}, {size}, integrity_check ok"
        yield f"{summary}; {sound.remarks}" if sound.remarks else summary, {"PATH": path}

    def _drilling_user(self) -> User | None:
        """Return the user that a drill checks a copy as: never root, whatever user has written the copy."""
        user = None
        with contextlib.suppress(CastoreError):
            user = self._user()
        account = unprivileged("nobody")
        return user if user is not None or account is None else user_of_account(account)
