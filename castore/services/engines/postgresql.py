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
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted
from castore.services.engines import postgresql_checks as checks
from castore.services.engines import postgresql_inventory as catalogue
from castore.services.engines.contract import (
    INVENTORY,
    SWITCHING,
    Contents,
    Engine,
    Inventory,
    Memo,
    Reader,
    Secret,
    introduction_of,
    new_name,
    refuse_difference,
    trailing,
)
from castore.services.engines.postgresql_script import guarded
from castore.services.engines.postgresql_session import (
    DEFERRABLE,
    OPTIONS,
    PREAMBLE,
    prepared,
    reading,
    refuse_options,
)
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
    search_path,
)
from castore.services.process import client_environment
from castore.services.programs import feed, output_of, run_dump
from castore.services.servers import give, running, socket_folder, unprivileged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.services.engines.contract import Bytes, Readinto
    from castore.services.process import Filter

_WHOLE: Final = b"-- PostgreSQL database dump complete"
_SUBSCRIBED: Final = """SELECT subname FROM pg_subscription
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = :'name');"""
_OF_TEMPLATE: Final = {
    "schema public": "DROP SCHEMA IF EXISTS public;",
    "extension plpgsql": "DROP EXTENSION IF EXISTS plpgsql;",
}
_UNFOUND: Final = "(?:function|operator|relation|type|collation|text search [a-z]+) .* does not exist"
_NO_FILE: Final = "/nonexistent"
"""Instead of files in the home directory that libpq reads by itself."""


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
    own = client_environment()
    output_of([f"{programs}/{make[0]}", *make[1:]], account=account, cwd=folder, env=own)
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
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    passfile: str | None = None
    """A file like ~/.pgpass, which is not read by itself."""
    service: str | None = None
    """The name of a connection service."""
    service_file: str | None = None
    """The file that describes it."""
    inventory: Literal["full", "objects", "off"] = "full"
    """What is compared after a dump was staged: objects and numbers of rows, objects, or nothing."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = (
        *("program_path", "sslrootcert", "sslcert", "sslkey", "passfile", "service_file"),
    )

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
        found: dict[str, tuple[str, Engine]] = {name: ("postgresql-roles", PostgreSQLRoles(**self._shared()))}
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

    def _env(self, encoding: str | None = "UTF8") -> dict[str, str | None]:
        """Return the environment of a client. encoding: of the client; None: that of the database."""
        own = {"PGAPPNAME": "castore", "PGOPTIONS": OPTIONS}
        own |= dict.fromkeys(("PGPASSFILE", "PGSSLCERT", "PGSSLKEY", "PGSSLROOTCERT"), _NO_FILE)
        if encoding is not None:
            own["PGCLIENTENCODING"] = encoding
        for name in ("sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "service", "service_file"):
            value = getattr(self, name)
            if value is not None:
                own["PG" + name.replace("_", "").upper()] = value
        if self.password is not None:
            own["PGPASSWORD"] = self.password.get()
        return client_environment(**own)

    def _process(self, encoding: str | None = "UTF8") -> dict[str, Any]:
        """Return what every client is run with. encoding: of the client; None: that of the database."""
        return {"env": self._env(encoding), "timeout": self.timeout, "account": self.account}

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

        detail: include a failure's DETAIL: of what has nothing to do with rows.
        """
        argv = [*self._psql(database or self._elsewhere), "--tuples-only", "--no-align"]
        argv.append("--record-separator-zero")
        argv += [f"--set={name}={value}" for name, value in (names or {}).items()]
        only: Filter | None = plain
        if detail:
            argv.append("--set=VERBOSITY=default")
            only = None
        # The names in a database in SQL_ASCII may be of any encoding.
        own = self._process("SQL_ASCII" if database and self._encoding(database) == "SQL_ASCII" else "UTF8")
        out = output_of(argv, **own, given=os.fsencode(sql), only=only)
        return [record.strip("\n") for record in os.fsdecode(out).split("\0") if record.strip("\n")]

    def _encoding(self, database: str) -> str:
        sql = "SELECT pg_encoding_to_char(encoding) FROM pg_database WHERE datname = :'name';"
        return "".join(self._query(sql, {"name": database}))

    def there(self) -> bool:
        """Whether the server has this database."""
        if not self.database:
            return True
        sql = "SELECT 1 FROM pg_database WHERE datname = :'live';"
        return bool(self._query(sql, {"live": self.database}))

    def check(self) -> None:
        """Raise CastoreError where the database could not be dumped, or a rollback would be refused."""
        program = self._program("pg_dump")
        if self.cluster:
            problems = []
            for part, (_, engine) in self.expand("").items():
                try:
                    engine.check()
                except CastoreError as error:
                    problems.append(f"{part.removeprefix('.') or 'roles'}: {error}")
            if problems:
                raise CastoreError("; ".join(problems))
            return
        own = re.search(rb"\) (\d+)", output_of([program, "--version"], env=client_environment()))
        server = int(self.version().split()[1]) // 10000
        if own is not None and int(own[1]) < server:
            raise CastoreError(
                f"{program} is of PostgreSQL {int(own[1])} and cannot dump from version {server}: "
                f"install the clients of PostgreSQL {server}, or name their directory as `program-path`"
            )
        self._refuse("dumped", self._query(checks.READABLE, database=self.database))
        self.ready()

    def _refuse(self, what: str, problems: list[str]) -> None:
        if problems:
            raise CastoreError(f"the database {self.database} cannot be {what}: {'; '.join(problems)}")

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
        first = self._properties() or {}
        with contextlib.ExitStack() as stack:
            found, rest = stack.enter_context(self._inventory(first))
            if not rest["failed"] and self.inventory != "off":
                first[INVENTORY] = catalogue.condensed(found)
            first["server"] = int(self.version().split()[1])
            first |= {"extensions": rest["extension"], "views": rest["view"], "orders": rest["order"]}
            if snapshot := rest["snapshot"].get(""):
                argv.append(f"--snapshot={snapshot}")
            argv.append(dbname_argument(self.database))
            readinto = stack.enter_context(run_dump(argv, **self._process(None)))
            reader = Reader(trailing(readinto, _WHOLE, program), first)
            reader.warnings += [
                (os.fsencode(name), f"the {name} is not in the dump: {reason}")
                for name, reason in rest["missing"].items()
            ]
            if reason := rest["failed"].get(""):
                reader.warnings.append((b"inventory", f"no inventory was taken, to compare with: {reason}"))
            yield reader

    @contextlib.contextmanager
    def _inventory(self, was: dict[str, Any]) -> Iterator[tuple[Inventory, dict[str, dict[str, str]]]]:
        """Give what `_snapshot` gives; if that fails, nothing but the reason: a dump is worth more."""
        with contextlib.ExitStack() as stack:
            try:
                taken = stack.enter_context(self._snapshot(was))
            except ProgramError as error:
                found, rest = catalogue.split(())
                taken = found, {**rest, "failed": {"": str(error)}}
            yield taken

    @contextlib.contextmanager
    def _snapshot(
        self, was: dict[str, Any], database: str | None = None
    ) -> Iterator[tuple[Inventory, dict[str, dict[str, str]]]]:
        """Give the inventory of a database, the live one where none is named, and what `split` gives with it.

        was: what is known of the database besides what it holds.
        The transaction that it was taken in lasts as long as the block; its snapshot is exported.
        """
        level = "SERIALIZABLE" if DEFERRABLE in self.options else "REPEATABLE READ"
        deferrable = " DEFERRABLE" if DEFERRABLE in self.options else ""
        role = [option.removeprefix("--role=") for option in self.options if option.startswith("--role=")]
        script = [PREAMBLE.removesuffix(";") + " \\g /dev/null"]
        if role and database is None:
            script.append(f"SET ROLE {quoted_name(role[-1])};")
        script.append(f"BEGIN ISOLATION LEVEL {level} READ ONLY{deferrable};")
        script += [catalogue.EXPORT, catalogue.EXTENSIONS, catalogue.ORDERS]
        if database is None:
            script.append(catalogue.LEFT_OUT)
        if self.inventory != "off":
            script.append(catalogue.OBJECTS)
        if self.inventory == "full":
            # Functions in indexes are looked at while a query is planned, and may need it.
            path = quoted_text(search_path(was))
            script.append(f"SELECT set_config('search_path', {path}, false) \\g /dev/null")
            script += [catalogue.ROWS, catalogue.VIEWS]
        argv = self._psql(database or self.database)
        own = self._process("SQL_ASCII" if was.get("encoding") == "SQL_ASCII" else "UTF8")
        with reading(argv, "\n".join(script), **own) as pairs:
            yield catalogue.split(pairs)

    def _verify(self, database: str, was: dict[str, Any]) -> tuple[list[str], Inventory]:
        """Compare a database that a dump was loaded into with what was recorded of the dumped one.

        Return what differs and is no reason to refuse it, and the inventory. Raises CastoreError.
        """
        # An empty one is that of a database without anything.
        recorded = INVENTORY in was and self.inventory != "off"
        expected = was.get(INVENTORY) or {}
        for name, drop in _OF_TEMPLATE.items():
            # A new database has it from the template, and pg_dump does not write that it was dropped.
            if recorded and name not in expected and "(all " not in next(iter(expected), ""):
                self._query(drop, database=database)
        with self._snapshot(was, database) as (whole, rest):
            found = whole
        if "(all " in next(iter(expected), ""):
            found = catalogue.condensed(found, always=True)
        if was.get("server", 0) // 10000 != int(self.version().split()[1]) // 10000:
            expected, found = catalogue.names_only(expected), catalogue.names_only(found)
        if self.inventory != "full" or not any(name.startswith("rows ") for name in expected):
            expected, found = catalogue.without_rows(expected), catalogue.without_rows(found)
        if recorded:
            refuse_difference(self.database, expected, found)
        versions = was.get("extensions") or {}
        differing = [
            f"the extension {name} is of version {version}, and was of {versions[name]}"
            for name, version in rest["extension"].items()
            if versions.get(name, version) != version
        ]
        order = was.get("orders") or {}
        differing += [
            f"the table {name} inherits, and has its columns in another order: {columns}"
            for name, columns in rest["order"].items()
            if order.get(name, columns) != columns
        ]
        before = was.get("views") or {}
        differing += [
            f"the materialized view {name} was filled again, and has {counted(int(count), 'row')} instead of "
            f"{before[name]}"
            for name, count in rest["view"].items()
            if before.get(name, count) != count
        ]
        return differing, whole

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

    def _restore(
        self,
        database: str,
        contents: Contents,
        was: dict[str, Any],
        again: Callable[[], None],
        *,
        shown: bool = True,
    ) -> None:
        """Load a dump into a new database.

        again: recreates it, if the first attempt has failed. shown: errors are printed as they occur, too.

        shown: errors are printed as they occur, too.
        pg_dump sets no search path, and a function in an index or a CHECK constraint may need one. What that
        could change of a definition is found by the comparison that follows.
        """
        try:
            self._load_into(database, contents.target(), shown=shown)
        except ProgramError as error:
            if not re.search(_UNFOUND, str(error)):
                raise
            again()
            try:
                self._load_into(database, contents.target(), path=search_path(was), shown=shown)
            except ProgramError:
                raise error from None

    def _load_into(
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
        argv = [*self._psql(database), "--output=/dev/null", f"--command={PREAMBLE}", "--file=-"]
        if not stops:
            argv.append("--set=ON_ERROR_STOP=0")
        script = guarded(argv[0], prepared(chunks, path), stops=stops)
        feed(argv, script, **self._process(), only=plain, shown=shown)

    def ready(self) -> None:
        """Raise CastoreError where a rollback would be refused: for options, rights, replication, space."""
        refuse_options(self.options)
        self.version()
        names = {"live": self.database}
        problems = [*self._query(checks.BLOCKERS, names), *self._query(checks.RIGHTS, names)]
        if self.there() and not any("ALLOW_CONNECTIONS" in one for one in problems):
            problems += self._query(checks.INSIDE, database=self.database)
        self._refuse("rolled back", [*problems, *self._lacking_space()])

    def _lacking_space(self) -> list[str]:
        """Say where the file system of a server on this machine is too small for a second database."""
        if self.host is not None and not self.host.startswith("/"):
            return []
        for record in self._query(checks.SPACE, {"live": self.database}):
            size, _, folder = record.partition("|")
            with contextlib.suppress(OSError):
                info = os.statvfs(folder)
                free = info.f_bavail * info.f_frsize
                if free < int(size):
                    needed = f"a rollback needs {counted(int(size), 'byte')} for a second database"
                    return [f"{needed}, and {folder} has {counted(free, 'byte')} free"]
        return []

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
                self._refuse_lacking(was)
                self._make_roles(memo, was)
            sql = creation(new, was, version)
        self._query(sql + ";")

        def again() -> None:
            self._drop(new)
            self._query(sql + ";")

        # Not as one transaction: where there are large objects, pg_dump brings some of its own.
        self._restore(new, contents, was or {}, again)
        with _valid_record():
            differing, _ = self._verify(new, was or {})
        disabled = [
            f"the subscription {name} is disabled: ALTER SUBSCRIPTION {quoted_name(name)} ENABLE"
            for name in self._query(_SUBSCRIBED, {"name": new})
        ]
        memo["made"] = "\n".join(filter(None, [memo.get("made", ""), *differing, *disabled]))
        with contextlib.suppress(ProgramError):
            # The server does it later, too.
            path = quoted_text(search_path(was or {}))
            self._query(f"SELECT set_config('search_path', {path}, false); ANALYZE;", database=new)
        memo["oid"] = self._oid(new)
        if was is not None:
            with _valid_record():
                lines = list(adornments(new, was, self._roles()))
            for line in lines:
                self._query(line + ";")

    def _oid(self, database: str) -> str:
        sql = "SELECT oid FROM pg_database WHERE datname = :'name';"
        return "".join(self._query(sql, {"name": database}))

    def _refuse_lacking(self, was: dict[str, Any]) -> None:
        """Raise CastoreError where the server lacks what the dumped database needs."""
        there = set(self._query("SELECT name FROM pg_available_extensions;"))
        needed = [name for name in was.get("extensions") or () if name not in there]
        lacking = [f"the extension {name}: install its package" for name in needed]
        spaces = self._query("SELECT spcname FROM pg_tablespace;")
        if was["tablespace"] not in spaces:
            name = quoted_name(was["tablespace"])
            lacking.append(f"the tablespace {was['tablespace']}: CREATE TABLESPACE {name} LOCATION '...';")
        if lacking:
            raise CastoreError(f"the server lacks what {self.database} had: {'; '.join(lacking)}")

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
        self._refuse("rolled back", self._query(checks.BLOCKERS, {"live": live}))
        if new in there:
            self._rename([(one, to) for one, to in ((live, old), (new, live)) if one in there])
        self._let_in(live)
        if self._oid(live) != memo.get("oid"):
            raise CastoreError(f"the database that was restored does not have the name {live}")

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
            own = PostgreSQL(database="drill", host=socket, user="postgres", program_path=self.program_path)
            spaces = 0
            was = introduction_of(contents.target())
            encoding = str(was.get("encoding", "UTF8"))

            def again() -> None:
                own._query("DROP DATABASE IF EXISTS drill;")
                own._query(f"CREATE DATABASE drill TEMPLATE template0 ENCODING {quoted_text(encoding)};")

            while True:
                again()
                try:
                    # The first attempts may fail, for want of a role: that is no error of the drill.
                    own._restore("drill", contents, was, again, shown=False)
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
            with _valid_record():
                differing, found = own._verify("drill", was)
            rows = [int(text) for name, text in found.items() if name.startswith("rows of ")]
            size = own._query("SELECT pg_database_size('drill');")[0]
            finding = f"{counted(sum(rows), 'row')} in {counted(len(rows), 'table')}, "
            finding += f"{counted(int(size), 'byte')} in a server of its own"
            finding = "; ".join([finding, *differing])
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
            if name.startswith("castore_new") and self._query(_SUBSCRIBED, {"name": name}):
                self._let_in(name)
                for line in self._query(checks.SUBSCRIPTIONS, database=name):
                    for statement in line.split("; "):
                        self._query(statement.removesuffix(";") + ";", database=name)
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

    def check(self) -> None:
        """Raise CastoreError where the roles could not be dumped or set."""
        self._program("pg_dumpall")
        self.ready()

    def ready(self) -> None:
        """Raise CastoreError where the account may not read and set roles."""
        sql = "SELECT current_user FROM pg_roles WHERE rolname = current_user AND NOT rolsuper;"
        for name in self._query(sql):
            raise CastoreError(
                f"only a superuser reads and sets all roles: ALTER ROLE {quoted_name(name)} SUPERUSER;"
            )

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
