"""Reports of what a dump of a MariaDB database lacks, and of what could not be restored from it."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Final

from castore.engines.mariadb import inventory, programs
from castore.engines.mariadb.script import normal
from castore.engines.mariadb.sql import literal, quoted
from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted

if TYPE_CHECKING:
    from castore.engines.mariadb.client import Client
    from castore.engines.mariadb.rights import Rights
    from castore.engines.mariadb.script import Observed

LACKING: Final = "this view refers to what does not exist, or may not be used: only its text is kept"
STRANGE: Final = (
    "this name contains a tab, a line end or another control character, and could not be rolled back: "
    "rename it"
)
OTHER_MOMENT: Final = (
    "its engine has no transactions, and its rows may be of another moment than the other tables' "
    "(ENGINE=InnoDB would help): "
)
_LEFT_OUT: Final = "the dump program left it out"
_CHANGED: Final = "it was changed, created or dropped while the dump was taken"
_OTHERWISE: Final = "its definition in the dump differs from the server's"
_UNSEEN: Final = "the account may not see its text, which is not in the dump; missing: "
_ROUNDED: Final = (
    "{0} of {1}, of type FLOAT, with more than the six digits that the dump program writes: rounded; ALTER "
    "TABLE ... MODIFY to DOUBLE keeps them"
)
_EMPTY: Final = (
    "{0} of {1} not a member of the ENUM (index 0): the dump writes the empty member, which they become"
)
UNDEFINED: Final = (
    "{0} of {1} with bytes that its character set does not define: the dump has ? for them; ALTER TABLE ... "
    "MODIFY to a binary type, or to the character set that the bytes are of, keeps them"
)
_CONVERTED: Final = "'utf8mb4', 'utf8mb3', 'utf8', 'latin1', 'binary'"
"""Character sets whose stored texts are the same after a conversion to utf8mb4 and back."""
_NO_LIMIT: Final = "18446744073709551615"


class State:
    """What a database contains, as the server reports it."""

    def __init__(self, client: Client, database: str) -> None:
        self.database = database
        self.tables = inventory.tables(client, database)
        self.definitions = inventory.definitions(client, database, self.tables.values())
        self.programs, self.unseen = programs.read(client, database)
        self.stamps = inventory.stamps(client, database)

    def changes(self, later: State) -> list[str]:
        """Return the names of objects that differ later."""
        names = {
            name
            for name in self.definitions.keys() | later.definitions.keys()
            if self.definitions.get(name) != later.definitions.get(name)
        }
        lines, _ = programs.differences(self.programs, later.programs)
        changed = {program.name for program in {*self.programs} ^ {*later.programs}} if lines else set()
        return sorted(names | changed)


def refuse_limits(client: Client) -> None:
    """Raise ProgramError if the defaults of sessions would let the dump program read incomplete data.

    Commands cannot be passed to the dump program for the beginning of its session.
    """
    limit, connect = client.ask("SELECT @@GLOBAL.sql_select_limit, @@GLOBAL.init_connect")[0]
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
        moment = client.ask("SELECT @@GLOBAL.system_versioning_asof", quiet=True)[0][0]
        if moment != "DEFAULT":
            raise CastoreError(
                f"the server shows tables with system versioning as of {moment} (system_versioning_asof): "
                "SET GLOBAL system_versioning_asof = DEFAULT"
            )


def unseen(rights: Rights, database: str, state: State) -> tuple[list[tuple[bytes, str]], list[str]]:
    """Return warnings for objects of the database that the account may not see, and their kinds."""
    routines = any(
        kind in programs.ROUTINES
        for kind, _ in [*state.unseen, *(program.identity for program in state.programs)]
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


def lasting(client: Client, database: str, state: State) -> list[tuple[bytes, str]]:
    """Return warnings about the content of the database, independent of its dump."""
    return [
        *((os.fsencode(program.name), LACKING) for program in state.programs if program.broken),
        *((os.fsencode(program.name), programs.MIXED) for program in state.programs if program.mixed),
        *((os.fsencode(name), STRANGE) for name in strange_names(client, database)),
        *_without_keys(client, database),
        *_rounded(client, database),
        *_empty_members(client, database),
        *_undefined(client, database),
    ]


def strange_names(client: Client, database: str) -> list[str]:
    """Return names in the database that are not safe in the programs' output and scripts."""
    found = {name for _, name in programs.names(client, database)} | inventory.tables(client, database).keys()
    found |= {column for names in inventory.columns(client, database).values() for column in names}
    return sorted(name for name in found if re.search("[\0-\x1f\x7f]", name))


def _without_keys(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each table without a key, which the server would not create again."""
    demanded = client.ask("SHOW GLOBAL VARIABLES LIKE '%\\_primary\\_key'")
    if not (names := [name for name, value in demanded if value == "ON"]):
        return []
    where = f"TABLE_SCHEMA = {literal(database)}"
    keys = f"SELECT TABLE_NAME FROM information_schema.STATISTICS WHERE {where} AND NON_UNIQUE = 0"
    kinds = "ENGINE = 'InnoDB' AND TABLE_TYPE IN ('BASE TABLE', 'SYSTEM VERSIONED')"
    rows = client.ask(
        f"SELECT TABLE_NAME FROM information_schema.TABLES WHERE {where} AND {kinds} "
        f"AND TABLE_NAME NOT IN ({keys} AND NULLABLE <> 'YES')"
    )
    reason = f"it has no primary key, which the server requires ({names[0]}): it could not be restored"
    return [(os.fsencode(row[0]), reason) for row in rows]


def _rounded(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each column of type FLOAT with values that the dump program rounds."""
    condition = "{0} <> CAST(CAST({0} AS CHAR) AS FLOAT)"
    return _with_values(client, database, "DATA_TYPE = 'float'", condition, _ROUNDED)


def _empty_members(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each ENUM with values of index 0, which are written like its empty member."""
    members = "COLUMN_TYPE LIKE 'enum('',%' OR COLUMN_TYPE LIKE '%,'',%' OR COLUMN_TYPE LIKE '%,'')'"
    columns = f"DATA_TYPE = 'enum' AND ({members})"
    return _with_values(client, database, columns, "{0} = '' AND {0} + 0 = 0", _EMPTY)


def _undefined(client: Client, database: str) -> list[tuple[bytes, str]]:
    """Return a warning for each column with texts that the dump program cannot convert to utf8mb4.

    A client with SET NAMES binary can store any bytes, and programs that declare no character set do.
    """
    types = "'char', 'varchar', 'tinytext', 'text', 'mediumtext', 'longtext'"
    columns = f"DATA_TYPE IN ({types}) AND CHARACTER_SET_NAME NOT IN ({_CONVERTED})"
    condition = "HEX(CONVERT(CONVERT({0} USING utf8mb4) USING {1})) <> HEX({0})"
    return _with_values(client, database, columns, condition, UNDEFINED)


def _with_values(
    client: Client, database: str, which: str, condition: str, reason: str
) -> list[tuple[bytes, str]]:
    """Return a warning for each column with values that a condition is true of.

    which: SQL that selects the columns. condition: SQL with {0} for the column, {1} for its character set.
    reason: a message with {0} for how many values there are, {1} for the column.
    """
    where = f"WHERE TABLE_SCHEMA = {literal(database)} AND IS_GENERATED = 'NEVER' AND {which}"
    names = "TABLE_NAME, COLUMN_NAME, COALESCE(CHARACTER_SET_NAME, '')"
    found = client.ask(f"SELECT {names} FROM information_schema.COLUMNS {where}")
    tables = inventory.tables(client, database)
    columns = [row for row in found if row[0] in tables]
    script = []
    for at, (table, column, charset) in enumerate(columns):
        history = " FOR SYSTEM_TIME ALL" if tables[table].kind == "SYSTEM VERSIONED" else ""
        true = condition.format(quoted(column), charset)
        script.append(f"SELECT {at}, COUNT(*) FROM {quoted(table)}{history} WHERE {true}")
    warnings = []
    for number, count in client.query(";\n".join(script), database) if script else ():
        if count != "0":
            table, column, _ = columns[int(number)]
            warnings.append((os.fsencode(table), reason.format(counted(int(count), "value"), column)))
    return warnings


def compare(observed: Observed, before: State, later: State) -> list[tuple[bytes, str]]:
    """Return warnings for objects that are in the dump differently than on the server."""
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


def uncounted(client: Client, observed: Observed, before: State, later: State) -> list[tuple[bytes, str]]:
    """Return a warning for each table that has more or fewer rows than its dump.

    Only tables that were not changed before they were counted can be compared. For a MEMORY table the server
    does not report when it was changed.
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
        client, before.database, [table for table in quiet if not inventory.is_elsewhere(table)]
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
