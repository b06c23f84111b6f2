"""The tables and sequences of a MariaDB or MySQL database, compared between server, dump and copy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from castore.engines.mariadb.script import normal
from castore.engines.mariadb.sql import literal, quoted

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from castore.engines.mariadb.client import Client

_WITHOUT_ROWS: Final = frozenset({"MRG_MYISAM", "MRG_ISAM", "FEDERATED"})
"""Storage engines whose rows are in other tables: the dump program leaves them out."""
_MARK: Final = b"castore table"
_SHOWN: Final = 120
_WORD: Final = rb"`(?:[^`]|``)*`"
_FOREIGN_KEY: Final = re.compile(
    rb"(?<=\n  )CONSTRAINT (%b) FOREIGN KEY \((?:%b(?:, )?)+\) REFERENCES (%b)(\.%b)? [^\n]*"
    % (_WORD, _WORD, _WORD, _WORD)
)
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_]+")
_INDEX: Final = re.compile(rb"(?<=\n  )KEY (%b) (\([^\n]*?),?(?=\n)" % _WORD)
"""An index on a line of its own, as SHOW CREATE TABLE writes it."""
_PARTITIONED: Final = re.compile(rb"\n *(?:/\*!\d+)? *PARTITION BY ")


class Table(msgspec.Struct, frozen=True, omit_defaults=True, tag="table"):
    """A table or sequence of a dump."""

    name: str
    kind: str
    """As information_schema reports it: BASE TABLE, SYSTEM VERSIONED, SEQUENCE."""
    engine: str = ""
    rows: int | None = None
    """The number of rows in the dump; None: not counted, or in other tables."""
    value: int | None = None
    """The value at which a sequence continues."""
    round: int = 0
    """How often a sequence has begun again, which the dump program does not write."""
    definition: str = ""
    """A digest of its definition in the dump."""


class End(msgspec.Struct, frozen=True, omit_defaults=True, tag="end"):
    """The last record of a dump."""

    version: str
    """The server's version."""
    unseen: tuple[str, ...] = ()
    """The kinds of programs that the account could not see."""
    digests: dict[str, str] = {}
    """A digest of each other record, by kind and name."""


def tables(client: Client, database: str) -> dict[str, Table]:
    """Return the tables and sequences of a database that the account sees."""
    columns = "TABLE_NAME, TABLE_TYPE, COALESCE(ENGINE, '')"
    kinds = "'BASE TABLE', 'SYSTEM VERSIONED', 'SEQUENCE'"
    where = f"WHERE TABLE_SCHEMA = {literal(database)} AND TABLE_TYPE IN ({kinds})"
    rows = client.ask(f"SELECT {columns} FROM information_schema.TABLES {where}")
    return {name: Table(name, kind, engine) for name, kind, engine in rows}


def is_elsewhere(table: Table) -> bool:
    """Whether the rows of a table are in other tables."""
    return table.engine.upper() in _WITHOUT_ROWS


def definitions(client: Client, database: str, wanted: Iterable[Table]) -> dict[str, bytes]:
    """Return the definition of each table, in the form for comparisons; dropped tables are missing."""
    wanted = list(wanted)
    script = []
    for table in wanted:
        kind = "SEQUENCE" if table.kind == "SEQUENCE" else "TABLE"
        name = f"{quoted(database)}.{quoted(table.name)}"
        script += [f"SELECT '{_MARK.decode()}'", f"SHOW CREATE {kind} {name}"]
    if not script:
        return {}
    rows = client.ask_raw(";\n".join(script) + ";\n", lambda _line: None, force=True)
    texts: dict[str, bytes] = {}
    at = -1
    for row in rows:
        if row == [_MARK]:
            at += 1
        else:
            texts[wanted[at].name] = normal(row[1], database)
    return texts


def unmovable_keys(
    tables: Mapping[str, Table], definitions: Mapping[str, bytes]
) -> list[tuple[str, str, str]]:
    """Return the foreign keys that RENAME TABLE does not move with their tables: table, name, definition.

    InnoDB keeps the database of a key in two cases: if the key references a table that InnoDB does not have
    under this name (of another engine, or partitioned), or if the name of one of the key's tables is encoded.
    With foreign_key_checks off it accepts all of them.
    """
    names = {
        quoted(name).encode()
        for name, table in tables.items()
        if table.engine == "InnoDB" and not re.search(_PARTITIONED, definitions.get(name, b""))
    }
    return [
        (table, match[1].decode()[1:-1].replace("``", "`"), match[0].decode().rstrip(","))
        for table, text in definitions.items()
        for match in re.finditer(_FOREIGN_KEY, text)
        if not match[3]
        and (match[2] not in names or not all(map(_PLAIN.fullmatch, (match[2][1:-1], table.encode()))))
    ]


def renamed_indexes(live: bytes, wanted: bytes) -> list[tuple[str, str]]:
    """Return the indexes whose name differs from that in a wanted definition: name, wanted name."""
    live_names, wanted_names = (
        {index[2]: index[1] for index in _INDEX.finditer(text)} for text in (live, wanted)
    )
    return [
        (name.decode()[1:-1].replace("``", "`"), wanted_names[columns].decode()[1:-1].replace("``", "`"))
        for columns, name in live_names.items()
        if columns in wanted_names and wanted_names[columns] != name
    ]


def compared(expected: Mapping[str, bytes], found: Mapping[str, bytes]) -> list[str]:
    """Return how definitions differ from the expected ones."""
    lines = []
    for name, text in expected.items():
        if name not in found:
            lines.append(f"the table {name} is missing")
        elif found[name] != text:
            lines.append(f"the table {name} differs: {_first_difference(text, found[name])}")
    lines += [f"the table {name} was not expected" for name in found if name not in expected]
    return lines


def _first_difference(expected: bytes, found: bytes) -> str:
    was, has = (text.decode(errors="backslashreplace").split("\n") for text in (expected, found))
    for line, other in zip(was, has, strict=False):
        if line != other:
            return f"{line.strip()[:_SHOWN]!r} became {other.strip()[:_SHOWN]!r}"
    return f"{len(was)} lines became {len(has)}"


def columns(client: Client, database: str) -> dict[str, list[str]]:
    """Return the names of each table's columns, for servers that write definitions differently."""
    where = f"WHERE TABLE_SCHEMA = {literal(database)} ORDER BY TABLE_NAME, ORDINAL_POSITION"
    columns_of: dict[str, list[str]] = {}
    for table, column in client.ask(
        f"SELECT TABLE_NAME, COLUMN_NAME FROM information_schema.COLUMNS {where}"
    ):
        columns_of.setdefault(table, []).append(column)
    return columns_of


def count(client: Client, database: str, wanted: Iterable[Table]) -> dict[str, int]:
    """Return each table's number of rows, including its history; for a sequence its next value."""
    wanted = list(wanted)
    script = []
    for at, table in enumerate(wanted):
        what = f"{quoted(database)}.{quoted(table.name)}"
        if table.kind == "SEQUENCE":
            script.append(f"SELECT {at}, next_not_cached_value FROM {what}")
        else:
            history = " FOR SYSTEM_TIME ALL" if table.kind == "SYSTEM VERSIONED" else ""
            script.append(f"SELECT {at}, COUNT(*) FROM {what}{history}")
    rows = client.ask(";\n".join(script)) if script else []
    return {wanted[int(at)].name: int(number) for at, number in rows}


def stamps(client: Client, database: str) -> dict[str, tuple[str, bool]]:
    """Return when each table was last changed, and whether that was at least two seconds ago."""
    settled = "UPDATE_TIME IS NULL OR UPDATE_TIME < current_timestamp() - INTERVAL 2 SECOND"
    times = "CONCAT_WS(' ', CREATE_TIME, UPDATE_TIME)"
    where = f"WHERE TABLE_SCHEMA = {literal(database)}"
    rows = client.ask(f"SELECT TABLE_NAME, {times}, {settled} FROM information_schema.TABLES {where}")
    return {name: (time, old == "1") for name, time, old in rows}


def rounds(client: Client, database: str, wanted: Iterable[Table]) -> dict[str, int]:
    """Return how often each sequence has begun again."""
    names = [table.name for table in wanted if table.kind == "SEQUENCE"]
    script = [
        f"SELECT {at}, cycle_count FROM {quoted(database)}.{quoted(name)}" for at, name in enumerate(names)
    ]
    rows = client.ask(";\n".join(script)) if script else []
    return {names[int(at)]: int(number) for at, number in rows}


def begin_rounds(tables: Iterable[Table]) -> str:
    """Return the statements that set how often sequences have begun again; empty if none has."""
    return "".join(
        f"DO SETVAL({quoted(table.name)}, {table.value}, 0, {table.round});\n"
        for table in tables
        if table.round and table.value is not None
    )


def miscounted(expected: Iterable[Table], found: Mapping[str, int]) -> list[str]:
    """Return the tables that have fewer or more rows than expected."""
    lines = []
    for table in expected:
        number = table.value if table.kind == "SEQUENCE" else table.rows
        if number is not None and found.get(table.name) != number:
            what = "continues at" if table.kind == "SEQUENCE" else "has this many rows:"
            lines.append(f"{table.name} {what} {found.get(table.name)}, in the dump {number}")
    return lines


def release(version: str) -> tuple[str, ...]:
    """Return the release series: servers of the same one write definitions in the same form."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (*(match.groups() if match else (version,)), "MariaDB" if "MariaDB" in version else "MySQL")
