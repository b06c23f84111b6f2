"""One dump of a MariaDB or MySQL database: at one moment, complete, and compared with what the server has."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted
from castore.services.engines import mariadb_accounts as accounts
from castore.services.engines import mariadb_inventory as inventory
from castore.services.engines import mariadb_programs as programs
from castore.services.engines import mariadb_swap as swap
from castore.services.engines.contract import Reader, refuse_filters, trailing
from castore.services.engines.mariadb_client import DUMP, LENIENT, MOST, environment
from castore.services.engines.mariadb_lock import OtherTables
from castore.services.engines.mariadb_programs import Program, literal, quoted
from castore.services.engines.mariadb_rights import Rights
from castore.services.engines.mariadb_script import Observed, Sections, TableScript, normal, record_line
from castore.services.programs import output_of, run_dump

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator

    from castore.services.engines.contract import Readinto
    from castore.services.engines.mariadb_client import Client

FILTERS: Final = (
    *("-d", "-t", "-w", "--ignore", "--where", "--no-data", "--no-create-info", "--tables", "--skip-opt"),
    *("--skip-create-options", "--skip-hex-blob", "--skip-tz-utc", "--skip-extended-insert", "--as-of"),
)
"""Options of the dump program that leave something out, or change what is read."""
_END: Final = b"-- Dump completed"
LACKING: Final = "this view refers to what does not exist, or may not be used: only its text is kept"
STRANGE: Final = (
    "this name has a tab, an end of a line or another control character in it, and could not be rolled back: "
    "rename it"
)
_LEFT_OUT: Final = "the dump program has left it out"
_CHANGED: Final = "it was changed, created or dropped while the dump was taken"
_OTHERWISE: Final = "its definition in the dump is not the one that the server has"
_OTHER_MOMENT: Final = (
    "its engine knows no transactions, and it may be of another moment than the other tables (ENGINE=InnoDB "
    "would help): "
)
_UNSEEN: Final = "the account may not see its text, which is not in the dump; missing: "
_PIECE: Final = 1 << 16
_HEADER_MODE: Final = re.compile(rb"(?m)^/\*!40101 SET @OLD_SQL_MODE=[^\n]*\n")
_MODES: Final = (
    b"/*!50003 SET SESSION SQL_MODE='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION' */;\n"
)
_NO_LIMIT: Final = "18446744073709551615"


class _State:
    """What the server says that a database has."""

    def __init__(self, client: Client, database: str) -> None:
        self.database = database
        self.tables = inventory.tables(client, database)
        self.definitions = inventory.definitions(client, database, self.tables.values())
        self.programs, self.unseen = programs.read(client, database)
        self.stamps = inventory.stamps(client, database)

    def changes(self, later: _State) -> list[str]:
        """Return the names of what is not the same later."""
        names = {
            name
            for name in self.definitions.keys() | later.definitions.keys()
            if self.definitions.get(name) != later.definitions.get(name)
        }
        lines, _ = programs.differences(self.programs, later.programs)
        changed = {one.name for one in {*self.programs} ^ {*later.programs}} if lines else set()
        return sorted(names | changed)


class _Introduction(msgspec.Struct):
    """What the first line of a dump says of it; and of its users, which is read elsewhere."""

    mark: str
    database: str
    charset: list[str]
    """And collation."""


class Contents:
    """A stored dump, read and decoded: its records come after the script of its tables.

    Raises CastoreError for a dump that is not complete.
    """

    def __init__(self, introduction: dict[str, Any], chunks: Iterable[bytes | memoryview]) -> None:
        try:
            begin = msgspec.convert(introduction, _Introduction)
        except msgspec.ValidationError:
            begin = _Introduction("", "", [])
        words = [begin.mark, *begin.charset]
        if len(words) != 3 or not all(re.fullmatch(r"\w+", word) for word in words):
            raise CastoreError(
                "the dump was not taken by castore's engine for MariaDB, so it cannot be rolled back to; its "
                "text can be restored: castore cat"
            )
        self.database, self.charset = begin.database, begin.charset
        self.script = TableScript(self.database)
        self.tables: list[inventory.Table] = []
        self.programs: list[Program] = []
        self.end: inventory.End | None = None
        self._sections = Sections(chunks, begin.mark)

    def load(self) -> Iterator[bytes]:
        """Yield the script of the tables, to be fed into any database, and read the records."""
        yield LENIENT
        for chunk in self._sections.tables():
            yield from self.script.feed(chunk)
        yield from self.script.close()
        for line in self._sections.records():
            try:
                record = msgspec.json.decode(line, type=inventory.Table | Program | inventory.End)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise CastoreError(f"a record of the dump is not valid: {error}") from None
            if isinstance(record, inventory.Table):
                self.tables.append(record)
            elif isinstance(record, Program):
                self.programs.append(_safe(record))
            else:
                self.end = record
        if self.end is None:
            raise CastoreError("the dump is not complete: the record of its end is missing")

    def load_into(self, client: Client, database: str) -> None:
        """Load the tables into a database. Raises CastoreError."""
        client.feed(database, self.load())
        if script := inventory.begin_rounds(self.tables):
            client.query(script, database)

    def differences(self, client: Client, database: str) -> list[str]:
        """Return how a database that the dump was loaded into differs from the dump's tables."""
        assert self.end is not None
        found = inventory.tables(client, database)
        expected = {name: normal(text, self.database) for name, text in self.script.created.items()}
        lines = [
            f"the table {one.name} is not in the dump" for one in self.tables if one.name not in expected
        ]
        lines += [
            f"the definition of the table {one.name} is not the one that was taken"
            for one in self.tables
            if one.definition and one.definition != _digest(self.script.created.get(one.name, b""))
        ]
        digests = _digests([*self.tables, *self.programs])
        lines += [
            f"the record of the {name} is not the one that was taken"
            for name in sorted(self.end.digests.keys() | digests.keys())
            if self.end.digests.get(name) != digests.get(name)
        ]
        if inventory.release(self.end.version) == inventory.release(client.query("SELECT VERSION()")[0][0]):
            lines += inventory.compared(expected, inventory.definitions(client, database, found.values()))
        else:
            # Another server writes the same definition in another way.
            lines += [f"the table {name} is missing" for name in expected if name not in found]
        return lines + inventory.miscounted(self.tables, inventory.count(client, database, found.values()))


def _safe(program: Program) -> Program:
    """Return a program whose settings are words, as the server gives them. Raises CastoreError."""
    words = (program.charset, program.collation, program.database_collation)
    kinds = program.kind in programs.KINDS and program.header in {"", *_HEADERS}
    if not kinds or not all(re.fullmatch(r"\w*", word) for word in words):
        raise CastoreError(f"the record of {program.name!r} in the dump is not valid")
    if not re.fullmatch(r"[\w,]*", program.mode) or not re.fullmatch(r"[\w/:+-]*", program.time_zone):
        raise CastoreError(f"the record of {program.name!r} in the dump is not valid")
    return program


_HEADERS: Final = tuple(
    f"{time} {event}" for time in ("BEFORE", "AFTER") for event in ("INSERT", "UPDATE", "DELETE")
)


@contextlib.contextmanager
def dump(client: Client, database: str, options: tuple[str, ...], mark: str) -> Iterator[Readinto]:
    """Give a function that reads a dump. mark: what begins the lines that castore writes into it."""
    _refuse_limits(client)
    before = _State(client, database)
    rights = Rights(client)
    warnings, unseen = _unseen(rights, database, before)
    charset = swap.charset(client, database)
    introduction: dict[str, Any] = {"charset": charset, "database": database, "mark": mark}
    # Without the right to read the schema mysql, the users are not recorded.
    with contextlib.suppress(ProgramError):
        introduction["accounts"] = msgspec.to_builtins(accounts.read_accounts(client.quietly, database))
    most = int(client.query("SELECT @@GLOBAL.max_allowed_packet")[0][0])
    with ExitStack() as stack:
        others = stack.enter_context(OtherTables(client, database, before.tables.values()))
        argv, kept = stack.enter_context(client.argv(DUMP))
        views = [one.name for one in before.programs if one.kind == "view"]
        views += [name for kind, name in before.unseen if kind == "view"]
        argv += [
            *(
                "--single-transaction",
                "--skip-dump-date",
                "--hex-blob",
                "--no-tablespaces",
                "--skip-triggers",
            ),
            *("--skip-routines", "--skip-events", "--skip-add-locks", *history(client), *options),
            *(f"--ignore-table={database}.{view}" for view in views),
            *("--", database),
        ]
        readinto = stack.enter_context(run_dump(argv, **client.process(kept)))
        watched = others.watched(trailing(readinto, _END, argv[0]))
        observed = Observed(_with_modes(watched), most, others.passed)

        def tail() -> bytes:
            later = _State(client, database)
            reader.warnings += _compare(observed, before, later)
            reader.warnings += _uncounted(client, observed, before, later)
            apart = others.unlocked.items()
            reader.warnings += [(os.fsencode(name), _OTHER_MOMENT + why) for name, why in apart]
            return b"".join(_tail(client, database, mark, observed, before, charset[1], unseen))

        reader = Reader(_continued(observed, tail), introduction)
        observed.warnings = reader.warnings
        reader.warnings += warnings
        reader.warnings += [(os.fsencode(one.name), LACKING) for one in before.programs if one.broken]
        reader.warnings += [(os.fsencode(name), STRANGE) for name in strange_names(client, database)]
        reader.warnings += _without_keys(client, database)
        reader.warnings += _rounded(client, database)
        yield reader


def _with_modes(readinto: Readinto) -> Readinto:
    """Return what reads a dump in which a statement after the header sets the modes that its rows need.

    The header of the dump program would have the server replace dates that are not valid, and engines that
    it does not have.
    """
    waiting: memoryview | None = None

    def read(view: memoryview) -> int:
        nonlocal waiting
        if waiting is None:
            beginning = b""
            room = memoryview(bytearray(_PIECE))
            while not (found := _HEADER_MODE.search(beginning)) and len(beginning) < _PIECE:
                count = readinto(room)
                if not count:
                    break
                beginning += room[:count]
            at = found.end() if found else 0
            waiting = memoryview(beginning[:at] + (_MODES if found else b"") + beginning[at:])
        if waiting:
            count = min(len(waiting), len(view))
            view[:count] = waiting[:count]
            waiting = waiting[count:]
            return count
        return readinto(view)

    return read


def _continued(readinto: Readinto, tail: Callable[[], bytes]) -> Readinto:
    """Return what reads a stream, and then what `tail` returns at its end."""
    rest: memoryview | None = None

    def read(view: memoryview) -> int:
        nonlocal rest
        if rest is None:
            if count := readinto(view):
                return count
            rest = memoryview(tail())
        count = min(len(rest), len(view))
        view[:count] = rest[:count]
        rest = rest[count:]
        return count

    return read


def _tail(
    client: Client,
    database: str,
    mark: str,
    observed: Observed,
    state: _State,
    collation: str,
    unseen: list[str],
) -> Iterator[bytes]:
    """Yield the section after the tables: programs as SQL, for any client, and the records."""
    yield b"\n" + record_line(mark, b"views, triggers, routines and events")
    rows = observed.rows
    rounds = inventory.rounds(client, database, state.tables.values())
    recorded = []
    for name, table in state.tables.items():
        present = rows.get(name, 0) if rows is not None and not inventory.is_elsewhere(table) else None
        if table.kind == "SEQUENCE":
            present = None
        value = observed.script.values.get(name)
        recorded.append(
            msgspec.structs.replace(
                table,
                rows=present,
                value=value,
                round=rounds.get(name, 0),
                definition=_digest(observed.script.created.get(name, b"")),
            )
        )
        yield record_line(mark, msgspec.json.encode(recorded[-1]))
    yield os.fsencode(inventory.begin_rounds(recorded))
    for one in state.programs:
        yield record_line(mark, msgspec.json.encode(one))
    yield from programs.script(programs.ordered(one for one in state.programs if not one.broken), collation)
    version = client.query("SELECT VERSION()")[0][0]
    digests = _digests([*recorded, *state.programs])
    end = inventory.End(version, tuple(unseen), digests)
    yield b"\n" + record_line(mark, msgspec.json.encode(end))


def _digests(records: Iterable[inventory.Table | Program]) -> dict[str, str]:
    """Return a digest of each record, by kind and name."""
    return {
        f"{'table' if isinstance(one, inventory.Table) else one.kind} {one.name}": _digest(
            msgspec.json.encode(one)
        )
        for one in records
    }


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=12).hexdigest()


def _refuse_limits(client: Client) -> None:
    """Raise ProgramError where the defaults of sessions would let the dump program read less than all.

    The dump program cannot be given commands for the beginning of its session.
    """
    limit, connect = client.query("SELECT @@GLOBAL.sql_select_limit, @@GLOBAL.init_connect")[0]
    if limit != _NO_LIMIT:
        raise ProgramError(
            f"the server limits a SELECT to {counted(int(limit), 'row')} (sql_select_limit), so a dump would "
            "not be complete: SET GLOBAL sql_select_limit = DEFAULT"
        )
    if re.search(r"sql_select_limit|system_versioning_asof", connect, re.IGNORECASE):
        raise ProgramError(
            f"the server's init_connect changes what a SELECT returns ({connect}), so a dump would not be "
            "complete: remove that from it, or dump with an account that has CONNECTION ADMIN"
        )
    with contextlib.suppress(ProgramError):
        moment = client.quietly("SELECT @@GLOBAL.system_versioning_asof")[0][0]
        if moment != "DEFAULT":
            raise CastoreError(
                f"the server shows tables with system versioning as of {moment} (system_versioning_asof): "
                "SET GLOBAL system_versioning_asof = DEFAULT"
            )


def _unseen(rights: Rights, database: str, state: _State) -> tuple[list[tuple[bytes, str]], list[str]]:
    """Return what of the database the account may not see, as warnings, and the kinds of it."""
    routines = any(
        kind in programs.ROUTINES for kind, _ in [*state.unseen, *(one.identity for one in state.programs)]
    )
    hidden = any(kind in programs.ROUTINES for kind, _ in state.unseen)
    lacks = rights.lacking_to_dump(database, list(state.tables), routines=routines and hidden)
    warnings = []
    kinds = []
    for lack in lacks:
        reason = (
            f"the account {rights.account} may not see all {lack.without} of {database}: those that it does "
            f"not see are not in the dump; {rights.grants([lack])}"
        )
        warnings.append((os.fsencode(lack.without), reason))
        kinds.append(lack.without)
    for kind, name in state.unseen:
        grants = rights.grants(lacks) or "more rights to it"
        warnings.append((os.fsencode(name), f"{kind}: {_UNSEEN}{grants}"))
    return warnings, kinds


def _without_keys(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each table that the server would not let be created again, since it has no key."""
    demanded = client.query("SHOW GLOBAL VARIABLES LIKE '%\\_primary\\_key'")
    if not (names := [name for name, value in demanded if value == "ON"]):
        return []
    where = f"TABLE_SCHEMA = {literal(database)}"
    keys = f"SELECT TABLE_NAME FROM information_schema.STATISTICS WHERE {where} AND NON_UNIQUE = 0"
    kinds = "ENGINE = 'InnoDB' AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')"
    rows = client.query(
        f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE {where} AND {kinds} "
        f"AND TABLE_NAME NOT IN ({keys} AND NULLABLE <> 'YES')"
    )
    reason = f"it has no primary key, which the server demands ({names[0]}): it could not be restored"
    return [(os.fsencode(row[0]), reason) for row in rows]


def _rounded(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each column of type FLOAT with values that the dump program rounds."""
    where = f"WHERE TABLE_SCHEMA = {literal(database)} AND DATA_TYPE = 'float' AND IS_GENERATED = 'NEVER'"
    tables = inventory.tables(client, database)
    found = client.query(f"SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS {where}")
    columns = [(table, column) for table, column in found if table in tables]
    check = "SELECT {0}, COUNT(*) FROM {1} WHERE {2} <> CAST(CAST({2} AS CHAR) AS FLOAT)"
    script = [check.format(at, quoted(table), quoted(column)) for at, (table, column) in enumerate(columns)]
    warnings = []
    for at, number in client.query(";\n".join(script), database) if script else ():
        if number != "0":
            table, column = columns[int(at)]
            reason = (
                f"{number} values of {column}, of type FLOAT, have more than the six digits that the dump "
                "program writes: they are rounded; ALTER TABLE ... MODIFY to DOUBLE keeps them"
            )
            warnings.append((os.fsencode(table), reason))
    return warnings


def _compare(observed: Observed, before: _State, later: _State) -> list[tuple[bytes, str]]:
    """Return what is not in the dump as the server has it, as warnings."""
    changed = before.changes(later)
    warnings = [(os.fsencode(name), _CHANGED) for name in changed]
    for name, text in before.definitions.items():
        if name in changed:
            continue
        dumped = observed.script.created.get(name)
        if dumped is None:
            warnings.append((os.fsencode(name), _LEFT_OUT))
        elif normal(dumped, later.database) != text:
            warnings.append((os.fsencode(name), _OTHERWISE))
    return warnings


def _uncounted(client: Client, observed: Observed, before: _State, later: _State) -> list[tuple[bytes, str]]:
    """Return a warning for each table that has more or fewer rows than its dump.

    Only tables that nobody changed until they were counted can be compared. Of a MEMORY table the server does
    not say when it was changed.
    """
    quiet = []
    for name, table in before.tables.items():
        time, is_settled = before.stamps.get(name, ("", False))
        is_counted = table.kind != "SEQUENCE" and table.engine.upper() != "MEMORY"
        if is_counted and is_settled and later.stamps.get(name, ("", False))[0] == time:
            quiet.append(table)
    if (rows := observed.rows) is None or not quiet:
        return []
    found = inventory.count(
        client, before.database, [one for one in quiet if not inventory.is_elsewhere(one)]
    )
    differing = {
        name: number
        for name, number in found.items()
        if number != rows.get(name, 0) and name in observed.script.created
    }
    now = inventory.stamps(client, before.database) if differing else {}
    return [
        (os.fsencode(name), f"it has {counted(number, 'row')}, and the dump {rows.get(name, 0)}")
        for name, number in differing.items()
        if now.get(name, ("", False))[0] == before.stamps[name][0]
    ]


def history(client: Client) -> list[str]:
    """Return the option by which the history of system-versioned tables is dumped, too."""
    usage = _usage(client.program(DUMP), client.account)
    return ["--dump-history"] if b"--dump-history" in usage else []


@lru_cache(maxsize=16)
def _usage(program: str, account: pwd.struct_passwd | None) -> bytes:
    ask = partial(output_of, limit=MOST, env=environment(), account=account)
    try:
        return ask([program, "--help"])
    except ProgramError:  # an option file of the machine is not valid
        return ask([program, "--no-defaults", "--help"])


def strange_names(client: Client, database: str) -> list[str]:
    """Return the names in the database that the programs' output and scripts cannot be trusted with."""
    found = {name for _, name in programs.names(client, database)} | inventory.tables(client, database).keys()
    found |= {column for names in inventory.columns(client, database).values() for column in names}
    return sorted(name for name in found if re.search("[\0-\x1f\x7f]", name))


def refuse_options(client: Client, options: tuple[str, ...]) -> None:
    """Raise CastoreError where options leave out what a rollback would not restore."""
    refuse_filters(options, FILTERS)
    refuse_filters(tuple(client.file_options()), FILTERS)
