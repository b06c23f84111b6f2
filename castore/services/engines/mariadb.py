"""One MariaDB or MySQL database, restored into a new one, whose tables then take the place of the live ones.

These servers cannot rename a database. Tables move between databases in one atomic RENAME TABLE; what hangs
on a database (views, triggers, routines, events) is written down, dropped, and made again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import msgspec

from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted
from castore.services.engines import mariadb_accounts as accounts
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
from castore.services.engines.mariadb_script import Measured, led_into, plain, unescaped, unqualified
from castore.services.programs import feed, output_of, run_dump
from castore.services.servers import give, running, socket_folder, unprivileged

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator

    from castore.services.engines.contract import Readinto
    from castore.services.process import Filter

_WHOLE: Final = b"-- Dump completed"
_MOST: Final = 1 << 30
_PIECE: Final = 1 << 18
_LOCK_SECONDS: Final = 30
_FILTERS: Final = (
    *("-d", "-t", "-w", "--ignore", "--where", "--no-data", "--no-create-info", "--tables"),
    *("--skip-routines", "--skip-triggers", "--skip-events"),
)
"""Options of the dump program that leave something out."""
_ELSEWHERE: Final = ("-A", "--all-databases", "-B", "--databases")
_BROKEN: Final = "references invalid"
_PACKET: Final = 1 << 30
"""The largest that there may be."""
_UNCHECKED: Final = b"/*M!100201 SET SESSION check_constraint_checks = 0 */;\n"
"""A row may be older than the constraint that it violates, and is there all the same."""
_LACKING: Final = "this view refers to what is not there, or may not be used: only its text is kept"
_STRANGE: Final = (
    "this name has a tab, an end of a line or another control character in it, and could not be rolled back: "
    "rename it"
)
_TABLES: Final = ("BASE TABLE", "SYSTEM VERSIONED", "SEQUENCE")
_KINDS: Final = {
    "view": "SELECT TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {0} "
    "AND TABLE_NAME NOT LIKE 'castore!_view!_%' ESCAPE '!'",
    "trigger": "SELECT TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {0}",
    "event": "SELECT EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {0}",
    "function": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {0} "
    "AND ROUTINE_TYPE = 'FUNCTION'",
    "procedure": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {0} "
    "AND ROUTINE_TYPE = 'PROCEDURE'",
    "package": "SELECT ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {0} "
    "AND ROUTINE_TYPE = 'PACKAGE'",
}


def refusing_commands(*client: str, account: pwd.struct_passwd | None = None) -> list[str]:
    """Return the options by which the client runs no command of a dump, and reads no local file for it.

    client: the arguments up to its name. account: the user that it is run as; None: castore's own. Raises
    ProgramError for a client without such options.
    """
    usage = output_of([*client, "--help"], account=account)
    for option in (b"--sandbox", b"--binary-mode"):
        # Older clients and MySQL's have the second only. It leaves DELIMITER, which routines need.
        if re.search(rb"(?m)^ *(?:-\w, )?" + option + rb"\b", usage):
            return [option.decode(), "--local-infile=0"]
    raise ProgramError(
        f"{client[-1]} has neither --sandbox nor --binary-mode: a dump could start programs; use a newer one"
    )


class _View(NamedTuple):
    """A view that the dump program does not take as it is: it, or whom it is run for, lacks something."""

    name: str
    text: str
    """The statement that makes it."""
    broken: bool
    """Whether it refers to what is not there: it cannot even be made."""


class MariaDB(Engine, frozen=True):
    """One database of a MariaDB server, as mariadb-dump writes it."""

    database: str
    host: str | None = None
    port: int | None = None
    socket: str | None = None
    user: str | None = None
    password: Secret | None = None
    options: tuple[str, ...] = ()
    """More arguments of the dump program."""
    program_path: str | None = None
    """The directory of the programs."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("program_path", "socket")
    names: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("mariadb-dump", "mysqldump"),
        ("mariadb", "mysql"),
    )
    """What the dump program and the client are called."""

    def _program(self, which: int) -> str:
        for name in self.names[which]:
            path = f"{self.program_path}/{name}" if self.program_path else name
            if shutil.which(path) is not None:
                return path
        raise ProgramError(f"there is no program {self.names[which][0]!r}, which this engine needs")

    @contextlib.contextmanager
    def _argv(self, which: int) -> Iterator[tuple[list[str], list[int]]]:
        """Give the beginning of an argument list, and the descriptors that the program needs.

        The password is in a file of our own memory.
        """
        argv, kept = [self._program(which)], []
        with contextlib.ExitStack() as stack:
            if self.password is not None:
                fd = os.memfd_create("castore", 0)
                stack.callback(os.close, fd)
                os.fchmod(fd, 0o600)
                if (account := self.account) is not None:
                    # The client opens it by its name in /proc.
                    os.fchown(fd, account.pw_uid, account.pw_gid)
                secret = self.password.get().replace("\\", "\\\\").replace('"', '\\"')
                os.write(fd, f'[client]\npassword="{secret}"\n'.encode("utf-8", "surrogateescape"))
                argv.append(f"--defaults-extra-file=/proc/self/fd/{fd}")
                kept.append(fd)
            for option, value in (
                *(("host", self.host), ("port", self.port), ("socket", self.socket), ("user", self.user)),
                *(("default-character-set", "utf8mb4"), ("max-allowed-packet", _PACKET)),
            ):
                if value is not None:
                    argv.append(f"--{option}={value}")
            if which == 1:
                argv += refusing_commands(argv[0], account=self.account)
                # Somebody's idle transaction would else hold it up for a day.
                argv.append(f"--init-command=SET SESSION lock_wait_timeout = {_LOCK_SECONDS}")
            yield argv, kept

    def _process(self, kept: list[int]) -> dict[str, Any]:
        """Return what every client is run with; kept: descriptors that it needs."""
        return {"timeout": self.timeout, "account": self.account, "kept": kept}

    def _query(self, sql: str, database: str | None = None, only: Filter = plain) -> list[list[str]]:
        """Run SQL; return the rows that it gives. only: what of the client's messages is told."""
        with self._argv(1) as (argv, kept):
            options = ["--batch", "--skip-column-names", "--silent"]
            options += [f"--database={database}"] if database else []
            run = [*argv, *options]
            given = os.fsencode(sql)
            out = output_of(run, **self._process(kept), given=given, limit=_MOST, only=only)
        lines = [line for line in os.fsdecode(out).split("\n") if line]
        return [[unescaped(value) for value in line.split("\t")] for line in lines]

    def _quietly(self, sql: str) -> list[list[str]]:
        """Run SQL whose failure is expected, and is in the error only."""
        return self._query(sql, only=lambda _line: None)

    def _feed(self, database: str, chunks: Iterable[bytes | memoryview]) -> None:
        script = itertools.chain([_UNCHECKED], led_into(database, chunks))
        with self._argv(1) as (argv, kept):
            run = [*argv, "--batch", f"--database={database}"]
            feed(run, script, **self._process(kept), only=plain)

    def there(self) -> bool:
        """Whether the server has this database."""
        return self._has(self.database)

    def check(self) -> None:
        """Connect to the database."""
        self._program(0)
        self._query("SELECT 1", self.database)

    def version(self) -> str:
        """Return the server's version."""
        return f"mariadb {self._query('SELECT VERSION()')[0][0]}"

    def warn(self, version: str) -> str:
        """Say when the server is older than the one that was dumped from, or another one."""
        then, now = version.rsplit(maxsplit=1)[-1], self.version().split()[-1]
        if ("MariaDB" in then) != ("MariaDB" in now):
            return f"it was dumped from {then}, and the server here is {now}: it may not take it"
        numbers = [tuple(int(n) for n in re.findall("[0-9]+", one)[:2]) for one in (then, now)]
        if numbers[1] >= numbers[0]:
            return ""
        return f"it was dumped from {then}, and the server here is {now}, which is older: it may not take it"

    @contextlib.contextmanager
    def dump(self) -> Iterator[Readinto]:
        """Give a function that reads what the dump program writes: one moment of the database."""
        odd = self._odd_views(self.database)
        most = int(self._query("SELECT @@GLOBAL.max_allowed_packet")[0][0])
        recorded: dict[str, object] = {"charset": self._charset(self.database), "views": odd}
        # Without the right to read the schema mysql, the users are not recorded.
        with contextlib.suppress(ProgramError):
            recorded["accounts"] = msgspec.to_builtins(accounts.read_accounts(self._quietly, self.database))
        with self._argv(0) as (argv, kept):
            options = [
                *("--single-transaction", "--skip-dump-date", "--hex-blob", "--no-tablespaces"),
                *("--routines", "--triggers", "--events", *self._history(argv[0]), *self.options),
                *(*_ignoring(self.database, [view.name for view in odd]), "--", self.database),
            ]
            with run_dump([*argv, *options], **self._process(kept)) as readinto:
                measured = Measured(trailing(readinto, _WHOLE, argv[0]), most)
                reader = Reader(measured, recorded)
                measured.warnings = reader.warnings
                reader.warnings += [(os.fsencode(view.name), _LACKING) for view in odd if view.broken]
                reader.warnings += [(os.fsencode(name), _STRANGE) for name in self._strange_names()]
                yield reader

    def _charset(self, database: str) -> list[str]:
        """Return the character set and collation that new tables of a database get; []: it is not there."""
        columns = "DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME"
        where = f"WHERE SCHEMA_NAME = {_text(database)}"
        found = self._query(f"SELECT {columns} FROM information_schema.SCHEMATA {where}")
        return found[0] if found else []

    def _views(self, database: str) -> list[str]:
        return [row[0] for row in self._query(_KINDS["view"].format(_text(database)))]

    def _odd_views(self, database: str) -> list[_View]:
        """Return the views that the dump program would fail at, or write so that they are bound to a name."""
        names = self._views(database)
        if not names:
            return []
        said: dict[str, str] = {}
        for table, _, kind, text in self._query(f"CHECK TABLE {', '.join(map(_name, names))}", database):
            if kind.lower() == "error":
                name = table[len(database) + 1 :]
                said[name] = f"{said.get(name, '')} {text}"
        found = []
        for name in names:
            if name in said:
                text = self._query(f"SHOW CREATE VIEW {_name(name)}", database)[0][1]
                broken = _BROKEN in said[name] or not self._works(f"SHOW FIELDS FROM {_name(name)}", database)
                found.append(_View(name, unqualified(text, _name(database)), broken))
        return found

    def _make_views(self, database: str, views: Iterable[_View]) -> None:
        """Make views, in whichever order they can be made; those that were broken only if they can be."""
        left = list(views)
        while left:
            failed = [view for view in left if not self._works(view.text, database)]
            if len(failed) == len(left):
                for view in failed:
                    if not view.broken:
                        self._query(view.text, database)
                return
            left = failed

    def _works(self, sql: str, database: str) -> bool:
        """Run SQL; return whether it has not failed, and tell nobody."""
        try:
            self._query(sql, database, lambda _line: None)
        except ProgramError:
            return False
        return True

    def _strange_names(self) -> list[str]:
        """Return the names in the database that the client's output and scripts cannot be trusted with."""
        live = _text(self.database)
        tables = f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = {live}"
        queries = [tables, *(query.format(live) for query in _KINDS.values())]
        names = {row[0] for query in queries for row in self._query(query)}
        return sorted(name for name in names if re.search("[\0-\x1f\x7f]", name))

    def ready(self) -> None:
        """See whether the server answers, and a roll-back would bring all back."""
        refuse_filters(self.options, _FILTERS)
        refuse_elsewhere(self.options, _ELSEWHERE)
        if strange := self._strange_names():
            raise CastoreError(f"{self.database}.{strange[0]!r}: {_STRANGE}; nothing was touched")
        live = _text(self.database)
        keys = self._query(
            "SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS "
            f"WHERE UNIQUE_CONSTRAINT_SCHEMA = {live} AND CONSTRAINT_SCHEMA <> {live}"
        )
        if keys:
            raise CastoreError(
                f"the foreign key {keys[0][1]} of the database {keys[0][0]} leads into {self.database}, "
                "whose tables can therefore not be exchanged: nothing was touched"
            )
        versioned = self._query(
            "SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_TYPE = 'SYSTEM VERSIONED' "
            f"AND TABLE_SCHEMA = {live}"
        )
        if versioned and not self._history(self._program(0)):
            raise CastoreError(
                f"{self._program(0)} cannot dump the history of the table {versioned[0][0]}: a roll-back "
                "would lose it; nothing was touched"
            )

    @staticmethod
    def _history(program: str) -> list[str]:
        """Return the option by which the history of system-versioned tables is dumped, too."""
        return ["--dump-history"] if b"--dump-history" in output_of([program, "--help"]) else []

    def begin(self) -> Memo:
        """Return the names of the databases that are made."""
        made = {mark: new_name(mark) for mark in ("new", "old", "code")}
        return {"live": self.database, "existed": "yes" if self._has(self.database) else "", **made}

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Make a database, and load the dump."""
        live, new, old, code = memo["live"], memo["new"], memo["old"], memo["code"]
        introduction = introduction_of(contents.target())
        present = self._charset(live)
        # An older castore did not record it: then it is as in the live database.
        self._query(f"""
            CREATE DATABASE {_name(new)}{_charset_of(introduction.get("charset") or present)};
            CREATE DATABASE {_name(old)}{_charset_of(present)};
            CREATE DATABASE {_name(code)};
            CREATE TABLE {_name(code)}.kept (which VARCHAR(10), number INT, text LONGBLOB NOT NULL,
                PRIMARY KEY (which, number)) ENGINE=InnoDB;
            CREATE TABLE {_name(code)}.staged (number INT);
        """)
        self._feed(new, contents.target())
        self._make_views(new, (_View(*view) for view in introduction.get("views", ())))
        # Its events would run, and its triggers would keep its tables from being moved.
        self._keep_code(memo, "new")
        self._drop_code(new)
        if not memo["existed"]:
            memo["made"] = "\n".join(self._make_accounts(memo, introduction))

    def _make_accounts(self, memo: Memo, introduction: dict[str, Any]) -> list[str]:
        """Create the recorded users that do not exist; return a line for each."""
        recorded = accounts.decode(introduction)
        if recorded is None:
            line = (
                f"the dump does not record the users of the database {memo['live']}: create those that it "
                "needs (they are recorded where the dumping user may read the schema mysql)"
            )
            return [line]
        try:
            lacking = accounts.missing(self._quietly, recorded)
        except ProgramError as error:
            return [f"cannot see which users exist: {error}; create those that the database needs"]
        created, lines = accounts.create(self._query, lacking)
        memo["accounts"] = json.dumps([msgspec.to_builtins(one) for one in created])
        return lines

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the database and the users that a rollback would create."""
        if self.there():
            return []
        recorded = accounts.decode(introduction_of(contents()))
        users = accounts.missing(self._query, recorded) if recorded is not None else []
        return [f"the database {self.database}", *(one.shown for one in users)]

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Move the live tables aside and the new ones in, with what hangs on them."""
        live, new, old = memo["live"], memo["new"], memo["old"]
        if not memo["existed"]:
            charset = _charset_of(self._charset(new))
            self._query(f"CREATE DATABASE IF NOT EXISTS {_name(live)}{charset}")
        if not self._is_moved(memo):
            # Before anything is dropped: whether the tables can be had.
            if tables := [f"{_name(live)}.{_name(table)} WRITE" for table in self._tables(live)]:
                self._query(f"LOCK TABLES {', '.join(tables)}; UNLOCK TABLES")
            self._keep_code(memo, "live")
            self._drop_code(live)
            self._move([(live, old), (new, live)], f"{_name(memo['code'])}.staged", "moved")
        self._drop_code(live)
        self._set_charset(live, new)
        self._make_code(memo, "new")
        if not memo["existed"] and (recorded := accounts.decode(introduction_of(contents.target()))):
            lines = accounts.grant(self._query, live, recorded, self._created(memo))
            memo["made"] = "\n".join(lines)

    @staticmethod
    def _created(memo: Memo) -> list[accounts.Account]:
        """Return the accounts that this rollback has created."""
        return msgspec.convert(json.loads(memo.get("accounts", "[]")), list[accounts.Account])

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Move them back."""
        del contents
        live, new, old = memo["live"], memo["new"], memo["old"]
        if SWITCHING in memo and self._tables(memo["code"]):
            self._query(self._lock(memo["code"]))
            if self._is_moved(memo):
                self._drop_code(live)
                self._move([(live, new), (old, live)], f"{_name(memo['code'])}.moved", "staged")
            if memo["existed"]:
                self._set_charset(live, old)
            if self._kept(memo, "live") is not None:
                self._drop_code(live)
                self._make_code(memo, "live")
            there = self._asides(memo)
            for name, aside in json.loads(self._kept(memo, "asides") or b"[]"):
                if aside in there:
                    self._query(_renaming(live, aside, name))
            if not memo["existed"] and self._has(live) and not self._tables(live):
                self._query(f"DROP DATABASE {_name(live)}")
        # An account that stays is no damage: the next rollback finds it.
        with contextlib.suppress(ProgramError):
            accounts.drop(self._quietly, self._created(memo))
        if self._tables(old):
            raise CastoreError(f"the live tables of {live} are in {old}, and were not moved back")
        self.finish(memo)

    def finish(self, memo: Memo) -> None:
        """Remove what was replaced."""
        self._query(self._lock(memo["code"]))
        for aside in self._asides(memo):
            self._query(f"DROP VIEW IF EXISTS {_name(memo['live'])}.{_name(aside)}")
        for mark in ("new", "old", "code"):
            if not re.fullmatch("castore_(new|old|code)_[0-9a-f]{12}", memo[mark]):
                raise AssertionError(memo[mark])  # nothing else is ever dropped
            self._query(f"DROP DATABASE IF EXISTS {_name(memo[mark])}")

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the dump into a server of its own, on a private socket, check its tables, count its rows."""
        with self._scratch_server(folder) as socket:
            own = type(self)(
                database="drill", socket=socket, user="root", program_path=self.program_path
            )
            was = introduction_of(contents.target())
            charset = was.get("charset") or ["utf8mb4", "utf8mb4_general_ci"]
            own._query(f"CREATE DATABASE drill{_charset_of(charset)}")
            own._feed("drill", contents.target())
            own._make_views("drill", (_View(*view) for view in was.get("views", ())))
            tables = own._tables("drill")
            rows = 0
            for table in tables:
                checked = own._query(f"CHECK TABLE {_name(table)}", "drill")
                if checked[-1][-1] != "OK" and "doesn't support" not in checked[-1][-1]:
                    raise CastoreError(f"the table {table}: {checked[-1][-1]}")
                rows += int(own._query(f"SELECT count(*) FROM {_name(table)}", "drill")[0][0])
            finding = f"{counted(rows, 'row')} in {counted(len(tables), 'table')}"
            finding += ", CHECK TABLE ok, in a server of its own"
            yield finding, {"SOCKET": socket, "DATABASE": "drill", "USER": "root"}

    @contextlib.contextmanager
    def _scratch_server(self, folder: str) -> Iterator[str]:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        server = shutil.which("mariadbd", path=path) or shutil.which("mysqld", path=path)
        make = shutil.which("mariadb-install-db", path=path)
        if server is None:
            raise ProgramError("there is no MariaDB or MySQL server here to drill with")
        account = unprivileged("mysql")
        give(folder, account)
        data = os.path.join(folder, "data")
        # In a directory for temporary files that it shares, a server removes those of others when it starts.
        argv = [server, "--no-defaults", "--initialize-insecure", f"--datadir={data}"]
        if make is not None:
            argv = [make, "--no-defaults", f"--datadir={data}", f"--tmpdir={folder}", "--skip-test-db"]
            argv.append("--auth-root-authentication-method=normal")
        output_of(argv, account=account, cwd=folder)
        with socket_folder(account) as place:
            socket = os.path.join(place, "socket")
            quiet = [f"--max-allowed-packet={_PACKET}", f"--tmpdir={folder}"]
            quiet += ("--skip-networking", "--innodb-flush-log-at-trx-commit=0", "--event-scheduler=OFF")
            argv = [server, "--no-defaults", f"--datadir={data}", f"--socket={socket}", *quiet]
            argv.append(f"--pid-file={place}/pid")
            log = os.path.join(folder, "log")
            with running(argv, signal.SIGTERM, account=account, cwd=folder, log=log) as process:
                client = [self._program(1), "--no-defaults", f"--socket={socket}", "--user=root"]
                process.wait_for([*client, "--execute=SELECT 1"])
                yield socket

    def _has(self, database: str) -> bool:
        where = f"WHERE SCHEMA_NAME = {_text(database)}"
        return bool(self._query(f"SELECT 1 FROM information_schema.SCHEMATA {where}"))

    def _tables(self, database: str) -> list[str]:
        kinds = ", ".join(map(_text, _TABLES))
        where = f"WHERE TABLE_SCHEMA = {_text(database)} AND TABLE_TYPE IN ({kinds})"
        return [row[0] for row in self._query(f"SELECT TABLE_NAME FROM information_schema.TABLES {where}")]

    def _is_moved(self, memo: Memo) -> bool:
        return "moved" in self._tables(memo["code"])

    def _move(self, pairs: list[tuple[str, str]], marker: str, then: str) -> None:
        """Move all tables between databases at once; a marker, renamed with them, says that it is done."""
        code = marker.rpartition(".")[0]
        moves = [f"{marker} TO {code}.{_name(then)}"]
        for source, target in pairs:
            tables = map(_name, self._tables(source))
            moves += [f"{_name(source)}.{table} TO {_name(target)}.{table}" for table in tables]
        # The lock tells another castore that this one's client may still be at it, though this one is gone.
        self._query(f"""
            {self._lock(code)}
            SET SESSION foreign_key_checks = 0;
            RENAME TABLE {', '.join(moves)};
        """)

    @staticmethod
    def _lock(code: str) -> str:
        """Return SQL that waits until nobody else moves these tables, and fails if that takes long."""
        name = _text(code.strip("`"))
        return f"""
            SELECT CASE WHEN GET_LOCK({name}, {2 * _LOCK_SECONDS}) = 1 THEN 0
                ELSE (SELECT 1 UNION SELECT 2) END INTO @castore;
        """

    def _keep_code(self, memo: Memo, which: str) -> None:
        """Write down what hangs on a database: in another, where it is found whatever happens."""
        if self._kept(memo, which) is not None:
            return
        database = memo[which]
        odd = self._odd_views(database)
        if which == "live":
            self._set_aside(memo, odd)
        else:
            self._write_down(memo, "views", json.dumps(odd).encode())
        with self._argv(0) as (argv, kept):
            ignored = [view.name for view in odd] + (self._asides(memo) if which == "live" else [])
            options = ["--skip-dump-date", "--skip-lock-tables", "--no-data", *_ignoring(database, ignored)]
            hanging = ["--no-create-info", "--routines", "--triggers", "--events", "--", database]
            process = self._process(kept)
            text = output_of([*argv, *options, *hanging], **process, limit=_MOST)
            if views := [name for name in self._views(database) if name not in ignored]:
                named = ["--skip-triggers", "--", database, *views]
                text += output_of([*argv, *options, *named], **process, limit=_MOST)
        if which == "live":
            self._write_down(memo, "grants", os.fsencode("\n".join(self._grants(database))))
        self._write_down(memo, which, text)

    def _set_aside(self, memo: Memo, views: list[_View]) -> None:
        """Rename views that could not be made again: so they can be put back as they are."""
        live = memo["live"]
        if self._kept(memo, "asides") is None:
            mark = memo["code"].rpartition("_")[2]
            names = [[view.name, f"castore_view_{mark}_{at}"] for at, view in enumerate(views)]
            self._write_down(memo, "asides", json.dumps(names).encode())
        there = self._views(live)
        for name, aside in json.loads(self._kept(memo, "asides") or b"[]"):
            if name in there:
                self._query(_renaming(live, name, aside))

    def _asides(self, memo: Memo) -> list[str]:
        """Return the views of the live database that this roll-back has renamed."""
        mark = memo["code"].rpartition("_")[2]
        where = f"WHERE TABLE_SCHEMA = {_text(memo['live'])}"
        rows = self._query(f"SELECT TABLE_NAME FROM information_schema.VIEWS {where}")
        return [row[0] for row in rows if re.fullmatch(f"castore_view_{mark}_[0-9]+", row[0])]

    def _set_charset(self, database: str, of: str) -> None:
        """Let new tables of a database get the character set that those of another get."""
        wanted = self._charset(of)
        if wanted and wanted != self._charset(database):
            self._query(f"ALTER DATABASE {_name(database)}{_charset_of(wanted)}")

    def _write_down(self, memo: Memo, which: str, text: bytes) -> None:
        """Keep a text, in pieces that any server takes, and see that it is there."""
        table = f"{_name(memo['code'])}.kept"
        script = [f"DELETE FROM {table} WHERE which = {_text(which)};"]
        for at, start in enumerate(range(0, len(text), _PIECE)):
            piece = text[start : start + _PIECE].hex()
            script.append(f"INSERT INTO {table} VALUES ({_text(which)}, {at}, 0x{piece});")
        script.append(f"INSERT INTO {table} VALUES ({_text(which)}, -1, '');")
        self._query("\n".join(["BEGIN;", *script, "COMMIT;"]))
        if self._kept(memo, which) != text:
            raise CastoreError(f"what hangs on {memo.get(which, which)} could not be kept")

    def _grants(self, database: str) -> list[str]:
        """Return the rights to single routines, which go with them when they are dropped."""
        found = []
        columns = "Routine_type, Routine_name, User, Host, Proc_priv"
        rows = self._query(f"SELECT {columns} FROM mysql.procs_priv WHERE Db = {_text(database)}")
        for kind, name, user, host, rights in rows:
            given = [one for one in rights.upper().split(",") if one != "GRANT"]
            option = " WITH GRANT OPTION" if "GRANT" in rights.upper().split(",") else ""
            whom = f"{_name(user)}@{_name(host)}"
            on = f"{kind} {_name(database)}.{_name(name)}"
            found.append(f"GRANT {', '.join(given) or 'USAGE'} ON {on} TO {whom}{option};")
        return found

    def _kept(self, memo: Memo, which: str) -> bytes | None:
        table = f"{_name(memo['code'])}.kept"
        where = f"WHERE which = {_text(which)} ORDER BY number"
        found = self._query(f"SELECT number, HEX(text) FROM {table} {where}")
        if not found:
            return None
        return b"".join(bytes.fromhex(row[1]) for row in found[1:])

    def _drop_code(self, database: str) -> None:
        script = []
        for kind, query in _KINDS.items():
            found = [_name(row[0]) for row in self._query(query.format(_text(database)))]
            if found and kind == "package":
                script.append("SET SESSION sql_mode = ORACLE;")
            script += [f"DROP {kind.upper()} IF EXISTS {_name(database)}.{one};" for one in found]
        if script:
            self._query("\n".join(script))

    def _make_code(self, memo: Memo, which: str) -> None:
        text = self._kept(memo, which)
        if text is None:
            raise CastoreError(f"the views, triggers, routines and events of {memo['live']} are not there")
        self._feed(memo["live"], [text])
        if which == "new":
            views = json.loads(self._kept(memo, "views") or b"[]")
            self._make_views(memo["live"], (_View(*view) for view in views))
        for grant in os.fsdecode(self._kept(memo, "grants") or b"").split("\n"):
            # A routine that is there in one of both states only takes its rights with it.
            with contextlib.suppress(ProgramError):
                if grant:
                    self._query(grant)


class MySQL(MariaDB, frozen=True):
    """One database of a MySQL server, as mysqldump writes it."""

    names: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("mysqldump",), ("mysql",))


def _name(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _text(text: str) -> str:
    return "0x" + os.fsencode(text).hex() if text else "''"


def _charset_of(charset: list[str]) -> str:
    return f" CHARACTER SET {charset[0]} COLLATE {charset[1]}" if charset else ""


def _renaming(database: str, name: str, to: str) -> str:
    return f"RENAME TABLE {_name(database)}.{_name(name)} TO {_name(database)}.{_name(to)}"


def _ignoring(database: str, tables: Iterable[str]) -> list[str]:
    return [f"--ignore-table={database}.{table}" for table in tables]
