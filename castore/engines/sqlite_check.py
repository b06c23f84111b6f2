"""Whether a SQLite database that nobody uses is sound, as far as SQLite alone can say.

Collations, functions and virtual tables may exist only in the application. What needs them is not checked,
and is named: it is no reason to refuse a database.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_COLLATION: Final = re.compile("no such collation sequence: (.+)")
_ONLY_THERE: Final = re.compile(
    "no such (?:collation sequence|module|function|tokenizer)|unknown (?:function|tokenizer)|unsafe use of"
)
"""Messages of SQLite about what only the application has."""
_ROWS: Final = re.compile("(?:TEXT|NUMERIC|NULL|non-[A-Z]+) value in |CHECK constraint failed in ")
"""What a check says of rows that SQLite accepted and now would not: they are as the application has them."""
_MOST_COLLATIONS: Final = 1000
_MOST_ROWS: Final = 10000


@dataclass
class Soundness:
    """What a check found."""

    rows: int = 0
    collations: list[str] = field(default_factory=list)
    """Collations that only the application has: the order of indexes that use them was not checked."""
    unchecked: list[str] = field(default_factory=list)
    """Tables of which more than that was not checked."""
    odd: str = ""
    """What the check says of a row that does not fit the schema; empty: nothing."""

    @property
    def remarks(self) -> str:
        """What was not checked, and rows that do not fit the schema; empty: neither occurs."""
        found = []
        if self.collations:
            names = ", ".join(f"collation {name}" for name in self.collations)
            found.append(f"indexes that use the {names} of the application were not checked")
        if self.unchecked:
            tables = ", ".join(self.unchecked)
            found.append(f"tables that need the application were not fully checked: {tables}")
        if self.odd:
            found.append(f"it has rows, as it had when it was taken, that do not fit the schema: {self.odd}")
        return "; ".join(found)


def connect(path: str) -> sqlite3.Connection:
    """Open a database that nobody uses; nothing of its schema is read yet."""
    return sqlite3.connect(f"file:{quote(path)}?mode=ro&immutable=1", uri=True)


def look(
    path: str, what: str, *, thorough: bool = False, connected: Callable[[str], sqlite3.Connection] = connect
) -> Soundness:
    """Check a database; thorough: compare indexes with tables, too, and count rows.

    what: the database that the file is a copy of, for messages. connected: gives a new connection, as
    `connect` does; two are needed. Raises CastoreError if it is not sound.
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
        # What its schema calls while it is checked comes from the dump.
        database.execute("PRAGMA trusted_schema = OFF")
        database.text_factory = lambda text: text.decode(errors="backslashreplace")
        yield database


def _checked(database: sqlite3.Connection, check: str, sound: Soundness) -> str:
    """Return the first thing that a check says of damage; "ok" for none."""
    for (text,) in database.execute(check):
        if not _ROWS.match(text):
            return str(text)
        sound.odd = sound.odd or text
    return "ok"


def _refuse(what: str, found: str) -> None:
    if found != "ok":
        raise CastoreError(
            f"what was stored of {what} is no sound database: {found} (checked by SQLite "
            f"{sqlite3.sqlite_version})"
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


def _check_all(
    plain: sqlite3.Connection, database: sqlite3.Connection, sound: Soundness, what: str
) -> None:
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
    """Return what a question gives; None where it needs what only the application has."""
    try:
        return ask()
    except sqlite3.OperationalError as error:
        if not _ONLY_THERE.search(str(error)):
            raise
        if name not in sound.unchecked and not _COLLATION.fullmatch(str(error)):
            sound.unchecked.append(name)
        return None
