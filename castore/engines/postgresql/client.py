"""How the programs of PostgreSQL reach a server, whatever the machine's settings are."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from castore.engines.base import read_setting
from castore.engines.postgresql.script import guarded
from castore.engines.postgresql.session import OPTIONS, PREAMBLE, prepared
from castore.engines.postgresql.sql import dbname_argument, plain, quoted_text
from castore.engines.query_session import QuerySession
from castore.errors import ProgramError
from castore.process.program import Program, client_environment
from castore.process.runners import feed, output_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator, Mapping

    from castore.engines.base import Bytes, Memo, Secret
    from castore.process.program import Filter

_NO_FILE: Final = "/nonexistent"
"""Instead of files in the home directory that libpq reads by itself."""


_FILES: Final = {"PGPASSFILE", "PGSERVICEFILE"}
"""Files that hold passwords, or say which server is connected to."""
_MOST: Final = 1 << 26
"""Bytes of an answer in a session."""
_CONNECTIONS: Final = """SELECT CASE WHEN r.rolsuper THEN -1 ELSE greatest(least(nullif(r.rolconnlimit, -1),
nullif(d.datconnlimit, -1)), -1) END FROM pg_roles r, pg_database d WHERE r.rolname = current_user
AND d.datname = current_database()"""
_RECORDS: Final = ("--tuples-only", "--no-align", "--record-separator-zero")


@dataclass(frozen=True, kw_only=True)
class Client:
    """The settings with which pg_dump and psql are run."""

    elsewhere: str = "postgres"
    """A database that is connected to while others are renamed."""
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    program_path: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    """More environment variables of libpq."""
    timeout: float | None = None
    account: pwd.struct_passwd | None = None
    """The user that the programs are run as; None: castore's own."""
    session: QuerySession | None = None
    """What answers queries that only read."""

    def program(self, name: str) -> str:
        """Return the path of a program. Raises ProgramError."""
        path = f"{self.program_path}/{name}" if self.program_path else name
        if shutil.which(path) is None:
            raise ProgramError(f"there is no program {path!r}, which the engine postgresql needs")
        return path

    def where(self) -> list[str]:
        """Return the arguments that name the server."""
        found = ["--no-password"]
        for option, value in (("--host", self.host), ("--port", self.port), ("--username", self.user)):
            if value is not None:
                found.append(f"{option}={value}")
        return found

    def env(self, encoding: str | None = "UTF8") -> dict[str, str | None]:
        """Return the environment of a client. encoding: of the client; None: that of the database."""
        own = {"PGAPPNAME": "castore", "PGOPTIONS": OPTIONS}
        own |= dict.fromkeys(("PGPASSFILE", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"), _NO_FILE)
        if encoding is not None:
            own["PGCLIENTENCODING"] = encoding
        for name in _FILES & self.variables.keys():
            # libpq opens it by its name. Nobody else could have exchanged it, nor can before that.
            read_setting(name, self.variables[name], self.account)
        own |= self.variables
        if self.password is not None:
            own["PGPASSWORD"] = self.password.get(self.account)
        return client_environment(**own)

    def process(self, encoding: str | None = "UTF8") -> dict[str, Any]:
        """Return what every client is run with. encoding: of the client; None: that of the database."""
        return {"env": self.env(encoding), "timeout": self.timeout, "account": self.account}

    def psql(self, database: str) -> list[str]:
        """Return the arguments of a psql that is connected to a database."""
        return [
            self.program("psql"),
            *self.where(),
            *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", dbname_argument(database)),
            # No DETAIL, no CONTEXT, no LINE: they show what is in rows.
            *("--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
        ]

    def query(
        self, sql: str, names: Memo | None = None, database: str | None = None, *, detail: bool = False
    ) -> list[str]:
        """Run SQL; return the records that it gives. names: what :'name' in it stands for.

        detail: include a failure's DETAIL: of what has nothing to do with rows.
        """
        argv = [*self.psql(database or self.elsewhere), *_RECORDS]
        only: Filter | None = plain
        if detail:
            argv.append("--set=VERBOSITY=default")
            only = None
        # The names in a database in SQL_ASCII may be of any encoding.
        own = self.process("SQL_ASCII" if database and self._encoding(database) == "SQL_ASCII" else "UTF8")
        out = output_of(argv, **own, given=os.fsencode(_bound(sql, names)), only=only)
        return _records(out)

    def ask(self, sql: str, names: Memo | None = None) -> list[str]:
        """Run SQL that only reads, in the open session if there is one; return the records that it gives."""
        out = self.session.answer(_bound(sql, names)) if self.session is not None else None
        return self.query(sql, names) if out is None else _records(out)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        """Give a client that asks in one session for the block."""
        session = QuerySession(self._start, most=_MOST, allowed=_CONNECTIONS, separator=b"\0")
        try:
            yield replace(self, session=session)
        finally:
            session.close()

    @contextlib.contextmanager
    def _start(self, stdin: int, stdout: int) -> Iterator[Program]:
        """Give a running psql that prints each result at once."""
        argv = [*self.psql(self.elsewhere), *_RECORDS]
        with Program(argv, stdin, stdout, **self.process(), only=_nothing) as program:
            yield program

    def _encoding(self, database: str) -> str:
        sql = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = :'name';"
        return "".join(self.ask(sql, {"name": database}))

    def version(self) -> int:
        """Return the server's version, as 150004."""
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

        stops: at the first error. path: to search. shown: errors are printed as they occur, too.
        """
        if self.session is not None:
            # It may take hours, and an idle connection could be in somebody's way.
            self.session.close()
        argv = [*self.psql(database), "--output=/dev/null", f"--command={PREAMBLE}", "--file=-"]
        if not stops:
            argv.append("--set=ON_ERROR_STOP=0")
        script = guarded(argv[0], prepared(chunks, path), self.process(), stops=stops)
        feed(argv, script, **self.process(), only=plain, shown=shown)


def _bound(sql: str, names: Memo | None) -> str:
    """Return SQL with a text for each :'name'."""
    if not names:
        return sql
    return re.sub(f":'({'|'.join(names)})'", lambda found: quoted_text(names[found[1]]), sql)


def _records(out: bytes) -> list[str]:
    return [record.strip("\n") for record in os.fsdecode(out).split("\0") if record.strip("\n")]


def _nothing(_line: bytes) -> None:
    return None
