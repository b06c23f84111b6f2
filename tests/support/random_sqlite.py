"""Random SQLite databases: every kind of object, hostile names, edge values; and what they hold, read independently."""

from __future__ import annotations

import contextlib
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from tests.support.random_postgres import NAMES, quoted

VALUES = (
    "NULL", "0", "-9223372036854775808", "9223372036854775807", "1e999", "-1e999", "-0.0", "4.9e-324", "0.1", "''", "'it''s'", "'ä🌳'", "x''", "x'00ff'", "zeroblob(9000)",
    "CAST(x'ff00fe' AS TEXT)", "CAST(x'610062' AS TEXT)", "'9223372036854775808'", "'1e5'", "' 1'", "printf('%.*c', 20000, 'x')", "char(0, 1, 127)", "json('{\"a\":1}')",
)
TYPES = ("", "INTEGER", "TEXT", "REAL", "BLOB", "NUMERIC", "VARCHAR(3)", "BOOLEAN", "DATETIME", "TEXT COLLATE unicase", "TEXT COLLATE NOCASE", "FLOATING POINT")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a database as its application does, with its collation and function."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.create_collation("unicase", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
        database.create_function("own", -1, lambda *values: len(values), deterministic=True)
        yield database


class RandomDatabase:
    """Statements that make a database, and others that change it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.tables: list[tuple[str, list[str]]] = []
        self.count = 0

    def name(self) -> str:
        self.count += 1
        odd = self.random.choice(NAMES).replace("\0", "") if self.random.random() < 0.5 else "n"
        return quoted(f"{odd}{self.count}" if not odd.startswith("sqlite_") else f"n{self.count}")

    def value(self) -> str:
        return self.random.choice(VALUES)

    def create(self) -> list[str]:
        chance = self.random
        made = [
            f"PRAGMA page_size = {chance.choice((512, 1024, 4096, 65536))}", f"PRAGMA encoding = {chance.choice(('UTF8', 'UTF16le', 'UTF16be'))!r}",
            f"PRAGMA auto_vacuum = {chance.choice((0, 1, 2))}", f"PRAGMA journal_mode = {chance.choice(('DELETE', 'WAL', 'PERSIST', 'TRUNCATE'))}",
            f"PRAGMA user_version = {chance.randint(-2**31, 2**31 - 1)}", f"PRAGMA application_id = {chance.randint(0, 2**31 - 1)}",
        ]
        for _ in range(chance.randint(1, 6)):
            made += self._table()
        makers = (self._index, self._view, self._trigger, self._virtual, self._alter)
        for _ in range(chance.randint(0, 14)):
            made += chance.choice(makers)()
        return made + chance.choice((["ANALYZE"], ["DELETE FROM sqlite_sequence"], ["VACUUM"], []))

    def _table(self) -> list[str]:
        chance = self.random
        table = self.name()
        columns = [self.name() for _ in range(chance.randint(1, 8))]
        lines = [f"{column} {chance.choice(TYPES)}{chance.choice(('', '', ' NOT NULL DEFAULT 7', ' UNIQUE', f' DEFAULT ({self.value()})', ' CHECK (own(1) = 1)'))}" for column in columns]
        key = chance.choice(("id INTEGER PRIMARY KEY", "id INTEGER PRIMARY KEY AUTOINCREMENT", "id TEXT PRIMARY KEY", "id"))
        lines.append(key)
        if chance.random() < 0.3:
            lines.append(f"{self.name()} AS (own(id)) {chance.choice(('STORED', 'VIRTUAL'))}")
        if self.tables and chance.random() < 0.3:
            lines.append(f"up REFERENCES {self.tables[-1][0]} ON DELETE CASCADE")
        ending = " WITHOUT ROWID" if "PRIMARY" in key and "AUTO" not in key and chance.random() < 0.3 else ""
        self.tables.append((table, columns))
        made = [f"CREATE TABLE {table} ({', '.join(lines)}){ending}"]
        for number in range(chance.randint(0, 30)):
            values = ", ".join(self.value() for _ in columns)
            made.append(f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}, id) VALUES ({values}, {number})")
        return made

    def _pick(self) -> tuple[str, str]:
        table, columns = self.random.choice(self.tables)
        return table, self.random.choice(columns)

    def _index(self) -> list[str]:
        table, column = self._pick()
        what = self.random.choice((column, f"{column} COLLATE unicase", f"own({column})", f"{column} DESC, id", f"length({column})"))
        return [f"CREATE INDEX {self.name()} ON {table} ({what}){self.random.choice(('', f' WHERE {column} IS NOT NULL'))}"]

    def _view(self) -> list[str]:
        table, column = self._pick()
        return [f"CREATE VIEW {self.name()} ({self.name()}) AS SELECT own({column}) FROM {table} ORDER BY {column} COLLATE unicase"]

    def _trigger(self) -> list[str]:
        table, column = self._pick()
        return [f"CREATE TRIGGER {self.name()} AFTER UPDATE OF {column} ON {table} WHEN own(1) BEGIN SELECT {self.value()}; DELETE FROM {table} WHERE id < 0; END"]

    def _virtual(self) -> list[str]:
        name = self.name()
        return self.random.choice((
            [f"CREATE VIRTUAL TABLE {name} USING fts5(a, b)", f"INSERT INTO {name} VALUES ('some words', 'more')"],
            [f"CREATE VIRTUAL TABLE {name} USING rtree(id, a, b)", f"INSERT INTO {name} VALUES (1, 2, 3)"],
        ))

    def _alter(self) -> list[str]:
        table, column = self._pick()
        return [self.random.choice((f"ALTER TABLE {table} ADD COLUMN {self.name()} DEFAULT 1", f"ALTER TABLE {table} DROP COLUMN {column}", f"DELETE FROM {table} WHERE id % 2"))]

    def change(self) -> list[str]:
        made: list[str] = []
        for _ in range(self.random.randint(1, 6)):
            table, column = self._pick()
            made.append(self.random.choice((
                f"DROP TABLE {table}", f"DELETE FROM {table}", f"UPDATE OR IGNORE {table} SET {column} = {self.value()}", "VACUUM", f"ALTER TABLE {table} RENAME COLUMN {column} TO {self.name()}",
                f"PRAGMA user_version = {self.random.randint(0, 99)}", "PRAGMA journal_mode = WAL", "PRAGMA journal_mode = DELETE", "PRAGMA page_size = 8192",
            )))
        return made + self._table() + self._view()


def run(path: Path, statements: list[str]) -> None:
    """Run statements; those that SQLite refuses are passed over."""
    with opened(path) as database:
        database.text_factory = bytes
        for statement in statements:
            with contextlib.suppress(sqlite3.Error, UnicodeError):
                database.execute(statement).fetchall()


def contents(path: Path) -> list[object]:
    """Return what a database holds: its settings, its schema, and every row."""
    with opened(path) as database:
        database.text_factory = bytes
        found: list[object] = [database.execute(f"PRAGMA {name}").fetchall() for name in ("page_size", "encoding", "auto_vacuum", "user_version", "application_id")]
        schema = database.execute("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2").fetchall()
        found += schema
        for kind, name, _, _ in schema:
            if kind in {b"table", b"view"}:
                table = quoted(name.decode())
                try:
                    columns = [quoted(column[1].decode()) for column in database.execute(f"PRAGMA table_xinfo({table})")]
                    text = ", ".join(f"typeof({column}), hex({column}), CASE typeof({column}) WHEN 'real' THEN printf('%!.20g', {column}) END" for column in columns)
                    found.append((name, database.execute(f"SELECT {text} FROM {table}").fetchall()))
                except (sqlite3.Error, UnicodeError) as error:
                    found.append((name, str(error)))
        return found
