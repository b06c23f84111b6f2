"""Connect PostgreSQL's programs to a server, independent of the machine's settings."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.engines.connecting import Chunks, when_free
from castore.engines.password import read_setting
from castore.engines.postgresql.script import guarded
from castore.engines.postgresql.session import OPTIONS, PREAMBLE, prepared
from castore.engines.postgresql.sql import dbname_argument, plain, quoted_text
from castore.engines.query_session import QuerySession
from castore.errors import ProgramError
from castore.process.environment import client_environment
from castore.process.program import Command, Program
from castore.process.runners import feed, output_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator, Mapping

    from castore.engines.dump_stream import Bytes
    from castore.engines.password import Secret
    from castore.process.standard_error import Filter

_NO_FILE: Final = "/nonexistent"
"""Replaces files in the home directory that libpq would read by itself."""


_FILES: Final = {"PGPASSFILE", "PGSERVICEFILE"}
"""Files that hold passwords, or name the server to connect to."""
_MOST: Final = 1 << 26
"""The most bytes of an answer in a session."""
_CONNECTIONS: Final = """SELECT CASE WHEN r.rolsuper THEN -1 ELSE greatest(least(nullif(r.rolconnlimit, -1),
nullif(d.datconnlimit, -1)), -1) END FROM pg_roles r, pg_database d WHERE r.rolname = current_user
AND d.datname = current_database()"""
REFUSAL: Final = re.compile(rb"FATAL: +too many connections for (?:role|database)")
"""Messages of a client if a role or database has all its allowed connections, from a server in English."""
_RECORDS: Final = ("--tuples-only", "--no-align", "--record-separator-zero")


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of pg_dump and psql."""

    elsewhere: str = "postgres"
    """The database to connect to while others are renamed."""
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    program_path: str | None = None
    variables: Mapping[str, str] = {}
    """More environment variables of libpq."""
    timeout: float | None = None
    account: pwd.struct_passwd | None = None
    """The user that the programs run as; None: castore's own."""
    session: QuerySession | None = None
    """A session that answers read-only queries; None: there is none."""

    def program(self, name: str) -> str:
        """Return the path of a program. Raises ProgramError."""
        path = f"{self.program_path}/{name}" if self.program_path else name
        if shutil.which(path) is None:
            raise ProgramError(
                f"there is no program {path!r}, which the engine postgresql needs: install it, or set "
                "`program-path`"
            )
        return path

    def where(self) -> list[str]:
        """Return the arguments that name the server."""
        options = ["--no-password"]
        for option, value in (("--host", self.host), ("--port", self.port), ("--username", self.user)):
            if value is not None:
                options.append(f"{option}={value}")
        return options

    def env(self, encoding: str | None = "UTF8") -> dict[str, str | None]:
        """Return the environment of a client. encoding: of the client; None: that of the database."""
        own = {"PGAPPNAME": "castore", "PGOPTIONS": OPTIONS}
        own |= dict.fromkeys(("PGPASSFILE", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"), _NO_FILE)
        if encoding is not None:
            own["PGCLIENTENCODING"] = encoding
        for name in _FILES & self.variables.keys():
            # libpq opens the file by its name. No other user could have replaced it, nor can before libpq
            # opens it.
            read_setting(name, self.variables[name], self.account)
        own |= self.variables
        if self.password is not None:
            own["PGPASSWORD"] = self.password.get(self.account)
        return client_environment(**own)

    def process(self, encoding: str | None = "UTF8") -> dict[str, Any]:
        """Return environment, time limit and user of a client. encoding: None: that of the database."""
        return {"env": self.env(encoding), "timeout": self.timeout, "account": self.account}

    def psql(self, database: str) -> list[str]:
        """Return the arguments of a psql that is connected to a database."""
        return [
            self.program("psql"),
            *self.where(),
            *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", dbname_argument(database)),
            # No DETAIL, no CONTEXT, no LINE: they show values of rows.
            *("--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
        ]

    def query(
        self,
        sql: str,
        names: Mapping[str, str] | None = None,
        database: str | None = None,
        *,
        detail: bool = False,
    ) -> list[str]:
        """Run SQL; return its records. names: the texts for :'name' in it.

        detail: include the DETAIL of a failure, for SQL that does not concern rows.
        """
        argv = [*self.psql(database or self.elsewhere), *_RECORDS]
        only: Filter = plain
        if detail:
            argv.append("--set=VERBOSITY=default")
            only = _all
        # The names in a database in SQL_ASCII may have any encoding.
        own = self.process("SQL_ASCII" if database and self._encoding(database) == "SQL_ASCII" else "UTF8")
        given = os.fsencode(_bound(sql, names))
        return _records(when_free(lambda only: output_of(argv, **own, given=given, only=only), only, REFUSAL))

    def ask(self, sql: str, names: Mapping[str, str] | None = None) -> list[str]:
        """Run read-only SQL, in the open session if there is one; return its records."""
        out = self.session.answer(_bound(sql, names)) if self.session is not None else None
        return self.query(sql, names) if out is None else _records(out)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        """Yield a client that queries in one session during the block."""
        session = QuerySession(self._start, most=_MOST, allowed=_CONNECTIONS, separator=b"\0")
        try:
            yield msgspec.structs.replace(self, session=session)
        finally:
            session.close()

    @contextlib.contextmanager
    def _start(self, stdin: int, stdout: int) -> Iterator[Program]:
        """Yield a running psql that prints each result at once."""
        argv = [*self.psql(self.elsewhere), *_RECORDS]
        with Program(Command(argv, **self.process(), only=_nothing), stdin, stdout) as program:
            yield program

    def _encoding(self, database: str) -> str:
        sql = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = :'name';"
        return "".join(self.ask(sql, {"name": database}))

    def version(self) -> int:
        """Return the server's version, for example 150004."""
        return int(self.ask("SHOW server_version_num;")[0])

    def roles(self) -> set[str]:
        """Return the names of the server's roles."""
        return set(self.ask("SELECT rolname FROM pg_roles;"))

    def load(
        self,
        database: str,
        chunks: Iterable[Bytes],
        *,
        stops: bool = True,
        path: str = "",
        shown: bool = True,
    ) -> None:
        """Feed a dump to psql, which runs no command in it.

        stops: whether to stop at the first error. path: the search path. shown: whether errors are also
        printed as they occur.
        """
        if self.session is not None:
            # The load may take hours, and an idle connection could block other sessions.
            self.session.close()
        argv = [*self.psql(database), "--output=/dev/null", f"--command={PREAMBLE}", "--file=-"]
        if not stops:
            argv.append("--set=ON_ERROR_STOP=0")
        own = self.process()
        script = Chunks(guarded(argv[0], prepared(chunks, path), own, stops=stops))
        when_free(lambda only: feed(argv, script, **own, only=only, shown=shown), plain, REFUSAL)


def _bound(sql: str, names: Mapping[str, str] | None) -> str:
    """Return SQL with a quoted text for each :'name'."""
    if not names:
        return sql
    return re.sub(f":'({'|'.join(names)})'", lambda match: quoted_text(names[match[1]]), sql)


def _records(out: bytes) -> list[str]:
    return [record.strip("\n") for record in os.fsdecode(out).split("\0") if record.strip("\n")]


def _nothing(_line: bytes) -> None:
    return None


def _all(line: bytes) -> bytes:
    return line
