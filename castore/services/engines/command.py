"""Any dump that a program makes and another takes in."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from typing import TYPE_CHECKING, ClassVar, Final

import msgspec

from castore.errors import ProgramError, UsageError
from castore.services.engines.contract import SWITCHING, Contents, Engine, Memo
from castore.services.engines.ldap import without_files
from castore.services.engines.mariadb import refusing_commands
from castore.services.engines.postgresql_script import without_commands
from castore.services.programs import feed, output_of, run_dump

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from castore.services.engines.contract import Bytes, Readinto

_TABLES: Final = "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
_LDIF_CLIENTS: Final = {"ldapadd", "ldapmodify", "slapadd", "slapmodify"}
_OPTIONED: Final = {"mariadb", "mysql", "sqlite3"}
"""Clients that an option keeps from running commands; from what others read, commands are filtered."""
_CLIENTS: Final = {"psql", *_OPTIONED, *_LDIF_CLIENTS}
_SHELLS: Final = {"sh", "bash", "dash", "ksh", "zsh"}
_LAST_PROGRAM: Final = re.compile(
    rf"(?:^|[|;&])\s*(?:exec\s+)?(?:\S*/)?(?P<client>{'|'.join(sorted(_CLIENTS))})(?:\s[^|;&<>()#`]*)?$"
)
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
        # The client may be an argument of another program (sudo, env, docker exec), or in a shell's script.
        client, at = _client_of(argv)
        if client == "psql":
            chunks = without_commands(chunks)
        elif client in _LDIF_CLIENTS:
            chunks = without_files(chunks)
        elif client in {"mariadb", "mysql"}:
            options = refusing_commands(*argv[: at + 1]) if at >= 0 else refusing_commands(client)
            _insert(argv, at, client, options, last=True)
        elif client == "sqlite3":
            program = argv[: at + 1] if at >= 0 else [client]
            probe = [*program, "-safe", ":memory:", "SELECT 1"]
            try:
                output_of(probe, timeout=self.timeout, only=lambda _line: None)
            except ProgramError as error:
                raise ProgramError(
                    f"{program[-1]} does not run with -safe, without which a dump could start programs: use "
                    "sqlite3 3.37 or later, or the engine sqlite"
                ) from error
            _insert(argv, at, client, ["-safe"], last=False)
        feed(argv, chunks, timeout=self.timeout)


def _client_of(argv: list[str]) -> tuple[str, int]:
    """Return the client that reads the dump and where it is in the arguments; -1: in the script of a shell.

    Of a shell's script only the last program is seen, and psql only where no other program feeds it.
    """
    names = [os.path.basename(word) for word in argv]
    for at, name in enumerate(names):
        if name in _CLIENTS:
            return name, at
    if names[0] in _SHELLS and "-c" in argv[1:-1] and (found := _LAST_PROGRAM.search(argv[-1])):
        first = not argv[-1][: found.start()].strip()
        return (found["client"], -1) if first or found["client"] in _OPTIONED else ("", -1)
    return "", -1


def _insert(argv: list[str], at: int, client: str, options: list[str], *, last: bool) -> None:
    """Give a client options: at the end of its arguments, or at their beginning."""
    if at >= 0:
        end = argv.index("--", at) if "--" in argv[at:] else len(argv)
        argv[end if last else at + 1 : end if last else at + 1] = options
    elif last:
        argv[-1] = f"{argv[-1].rstrip()} {shlex.join(options)}"
    else:
        argv[-1] = re.sub(
            f"(.*\\b{client})", f"\\1 {shlex.join(options)}", argv[-1], count=1, flags=re.DOTALL
        )
