"""Any dump that a program makes and another takes in."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from castore.errors import ProgramError, UsageError
from castore.services.engines.contract import SWITCHING, Contents, Engine, Memo
from castore.services.engines.mariadb_client import refusing_commands
from castore.services.engines.postgresql_script import without_commands
from castore.services.programs import feed, output_of, run_dump

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from castore.services.engines.contract import Bytes, Readinto

_TABLES: Final = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
_CLEARS: Final = ("--clean", "-c", "--data-only", "-a", "--create", "-C")


class Command(Engine, frozen=True):
    """A dump made by a program.

    It cannot be staged: a roll-back feeds it to the live service, and undoes that by feeding it what
    was there before.
    """

    program: tuple[str, ...] = msgspec.field(name="dump")
    """The program that writes the dump to its standard output."""
    restore: tuple[str, ...] = ()
    """The program that takes it in on its standard input; empty: it cannot be rolled back."""

    programs: ClassVar[tuple[str, ...]] = ("program", "restore")

    def dump(self) -> AbstractContextManager[Readinto]:
        """Give a function that reads the dump."""
        return run_dump(self.program, timeout=self.timeout)

    def refusal(self) -> str:
        """Return why it cannot be put back."""
        return "" if self.restore else "no program is known that takes it back in: name one as 'restore'"

    def ready(self) -> None:
        """See whether the program is there."""
        program = self.restore[0]
        if shutil.which(program) is None:
            raise UsageError(f"there is no program {program!r} to take the dump in: nothing was touched")
        self._refuse_existing_tables()

    def _refuse_existing_tables(self) -> None:
        """Raise UsageError where psql would fail at the first table, since pg_dump did not write --clean."""
        plain = self.program and os.path.basename(self.program[0]) == "pg_dump"
        if not plain or any(one in _CLEARS for one in self.program):
            return
        scripts = ("-c", "--command", "-f", "--file")
        if os.path.basename(self.restore[0]) != "psql" or any(
            one.partition("=")[0] in scripts for one in self.restore
        ):
            return
        tables = b""
        # A database that cannot be asked is reported when the dump is restored.
        with contextlib.suppress(ProgramError):
            ask = [*self.restore, "--tuples-only", "--no-align", f"--command={_TABLES}"]
            tables = output_of(ask, timeout=self.timeout).strip()
        if tables not in {b"", b"0"}:
            raise UsageError(
                "pg_dump wrote this dump without --clean, and the database has tables: psql would fail at "
                "the first table that exists; nothing was touched. Describe the part in castore.toml with "
                "the engine postgresql, or take it with pg_dump --clean --if-exists and restore it with psql "
                "--single-transaction; to restore this generation, empty the database first"
            )

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Do nothing: it cannot be staged."""

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump to its program."""
        del memo
        self._load(contents.target())

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump that was taken before to the program."""
        if SWITCHING not in memo:
            return
        self._load(contents.before())

    def _load(self, chunks: Iterable[Bytes]) -> None:
        """Feed a dump to its program; to a client of a database so that it runs no command in it."""
        argv = list(self.restore)
        name = os.path.basename(argv[0])
        if any(os.path.basename(word) == "psql" for word in argv):
            chunks = without_commands(chunks)
        elif name in {"mariadb", "mysql"}:
            at = argv.index("--") if "--" in argv else len(argv)
            argv[at:at] = refusing_commands(argv[0])
        elif name == "sqlite3" and b"-safe" in output_of([argv[0], "-help"]):
            argv.insert(1, "-safe")
        feed(argv, chunks, timeout=self.timeout)
