"""One PostgreSQL database, restored into a new one that then takes its name."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any, ClassVar, Final

from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted
from castore.services.engines.contract import (
    SWITCHING,
    Contents,
    Engine,
    Memo,
    Reader,
    Secret,
    introduction_of,
    new_name,
    refuse_elsewhere,
    refuse_filters,
    trailing,
)
from castore.services.engines.postgresql_script import guarded
from castore.services.engines.postgresql_sql import (
    COLUMNS,
    PASSWORDS,
    PROPERTIES,
    adornments,
    creation,
    dbname_argument,
    memberships,
    missing_roles,
    plain,
    quoted_name,
    quoted_text,
    role_creation,
)
from castore.services.programs import feed, output_of, run_dump
from castore.services.servers import give, running, socket_folder, unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.services.engines.contract import Bytes, Readinto
    from castore.services.process import Filter

_FILTERS: Final = (
    *("-t", "-T", "-n", "-N", "-a", "-s", "-e", "-B", "--table", "--exclude", "--schema", "--data-only"),
    *("--section", "--no-data", "--no-schema", "--filter", "--no-large-objects", "--no-blobs", "--extension"),
)
"""Options of pg_dump that leave something out."""
_ELSEWHERE: Final = ("-C", "--create")
_WHOLE: Final = b"-- PostgreSQL database dump complete"


@contextlib.contextmanager
def _valid_record() -> Iterator[None]:
    """Raise CastoreError where what a dump records of its database is not of the expected form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CastoreError(f"what the dump records of its database is damaged: {error!r}") from None


@contextlib.contextmanager
def scratch_server(programs: str, folder: str) -> Iterator[str]:
    """Run a PostgreSQL server of its own in `folder`; give the directory of its socket."""
    account = unprivileged("postgres")
    give(folder, account)
    data = os.path.join(folder, "data")
    make = ["initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"]
    output_of([f"{programs}/{make[0]}", *make[1:]], account=account, cwd=folder)
    with socket_folder(account) as socket:
        quiet = [f"-c{one}" for one in ("listen_addresses=", "fsync=off", "autovacuum=off")]
        argv = [f"{programs}/postgres", "-D", data, "-k", socket, *quiet]
        log = os.path.join(folder, "log")
        with running(argv, signal.SIGINT, account=account, cwd=folder, log=log) as server:
            server.wait_for([f"{programs}/pg_isready", "-q", "-h", socket, "-U", "postgres"])
            yield socket


class PostgreSQL(Engine, frozen=True):
    """One database of a PostgreSQL server, as pg_dump writes it in plain SQL."""

    database: str = ""
    cluster: bool = False
    """All databases of the server instead, each as a part of its own, and the roles."""
    host: str | None = None
    """A name or address, or the directory of the server's socket."""
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    options: tuple[str, ...] = ()
    """More arguments of pg_dump."""
    program_path: str | None = None
    """The directory of pg_dump and psql."""
    maintenance_database: str = "postgres"
    """What is connected to while databases are renamed."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("program_path",)

    def __post_init__(self) -> None:
        """Refuse neither and both."""
        if bool(self.database) == self.cluster:
            raise ValueError("either `database` or `cluster = true` was expected")

    def expand(self, name: str) -> dict[str, tuple[str, Engine]]:
        """Return the parts of a whole cluster: NAME, its roles, and NAME.DATABASE for each database."""
        if not self.cluster:
            return {}
        every = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1;"
        common = self._shared()
        found: dict[str, tuple[str, Engine]] = {name: ("postgresql-roles", PostgreSQLRoles(**common))}
        for database in self._query(every):
            plain = re.sub("[^A-Za-z0-9_.-]", "_", database)
            part = f"{name}.{plain}"
            if plain != database or part in found:
                part += "-" + hashlib.sha256(os.fsencode(database)).hexdigest()[:8]
            found[part] = ("postgresql", PostgreSQL(database=database, **common))
        return found

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine]]:
        """Return the parts of an entire cluster that a generation has, on this server."""
        if not self.cluster:
            return {}
        found: dict[str, tuple[str, Engine]] = {
            name: ("postgresql-roles", PostgreSQLRoles(**self._shared()))
        }
        for part, known in settings.items():
            database = known.get("database")
            if part.startswith(f"{name}.") and isinstance(database, str) and database:
                found[part] = ("postgresql", PostgreSQL(database=database, **self._shared()))
        return found

    def _shared(self) -> dict[str, Any]:
        """Return the settings that the parts of a cluster have in common."""
        return {
            field: getattr(self, field)
            for field in self.__struct_fields__
            if field not in {"database", "cluster"}
        }

    def _program(self, name: str) -> str:
        path = f"{self.program_path}/{name}" if self.program_path else name
        if shutil.which(path) is None:
            raise ProgramError(f"there is no program {path!r}, which the engine postgresql needs")
        return path

    def _where(self) -> list[str]:
        found = ["--no-password"]
        for option, value in (("--host", self.host), ("--port", self.port), ("--username", self.user)):
            if value is not None:
                found.append(f"{option}={value}")
        return found

    def _env(self) -> dict[str, str]:
        # What is set for a database or a role would otherwise hold up what is done to it here.
        options = "-c statement_timeout=0 -c lock_timeout=0 -c default_transaction_read_only=off"
        env = {"PGAPPNAME": "castore", "PGCLIENTENCODING": "UTF8", "PGOPTIONS": options}
        if self.password is not None:
            env["PGPASSWORD"] = self.password.get()
        return env

    def _process(self) -> dict[str, Any]:
        """Return what every client is run with."""
        return {"env": self._env(), "timeout": self.timeout, "account": self.account}

    @property
    def _elsewhere(self) -> str:
        """Another database than the one that may have to be renamed."""
        return self.maintenance_database if self.database != self.maintenance_database else "template1"

    def _psql(self, database: str) -> list[str]:
        return [
            self._program("psql"),
            *self._where(),
            *("--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", dbname_argument(database)),
            # No DETAIL, no CONTEXT, no LINE: they show what is in rows.
            *("--set=VERBOSITY=terse", "--set=SHOW_CONTEXT=never"),
        ]

    def _query(
        self, sql: str, names: Memo | None = None, database: str | None = None, *, detail: bool = False
    ) -> list[str]:
        """Run SQL; return the records that it gives. names: what :'name' in it stands for.

        detail: tell what a failure's DETAIL says, too: of what has nothing to do with rows.
        """
        argv = [*self._psql(database or self._elsewhere), "--tuples-only", "--no-align"]
        argv.append("--record-separator-zero")
        argv += [f"--set={name}={value}" for name, value in (names or {}).items()]
        only: Filter | None = plain
        if detail:
            argv.append("--set=VERBOSITY=default")
            only = None
        given = os.fsencode(sql)
        out = output_of(argv, **self._process(), given=given, only=only)
        return [record.strip("\n") for record in os.fsdecode(out).split("\0") if record.strip("\n")]

    def there(self) -> bool:
        """Whether the server has this database."""
        if not self.database:
            return True
        sql = "SELECT 1 FROM pg_database WHERE datname = :'live';"
        return bool(self._query(sql, {"live": self.database}))

    def check(self) -> None:
        """Connect to the database."""
        self._program("pg_dump")
        self._query("SELECT 1;", database=self.database or None)

    def version(self) -> str:
        """Return the server's version."""
        return f"postgresql {self._query('SHOW server_version_num;')[0]}"

    def warn(self, version: str) -> str:
        """Say when the server is older than the one that was dumped from."""
        try:
            then, now = int(version.split()[1]) // 10000, int(self.version().split()[1]) // 10000
        except (IndexError, ValueError):
            return ""
        if now >= then:
            return ""
        return f"it was dumped from PostgreSQL {then}, and the server here is {now}: it may not take it"

    def dump(self) -> AbstractContextManager[Readinto]:
        """Give a function that reads what pg_dump writes."""
        return self.stable_dump("")

    @contextlib.contextmanager
    def stable_dump(self, secret: str) -> Iterator[Readinto]:
        """Give a function that reads what pg_dump writes, guarded by a word that stays the same."""
        program = self._program("pg_dump")
        argv = [program, *self._where(), "--format=plain", *_key(program, secret), *self.options]
        argv.append(dbname_argument(self.database))
        properties = self._properties() or {}
        with run_dump(argv, **self._process()) as readinto:
            yield Reader(trailing(readinto, _WHOLE, program), properties)

    def _properties(self) -> dict[str, Any] | None:
        """Return what the live database is beside what it holds; None if there is none."""
        found = self._query(PROPERTIES, {"live": self.database})
        if not found:
            return None
        recorded: dict[str, Any] = json.loads(found[0])
        row = recorded.pop("row")
        recorded |= {name: row[name] for name in COLUMNS if row.get(name) is not None}
        # It had another name before PostgreSQL 17.
        if locale := row.get("datlocale") or row.get("daticulocale"):
            recorded["locale"] = locale
        if self._query("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT');") == ["t"]:
            found = self._query(PASSWORDS)
            hashes = json.loads(found[0]) if found else {}
            for role in recorded["roles"] or ():
                role["password"] = hashes.get(role["name"])
        return recorded

    def _load_into(
        self, database: str, chunks: Iterable[Bytes], *, stops: bool = True, shown: bool = True
    ) -> None:
        """Feed a dump to psql, which runs no command in it.

        stops: at the first error. shown: errors are printed as they occur, too.
        """
        argv = [*self._psql(database), "--output=/dev/null"]
        if not stops:
            argv.append("--set=ON_ERROR_STOP=0")
        script = guarded(argv[0], chunks, stops=stops)
        feed(argv, script, **self._process(), only=plain, shown=shown)

    def ready(self) -> None:
        """See whether the server answers, and a roll-back would bring all back."""
        refuse_filters(self.options, _FILTERS)
        refuse_elsewhere(self.options, _ELSEWHERE)
        self.version()

    def begin(self) -> Memo:
        """Return the names of the databases that are made."""
        names = {"live": self.database, "new": new_name("new"), "old": new_name("old")}
        return {**names, "existed": "yes" if self.database in self._there(names) else ""}

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Make a database like the one that was dumped, and load the dump."""
        new = memo["new"]
        # An older castore did not record what the database was: then it is as the live one.
        was = introduction_of(contents.target()) or self._properties()
        version = int(self._query("SHOW server_version_num;")[0])
        with _valid_record():
            if was is not None:
                self._make_roles(memo, was)
            sql = creation(new, was, version)
        self._query(sql + ";")
        # Not as one transaction: where there are large objects, pg_dump brings some of its own.
        self._load_into(new, contents.target())
        self._query("ANALYZE;", database=new)
        if was is not None:
            with _valid_record():
                lines = list(adornments(new, was, self._roles()))
            for line in lines:
                self._query(line + ";")

    def _roles(self) -> set[str]:
        return set(self._query("SELECT rolname FROM pg_roles;"))

    def _make_roles(self, memo: Memo, was: dict[str, Any]) -> None:
        """Make the recorded roles that do not exist, and note them in the memo."""
        lines, made = [], set()
        for role in missing_roles(was, self._roles()):
            # Where the database exists, a role that does not was removed on purpose: nobody logs in as it
            # until it gets a password.
            sql, hashed = role_creation(was, role, password=not memo["existed"])
            self._query(sql + ";")
            made.add(role)
            memo["roles"] = json.dumps(sorted(made))
            lacking = "without a password: set one if it logs in with one"
            how = "with the recorded password hash" if hashed else lacking
            lines.append(f"made the role {role}, {how}")
        script, left = memberships(was, made)
        if script:
            self._query("".join(line + ";" for line in script))
        memo["made"] = "\n".join([*lines, *left])

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the database and the roles that a rollback would create."""
        found = [] if self.there() else [f"the database {self.database}"]
        with _valid_record():
            lacking = missing_roles(introduction_of(contents()), self._roles())
        return [*found, *(f"the role {role}" for role in lacking)]

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Exchange the names of the two databases, in one transaction."""
        del contents
        live, new, old = memo["live"], memo["new"], memo["old"]
        there = self._there(memo)
        if new in there:
            self._rename([(one, to) for one, to in ((live, old), (new, live)) if one in there])
        self._let_in(live)

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Exchange them back, and remove the new one."""
        del contents
        live, new, old = memo["live"], memo["new"], memo["old"]
        there = self._there(memo)
        if old in there:
            self._rename([(one, to) for one, to in ((live, new), (old, live)) if one in there])
        elif live in there and not memo["existed"] and new not in there and SWITCHING in memo:
            self._rename([(live, new)])
        self._let_in(live)
        self._drop(new)
        for role in json.loads(memo.get("roles", "[]")):
            # A role that somebody already uses stays.
            with contextlib.suppress(ProgramError):
                self._query(f"DROP ROLE IF EXISTS {quoted_name(role)};")

    def finish(self, memo: Memo) -> None:
        """Remove what was replaced."""
        self._let_in(memo["live"])
        self._drop(memo["old"])

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the dump into a server of its own, on a private socket, and count its rows."""
        with scratch_server(self._server_programs(), folder) as socket:
            own = PostgreSQL(
                database="drill", host=socket, user="postgres", program_path=self.program_path
            )
            spaces = 0
            while True:
                own._query("DROP DATABASE IF EXISTS drill;")
                own._query("CREATE DATABASE drill TEMPLATE template0 ENCODING 'UTF8';")
                try:
                    # The first attempts may fail, for want of a role: that is no error of the drill.
                    own._load_into("drill", contents.target(), shown=False)
                    break
                except ProgramError as error:
                    # Roles are the server's, not the database's: they are not in its dump.
                    if role := re.search('role "(.+?)" does not exist', str(error)):
                        own._query(f"CREATE ROLE {quoted_name(role[1])};")
                    elif space := re.search('parameter "default_tablespace": "(.+?)"(;|$)', str(error)):
                        place = os.path.join(folder, f"space{spaces}")
                        os.mkdir(place, 0o700)
                        give(place, unprivileged("postgres"))
                        named = f"{quoted_name(space[1])} LOCATION {quoted_text(place)}"
                        own._query(f"CREATE TABLESPACE {named};")
                        spaces += 1
                    else:
                        raise
            tables = own._query(
                "SELECT format('SELECT count(*) FROM %I.%I', schemaname, tablename) FROM pg_tables "
                "WHERE schemaname NOT IN ('pg_catalog', 'information_schema');",
                database="drill",
            )
            rows = sum(int(own._query(table + ";", database="drill")[0]) for table in tables)
            size = own._query("SELECT pg_database_size('drill');")[0]
            finding = f"{counted(rows, 'row')} in {counted(len(tables), 'table')}, "
            finding += f"{counted(int(size), 'byte')} in a server of its own"
            yield finding, {"HOST": socket, "DATABASE": "drill", "USER": "postgres"}

    def _server_programs(self) -> str:
        """Return the directory of initdb and postgres: those of the newest server that is installed."""
        found = glob.glob("/usr/lib/postgresql/*/bin/initdb")
        if self.program_path and os.path.exists(f"{self.program_path}/initdb"):
            return self.program_path
        if found:
            newest = max(found, key=lambda path: [int(n) for n in path.split("/")[4].split(".")])
            return os.path.dirname(newest)
        if program := shutil.which("initdb"):
            return os.path.dirname(os.path.realpath(program))
        raise ProgramError("there is no PostgreSQL server (initdb) here to drill with")

    def _there(self, memo: Memo) -> set[str]:
        names = {key: memo[key] for key in ("live", "new", "old")}
        sql = "SELECT datname FROM pg_database WHERE datname IN (:'live', :'new', :'old');"
        return set(self._query(sql, names))

    def _rename(self, pairs: list[tuple[str, str]]) -> None:
        script = ["BEGIN;"]
        for name, to in pairs:
            self._close(name)
            sql = "SELECT format('ALTER DATABASE %I RENAME TO %I', :'name', :'to');"
            script += [line + ";" for line in self._query(sql, {"name": name, "to": to})]
        try:
            self._query("\n".join([*script, "COMMIT;"]), detail=True)
        finally:
            for pair in pairs:
                for name in pair:
                    self._let_in(name)

    def _close(self, name: str) -> None:
        """Send everybody away from a database, and keep new ones out."""
        names = {"name": name}
        out = "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS false', :'name');"
        for line in self._query(out, names):
            self._query(line + ";")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :'name';"
        self._query(ended, names)
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = :'name' AND pid <> pg_backend_pid();"
        for _ in range(50):
            if self._query(left, names) == ["0"]:
                return
            self._query("SELECT pg_sleep(0.1);")
        raise CastoreError(f"somebody stays connected to the database {name}: stop what uses it")

    def _let_in(self, name: str) -> None:
        sql = (
            "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS true', datname) FROM pg_database "
            "WHERE datname = :'name' AND NOT datallowconn;"
        )
        for line in self._query(sql, {"name": name}):
            self._query(line + ";")

    def _drop(self, name: str) -> None:
        if not re.fullmatch("castore_(new|old)_[0-9a-f]{12}", name):
            raise AssertionError(name)  # nothing else is ever dropped
        if self._query("SELECT 1 FROM pg_database WHERE datname = :'name';", {"name": name}):
            self._query(f"ALTER DATABASE {name} IS_TEMPLATE false;")
            self._close(name)
            self._query(f"DROP DATABASE {name};")


def _created_role(line: bytes) -> str | None:
    """Return the name of the role that a line of pg_dumpall creates; None for every other line."""
    found = re.fullmatch(r'CREATE ROLE (?:"((?:[^"]|"")*)"|([^ ;"]+));\s*', line.decode("utf-8", "replace"))
    return (found[1].replace('""', '"') if found[1] else found[2]) if found else None


def _key(program: str, secret: str) -> tuple[str, ...]:
    """Return the option of pg_dump or pg_dumpall that names the word between restricted parts.

    It has to be secret: a server that knows it can put commands for psql into the dump.
    """
    if not secret or b"--restrict-key" not in output_of([program, "--help"]):
        return ()
    return (f"--restrict-key={secret}",)


class PostgreSQLRoles(PostgreSQL, frozen=True):
    """The roles of a cluster, with their passwords as the server keeps them, and tablespaces.

    A roll-back makes those that are missing and sets all that are named to what they were; roles that have
    come since stay.
    """

    def __post_init__(self) -> None:
        """It has no database."""

    def expand(self, name: str) -> dict[str, tuple[str, Engine]]:
        """It is one part."""
        del name
        return {}

    @contextlib.contextmanager
    def stable_dump(self, secret: str) -> Iterator[Readinto]:
        """Give a function that reads what pg_dumpall writes of all but databases."""
        program = self._program("pg_dumpall")
        argv = [program, *self._where(), "--globals-only", *_key(program, secret)]
        with run_dump(argv, **self._process()) as readinto:
            yield trailing(readinto, b"-- PostgreSQL database cluster dump complete", program)

    def begin(self) -> Memo:
        """Nothing is made beside."""
        return {}

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the roles that a rollback would create."""
        there = self._roles()
        lines = b"".join(map(bytes, contents())).splitlines()
        named = [role for line in lines if (role := _created_role(line)) is not None]
        return [f"the role {role}" for role in named if role not in there]

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Make roles that are missing: databases that are staged may belong to them."""
        del memo
        lines = b"".join(map(bytes, contents.target())).splitlines(keepends=True)
        self._load([line for line in lines if _created_role(line) is not None])

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Set roles to what they were."""
        del memo
        self._load(contents.target())

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Set them to what they were before."""
        if SWITCHING in memo:
            self._load(contents.before())

    def finish(self, memo: Memo) -> None:
        """Nothing was replaced."""

    def _load(self, chunks: Iterable[Bytes]) -> None:
        there = self._roles()
        lines = b"".join(map(bytes, chunks)).splitlines(keepends=True)
        wanted = [line for line in lines if _created_role(line) not in there]
        # A tablespace that exists cannot be created: that is no failure.
        self._load_into(self._elsewhere, wanted, stops=False)

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Nothing but to read them: they are not for a server of their own."""
        del folder
        count = sum(
            bytes(line).startswith(b"CREATE ROLE ")
            for line in b"".join(map(bytes, contents.target())).splitlines()
        )
        yield f"{count} roles", {}
