"""Check a SQLite database that no process uses, as far as SQLite alone can check it.

Collations, functions and virtual tables may exist only in the application. Objects that need them are not
checked but named: they are no reason to refuse a database.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_COLLATION: Final = re.compile("no such collation sequence: (.+)")
_ONLY_THERE: Final = re.compile(
    "no such (?:collation sequence|module|function|tokenizer)|unknown (?:function|tokenizer)|unsafe use of"
)
"""SQLite's messages about objects that only the application has."""
_ROWS: Final = re.compile("(?:TEXT|NUMERIC|NULL|non-[A-Z]+) value in |CHECK constraint failed in ")
"""A check's messages about rows that SQLite once accepted and now would not: the application's own state."""
_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-~/")
"""Bytes that a URI has as they are."""
_MOST_COLLATIONS: Final = 1000
_MOST_ROWS: Final = 10000


class Soundness:
    """The result of a check."""

    # Not a dataclass: the process that checks would take a third longer to start.
    def __init__(self) -> None:
        self.rows = 0
        self.collations: list[str] = []
        """Collations that only the application has: the order of indexes that use them was not checked."""
        self.unchecked: list[str] = []
        """Tables that, apart from this, were not fully checked."""
        self.odd = ""
        """What the check says about a row that does not fit the schema; empty: nothing."""

    @property
    def remarks(self) -> str:
        """What was not checked, and rows that do not fit the schema; empty if there is neither."""
        remarks = []
        if self.collations:
            names = ", ".join(f"collation {name}" for name in self.collations)
            remarks.append(f"indexes that use the {names} of the application were not checked")
        if self.unchecked:
            tables = ", ".join(self.unchecked)
            remarks.append(f"tables that need the application were not fully checked: {tables}")
        if self.odd:
            remarks.append(
                f"it has rows, as it had when it was taken, that do not fit the schema: {self.odd}"
            )
        return "; ".join(remarks)


def uri(path: str) -> str:
    """Return the path of a database as SQLite takes it with options."""
    # As urllib.parse.quote does it, whose import takes as long as that of sqlite3.
    escaped = (chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in os.fsencode(path))
    return f"file:{''.join(escaped)}"


def connect(path: str) -> sqlite3.Connection:
    """Open a database that no process uses; nothing of its schema is read yet."""
    return sqlite3.connect(f"{uri(path)}?mode=ro&immutable=1", uri=True)


def look(
    path: str, what: str, *, thorough: bool = False, connected: Callable[[str], sqlite3.Connection] = connect
) -> Soundness:
    """Check a database. thorough: also compare indexes with tables, and count rows.

    what: the database that the file is a copy of, for messages. connected: makes a new connection as
    `connect` does; it is called up to two times. Raises CastoreError if the database is damaged.
    """
    sound = Soundness()
    try:
        with _prepared(connected(path)) as database:
            _refuse(what, _quick_check(database, sound))
            if thorough:
                with _prepared(connected(path)) as plain:
                    _check_all(plain, database, sound, what)
    except (sqlite3.Error, UnicodeError) as error:
        _refuse(what, str(error))
    return sound


@contextlib.contextmanager
def _prepared(connection: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(connection) as database:
        # What its schema calls during the check comes from the dump.
        database.execute("PRAGMA trusted_schema = OFF")
        database.text_factory = lambda text: text.decode(errors="backslashreplace")
        yield database


def _checked(database: sqlite3.Connection, check: str, sound: Soundness) -> str:
    """Return the first message of a check about damage; "ok" if there is none."""
    for (text,) in database.execute(check):
        if not _ROWS.match(text):
            return str(text)
        sound.odd = sound.odd or text
    return "ok"


def _refuse(what: str, found: str) -> None:
    if found != "ok":
        raise CastoreError(
            f"what was stored of {what} is no sound database: {found} (checked by SQLite "
            f"{sqlite3.sqlite_version}); restore another generation"
        )


def _quick_check(database: sqlite3.Connection, sound: Soundness) -> str:
    """Check pages and rows, with stand-ins for unknown collations: the order of indexes is not compared."""
    for _ in range(_MOST_COLLATIONS):
        try:
            return _checked(database, f"PRAGMA quick_check({_MOST_ROWS})", sound)
        except sqlite3.OperationalError as error:
            lacking = _COLLATION.fullmatch(str(error))
            if lacking is None:
                raise
            sound.collations.append(lacking[1])
            database.create_collation(lacking[1], lambda one, other: (one > other) - (one < other))
    return f"it has more than {_MOST_COLLATIONS} unknown collations"


def _check_all(plain: sqlite3.Connection, database: sqlite3.Connection, sound: Soundness, what: str) -> None:
    """Compare indexes with tables, and count rows. plain: a connection without stand-ins for collations."""
    found = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    names = {name: '"' + name.replace('"', '""') + '"' for (name,) in found}
    try:
        _refuse(what, _checked(plain, f"PRAGMA integrity_check({_MOST_ROWS})", sound))
    except sqlite3.OperationalError as error:
        if not _ONLY_THERE.search(str(error)):
            raise
        for name, quoted in names.items():
            check = partial(_checked, plain, f"PRAGMA integrity_check({quoted})", sound)
            _refuse(what, str(_unless_lacking(check, name, sound) or "ok"))
    for name, quoted in names.items():
        count = partial(_count, database, quoted)
        sound.rows += _unless_lacking(count, name, sound) or 0


def _count(database: sqlite3.Connection, quoted: str) -> int:
    return int(database.execute(f"SELECT count(*) FROM {quoted}").fetchone()[0])


def _unless_lacking(ask: Callable[[], Any], name: str, sound: Soundness) -> Any:
    """Return the result of a query; None if it needs what only the application has."""
    try:
        return ask()
    except sqlite3.OperationalError as error:
        if not _ONLY_THERE.search(str(error)):
            raise
        if name not in sound.unchecked and not _COLLATION.fullmatch(str(error)):
            sound.unchecked.append(name)
        return None
