"""Swap the tables of a database with staged ones, and record what is needed to revert it.

The record is kept in a database of its own on the server, so that it survives any failure of castore.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.engines.mariadb import client as clients
from castore.engines.mariadb import inventory, programs
from castore.engines.mariadb.accounts import Account
from castore.engines.mariadb.programs import Program
from castore.engines.mariadb.sql import literal, quoted
from castore.engines.state import DatabaseSwap, new_name
from castore.errors import CastoreError, NotIntactError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.mariadb.client import Client

_MADE: Final = re.compile("castore_(new|old|code)_[0-9a-f]{12}")
_PIECE: Final = 1 << 18


def charset(client: Client, database: str) -> list[str]:
    """Return the character set and collation of new tables of a database; [] if it does not exist."""
    columns = "DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME"
    where = f"WHERE SCHEMA_NAME = {literal(database)}"
    rows = client.ask(f"SELECT {columns} FROM information_schema.SCHEMATA {where}")
    return rows[0] if rows else []


def charset_clause(names: list[str]) -> str:
    """Return the clause of CREATE DATABASE and ALTER DATABASE for a character set and collation."""
    return f" CHARACTER SET {names[0]} COLLATE {names[1]}" if names else ""


def exists(client: Client, database: str) -> bool:
    """Whether the server has a database that the account sees."""
    where = f"WHERE SCHEMA_NAME = {literal(database)}"
    return bool(client.ask(f"SELECT 1 FROM information_schema.SCHEMATA {where}"))


class MariaDBSwap(DatabaseSwap, kw_only=True):
    """A database whose tables are replaced by those of a staged one."""

    code: str
    """The database that records the completed steps, and what is needed to revert them."""
    accounts: tuple[Account, ...] = ()
    """The users and roles that the rollback has created."""

    @property
    def created(self) -> list[str]:
        """The names of the databases that the rollback creates."""
        return [self.new, self.old, self.code]


class Swap:
    """The databases of one rollback."""

    def __init__(self, client: Client, state: MariaDBSwap) -> None:
        self.live, self.new, self.old, self.code = state.live, state.new, state.old, state.code
        self._client = client
        self._state = state

    @staticmethod
    def prepare(live: str, *, existed: bool) -> MariaDBSwap:
        """Return new names for the databases of a rollback of `live`."""
        new, old, code = new_name("new"), new_name("old"), new_name("code")
        return MariaDBSwap(live=live, existed=existed, new=new, old=old, code=code)

    def make(self, names: list[str]) -> None:
        """Create the databases. names: character set and collation of the staged one."""
        self._remove_left()
        present = charset(self._client, self.live)
        self._client.query(f"""
            CREATE DATABASE {quoted(self.code)};
            CREATE TABLE {quoted(self.code)}.kept (which VARCHAR(10), number INT, text LONGBLOB NOT NULL,
                PRIMARY KEY (which, number)) ENGINE=InnoDB;
            CREATE TABLE {quoted(self.code)}.staged (number INT PRIMARY KEY) ENGINE=InnoDB;
        """)
        self.keep("owner", self._state)
        self._client.query(f"""
            CREATE DATABASE {quoted(self.new)}{charset_clause(names or present)};
            CREATE DATABASE {quoted(self.old)}{charset_clause(present)};
        """)

    def _remove_left(self) -> None:
        """Remove what an earlier rollback of the live database staged and could not remove after it failed.

        Its service is locked, so no other rollback of it is running.
        """
        where = "WHERE TABLE_SCHEMA LIKE 'castore\\_code\\_%' AND TABLE_NAME = 'staged'"
        for (code,) in self._client.ask(f"SELECT TABLE_SCHEMA FROM information_schema.TABLES {where}"):
            if not _MADE.fullmatch(code):
                continue
            names = MariaDBSwap(live=self.live, existed=True, new=code, old=code, code=code)
            leftovers = Swap(self._client, names)
            with contextlib.suppress(ProgramError, msgspec.MsgspecError):
                owner = msgspec.json.decode(leftovers.kept("owner") or b"{}", type=MariaDBSwap)
                if owner.live == self.live and leftovers.live_programs() is None:
                    Swap(self._client, owner).remove()

    def remove(self) -> None:
        """Drop the databases, as far as they exist."""
        self._client.query(self._lock())
        for aside in self._asides():
            self._client.query(f"DROP VIEW IF EXISTS {quoted(self.live)}.{quoted(aside)}")
        drops = []
        for name in (self.new, self.old, self.code):
            if not _MADE.fullmatch(name):
                raise NotIntactError(
                    f"the journal of the rollback names the database {name!r}, which no rollback creates: it "
                    "is not dropped"
                )
            # If the account may not create the database, it may not drop it either, and it does not exist.
            if exists(self._client, name):
                drops.append(f"DROP DATABASE IF EXISTS {quoted(name)}")
        if drops:
            self._client.query(";\n".join(["SET foreign_key_checks = 0", *drops]))

    @property
    def is_made(self) -> bool:
        """Whether the record of the completed steps exists."""
        return bool(inventory.tables(self._client, self.code))

    @property
    def is_moved(self) -> bool:
        """Whether the tables have been swapped."""
        return "moved" in inventory.tables(self._client, self.code)

    def wait(self) -> None:
        """Wait until no other session moves these tables."""
        self._client.query(self._lock())

    def move(self) -> None:
        """Swap all tables at once."""
        self._rename([(self.live, self.old), (self.new, self.live)], "staged", "moved")

    def move_back(self) -> None:
        """Swap the tables again, to their previous places."""
        self._rename([(self.live, self.new), (self.old, self.live)], "moved", "staged")

    def _rename(self, pairs: list[tuple[str, str]], marker: str, then: str) -> None:
        """Move all tables between databases at once; a marker, renamed with them, records that it is done."""
        code = quoted(self.code)
        moves = [f"{code}.{quoted(marker)} TO {code}.{quoted(then)}"]
        for source, target in pairs:
            names = map(quoted, inventory.tables(self._client, source))
            moves += [f"{quoted(source)}.{name} TO {quoted(target)}.{name}" for name in names]
        # The lock shows another castore that the client of a killed one may still be running.
        self._client.query(f"""
            {self._lock()}
            SET SESSION foreign_key_checks = 0;
            RENAME TABLE {", ".join(moves)};
        """)

    def _lock(self) -> str:
        """Return SQL that waits until no other session moves these tables; it fails if that takes long."""
        return f"""
            SELECT CASE WHEN GET_LOCK({literal(self.code)}, {2 * clients.LOCK_SECONDS}) = 1 THEN 0
                ELSE (SELECT 1 UNION SELECT 2) END INTO @castore;
        """

    def lock_all(self) -> None:
        """Check that the live tables can be locked, before anything is dropped. Raises ProgramError."""
        live = inventory.tables(self._client, self.live)
        if tables := [f"{quoted(self.live)}.{quoted(table)} WRITE" for table in live]:
            self._client.query(f"LOCK TABLES {', '.join(tables)}; UNLOCK TABLES")

    def set_charset(self, of: str) -> None:
        """Set the default character set of the live database to that of another."""
        wanted = charset(self._client, of)
        if wanted and wanted != charset(self._client, self.live):
            self._client.query(f"ALTER DATABASE {quoted(self.live)}{charset_clause(wanted)}")

    def keep_live(self) -> None:
        """Record the programs of the live database, and the rights to them, which are dropped with them."""
        if self.kept("live") is not None:
            return
        live_programs, unseen = programs.read(self._client, self.live)
        if unseen:
            kind, name = unseen[0]
            raise CastoreError(
                f"the account may not see the text of the {kind} {name}, so it could not be restored; "
                "castore config check reports which rights are missing; nothing was changed"
            )
        programs.refuse_mixed(live_programs)
        self._set_aside([program.name for program in live_programs if program.odd])
        self.keep("grants", self._grants())
        self.keep("live", [program for program in live_programs if not program.odd])

    def live_programs(self) -> list[Program] | None:
        """Return the recorded programs of the live database; None: they have not been recorded yet."""
        return self._programs("live")

    def new_programs(self) -> list[Program]:
        """Return the programs to create for the staged tables."""
        kept_programs = self._programs("programs")
        if kept_programs is None:
            raise CastoreError(
                f"the record of the views, triggers, routines and events of {self.live} is missing; repeat "
                "the rollback"
            )
        return kept_programs

    def _programs(self, which: str) -> list[Program] | None:
        data = self.kept(which)
        return None if data is None else msgspec.json.decode(data, type=list[Program])

    def _set_aside(self, views: list[str]) -> None:
        """Rename views that could not be created again, so that they can be restored unchanged."""
        if self.kept("asides") is None:
            mark = self.code.rpartition("_")[2]
            self.keep("asides", [[name, f"castore_view_{mark}_{at}"] for at, name in enumerate(views)])
        there = {name for kind, name in programs.names(self._client, self.live) if kind == "view"}
        for name, aside in msgspec.json.decode(self.kept("asides") or b"[]"):
            if name in there:
                self._rename_view(name, aside)

    def restore_asides(self) -> None:
        """Restore the names of the views that were renamed."""
        asides = self._asides()
        for name, aside in msgspec.json.decode(self.kept("asides") or b"[]"):
            if aside in asides:
                self._rename_view(aside, name)

    def _rename_view(self, name: str, to: str) -> None:
        live = quoted(self.live)
        self._client.query(f"RENAME TABLE {live}.{quoted(name)} TO {live}.{quoted(to)}")

    def _asides(self) -> list[str]:
        """Return the views of the live database that this rollback has renamed."""
        mark = self.code.rpartition("_")[2]
        where = f"WHERE TABLE_SCHEMA = {literal(self.live)}"
        rows = self._client.ask(f"SELECT TABLE_NAME FROM information_schema.VIEWS {where}")
        return [row[0] for row in rows if re.fullmatch(f"castore_view_{mark}_[0-9]+", row[0])]

    def _grants(self) -> list[str]:
        """Return the rights to single routines of the live database."""
        if not any(kind in programs.ROUTINES for kind, _ in programs.names(self._client, self.live)):
            return []
        grants = []
        columns = "Routine_type, Routine_name, User, Host, Proc_priv"
        where = f"WHERE Db = {literal(self.live)}"
        for kind, name, user, host, rights in self._client.ask(
            f"SELECT {columns} FROM mysql.procs_priv {where}"
        ):
            given = [right for right in rights.upper().split(",") if right != "GRANT"]
            option = " WITH GRANT OPTION" if "GRANT" in rights.upper().split(",") else ""
            whom = f"{quoted(user)}@{quoted(host)}" if host else quoted(user)
            on = f"{kind} {quoted(self.live)}.{quoted(name)}"
            grants.append(f"GRANT {', '.join(given) or 'USAGE'} ON {on} TO {whom}{option};")
        return grants

    def grant(self) -> None:
        """Grant the recorded rights again."""
        for statement in msgspec.json.decode(self.kept("grants") or b"[]"):
            # The rights to a routine that only one of the two states has are lost with it.
            with contextlib.suppress(ProgramError):
                self._client.quietly(statement)

    def drop_programs(self, database: str) -> None:
        """Drop the programs of a database of this rollback."""
        programs.drop(self._client, database)

    def create_programs(self, wanted: Iterable[Program]) -> list[str]:
        """Create programs in the live database; return what can no longer exist. Raises CastoreError."""
        wanted = list(wanted)
        collation = charset(self._client, self.live)[1]
        programs.create(self._client, self.live, wanted, collation)
        self.grant()
        created, _ = programs.read(self._client, self.live)
        differences, notes = programs.differences(wanted, created)
        if differences:
            raise CastoreError("; ".join(differences))
        return notes

    def settle_defaults(self) -> None:
        """Make defaults that take the next value of a staged sequence use the live one."""
        mine = f"{quoted(self.new)}."
        where = (
            f"WHERE TABLE_SCHEMA = {literal(self.live)} AND COLUMN_DEFAULT LIKE {literal(f'%{self.new}%')}"
        )
        found = self._client.ask(
            f"SELECT TABLE_NAME, COLUMN_NAME, COLUMN_DEFAULT FROM information_schema.COLUMNS {where}"
        )
        # All columns of a table at once: it cannot be opened while one refers to the staged database.
        changes: dict[str, list[str]] = {}
        tables = inventory.tables(self._client, self.live)
        for table, column, default in found:
            if table not in tables:
                continue  # a view that shows the column
            # The name is random, so it can mean nothing else.
            wanted = default.replace(mine, quoted(self.live) + ".")
            changes.setdefault(table, []).append(f"ALTER COLUMN {quoted(column)} SET DEFAULT ({wanted})")
        script = [f"ALTER TABLE {quoted(table)} {', '.join(parts)};\n" for table, parts in changes.items()]
        if script:
            # Defaults may contain backslashes, in the form that the server shows with an empty sql_mode.
            self._client.feed(self.live, [clients.LENIENT, b"SET sql_mode = '';\n", "".join(script).encode()])

    def detach(self, which: str) -> None:
        """Drop the foreign keys of a database that do not move with its tables, and record them."""
        database = self.new if which == "new keys" else self.live
        if self.kept(which) is None:
            tables = inventory.tables(self._client, database)
            texts = inventory.definitions(self._client, database, tables.values())
            keys = inventory.unmovable_keys(tables, texts)
            self.keep(which, [(*key, texts[key[0]]) for key in keys])
        for table, name, *_ in self._keys(which):
            where = f"{quoted(database)}.{quoted(table)}"
            drop = f"ALTER TABLE {where} DROP FOREIGN KEY IF EXISTS {quoted(name)};\n"
            self._client.feed(database, [clients.LENIENT, drop.encode()])

    def attach(self, which: str) -> None:
        """Create the recorded foreign keys of the live database again."""
        for table, _, definition, _ in self._keys(which):
            add = f"SET foreign_key_checks = 0;\nALTER TABLE {quoted(table)} ADD {definition};\n"
            self._client.feed(self.live, [clients.LENIENT, add.encode()])
        for table, _, _, text in self._keys(which):
            # Creating a foreign key renames an index that the server made for it.
            tables = inventory.tables(self._client, self.live)
            definitions = inventory.definitions(self._client, self.live, [tables[table]])
            renamed = inventory.renamed_indexes(definitions[table], text)
            for name, wanted in renamed:
                rename = f"ALTER TABLE {quoted(table)} RENAME INDEX {quoted(name)} TO {quoted(wanted)};\n"
                self._client.feed(self.live, [clients.LENIENT, rename.encode()])

    def _keys(self, which: str) -> list[tuple[str, str, str, bytes]]:
        return msgspec.json.decode(self.kept(which) or b"[]", type=list[tuple[str, str, str, bytes]])

    def keep(self, which: str, what: Any) -> None:
        """Record a value, in pieces that any server accepts, and check that it can be read again."""
        text = msgspec.json.encode(what)
        table = f"{quoted(self.code)}.kept"
        script = [f"DELETE FROM {table} WHERE which = {literal(which)};"]
        for at, start in enumerate(range(0, len(text), _PIECE)):
            piece = text[start : start + _PIECE].hex()
            script.append(f"INSERT INTO {table} VALUES ({literal(which)}, {at}, 0x{piece});")
        # It may be repeated.
        self._client.ask("\n".join(["BEGIN;", *script, "COMMIT;"]))
        if self.kept(which) != text:
            raise CastoreError(f"{which} of {self.live} could not be recorded: repeat the command")

    def kept(self, which: str) -> bytes | None:
        """Return a recorded value, in JSON; None if there is none."""
        table = f"{quoted(self.code)}.kept"
        where = f"WHERE which = {literal(which)} ORDER BY number"
        rows = self._client.ask(f"SELECT HEX(text) FROM {table} {where}")
        return b"".join(bytes.fromhex(row[0]) for row in rows) if rows else None
