"""The rights of the account that castore uses on a MariaDB or MySQL server, and those that it lacks.

Objects that an account may not see are invisible to it: without TRIGGER a database seems to have no triggers.
So the rights are compared with those that a complete dump, or a rollback, needs.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.engines.mariadb.sql import literal, quoted
from castore.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.mariadb.client import Client

_GRANT: Final = re.compile(
    r"GRANT (.+?) ON (?:TABLE |FUNCTION |PROCEDURE |PACKAGE |PACKAGE BODY )?"
    r"(\*|`(?:[^`]|``)*`)\.(\*|`(?:[^`]|``)*`) TO "
    r"(`(?:[^`]|``)*`(?:@`(?:[^`]|``)*`)?)"
)
_STAGING: Final = "castore\\_%"
"""A pattern for the databases that a rollback creates."""
_DUMP: Final = {
    "SELECT": "rows",
    "SHOW VIEW": "views",
    "TRIGGER": "triggers",
    "EVENT": "events",
}
"""The rights that a dump needs on its database, and what it lacks without each."""
_CHANGE: Final = (
    *("SELECT", "INSERT", "CREATE", "DROP", "ALTER", "REFERENCES", "INDEX", "LOCK TABLES", "CREATE VIEW"),
    *("SHOW VIEW", "TRIGGER", "EVENT", "CREATE ROUTINE", "ALTER ROUTINE"),
)
"""The rights that a rollback needs on its database."""


class Lack(NamedTuple):
    """A missing right."""

    right: str
    on: str
    """The object in GRANT's notation."""
    without: str
    """What cannot be dumped without it; empty: the right is needed for a rollback."""


class Rights:
    """The rights of an account, including its active roles."""

    def __init__(self, client: Client) -> None:
        self._client = client
        (user,) = client.ask("SELECT CURRENT_USER()")[0]
        name, _, host = user.rpartition("@")
        self.account = f"{quoted(name)}@{quoted(host)}"
        self._grants: list[tuple[set[str], str, str]] = []
        self._on_databases: dict[str, dict[str, set[str]]] = {}
        """The rights by pattern of databases, for the account and each of its roles."""
        rows = client.ask("SHOW GRANTS")
        with contextlib.suppress(ProgramError):
            rows += client.ask("SHOW GRANTS FOR PUBLIC", quiet=True)
        for (line,) in rows:
            match = _GRANT.match(line)
            if not match:
                continue
            # Rights on single columns are not rights on the table.
            rights = {right.strip() for right in re.sub(r"[A-Z ]+\([^)]*\)", "", match[1]).split(",")}
            on, what, whom = _unquoted(match[2]), _unquoted(match[3]), match[4]
            if what == "*" and on != "*":
                self._on_databases.setdefault(whom, {}).setdefault(on, set()).update(rights)
            else:
                self._grants.append((rights, on, what))

    def has(self, right: str, database: str = "", table: str = "") -> bool:
        """Whether the account has a right globally, on a database, or on one of its tables."""
        wanted = {right, "ALL PRIVILEGES", "ALL"}
        if database:
            for patterns in self._on_databases.values():
                # Of the patterns that match a database only the most specific one is used.
                best = _most_exact(patterns, database)
                if best is not None and wanted & patterns[best]:
                    return True
        return any(
            wanted & rights and (on == "*" or (table and (on, what) == (database, table)))
            for rights, on, what in self._grants
        )

    def _pattern(self, database: str) -> str:
        """Return the database pattern to grant a right on: another pattern would hide this one's rights."""
        best = _most_exact(self._on_databases.get(self.account, {}), database)
        return quoted(best) if best is not None else _pattern(database)

    def lacking_to_dump(self, database: str, tables: list[str], *, routines: bool) -> list[Lack]:
        """Return the rights that a complete dump lacks. routines: whether there are visible routines."""
        lacks = []
        for right, what in _DUMP.items():
            if self.has(right, database):
                continue
            if (
                right in {"SELECT", "TRIGGER"}
                and tables
                and all(self.has(right, database, table) for table in tables)
            ):
                # All visible tables may be read; other tables may be hidden.
                continue
            lacks.append(Lack(right, f"{self._pattern(database)}.*", what))
        if not self._sees_routines(database, routines=routines):
            right = "SHOW CREATE ROUTINE" if self._knows("SHOW CREATE ROUTINE") else "SELECT"
            on = f"{self._pattern(database)}.*" if right != "SELECT" else "mysql.proc"
            lacks.append(Lack(right, on, "functions, procedures and packages"))
        return lacks

    def _knows(self, right: str) -> bool:
        """Whether the server has this right at all."""
        with contextlib.suppress(ProgramError):
            return any(row[0].upper() == right for row in self._client.ask("SHOW PRIVILEGES", quiet=True))
        return False

    def _sees_routines(self, database: str, *, routines: bool) -> bool:
        if self.has("SHOW CREATE ROUTINE", database) or self._client.works(
            "SELECT 1 FROM mysql.proc LIMIT 0"
        ):
            return True
        if self.has("SHOW_ROUTINE"):  # MySQL's name
            return True
        # These rights show the routines' names; the texts are needed only if there are routines.
        named = any(self.has(right, database) for right in ("EXECUTE", "ALTER ROUTINE", "CREATE ROUTINE"))
        return named and not routines

    def lacking_to_roll_back(self, database: str, definers: set[str], *, routines: bool) -> list[Lack]:
        """Return the rights that a rollback lacks. definers: of the programs, as USER@HOST."""
        lacks = [
            Lack(right, f"{self._pattern(database)}.*", "")
            for right in _CHANGE
            if not self.has(right, database)
        ]
        # A name that only the pattern matches.
        if not all(self.has(right, "castore_new_0123456789ab") for right in (*_CHANGE, "DELETE", "UPDATE")):
            lacks.append(Lack("ALL PRIVILEGES", f"`{_STAGING}`.*", ""))
        if routines and not self._client.works("SELECT 1 FROM mysql.procs_priv LIMIT 0"):
            lacks.append(Lack("SELECT", "mysql.procs_priv", ""))
        if routines and not self._client.works("SELECT 1 FROM mysql.proc LIMIT 0"):
            lacks.append(Lack("SELECT", "mysql.proc", ""))
        own = self.account.replace("`", "")
        others = sorted(definers - {own})
        if others and not any(
            self.has(right) for right in ("SET USER", "SUPER", "SET_USER_ID", "SET_ANY_DEFINER")
        ):
            lacks.append(Lack("SET USER", "*.*", ""))
        return lacks

    def grants(self, lacks: list[Lack]) -> str:
        """Return the statements that grant the missing rights."""
        on: dict[str, list[str]] = {}
        for lack in lacks:
            on.setdefault(lack.on, []).append(lack.right)
        return "; ".join(
            f"GRANT {', '.join(rights)} ON {what} TO {self.account}" for what, rights in on.items()
        )


def _unquoted(name: str) -> str:
    return name if name == "*" else name[1:-1].replace("``", "`")


def _pattern(database: str) -> str:
    """Return the name of a database for GRANT, which reads it as a pattern."""
    return quoted(re.sub(r"([\\_%])", r"\\\1", database))


def _most_exact(patterns: Iterable[str], database: str) -> str | None:
    """Return the pattern that the server uses, of those that match a database."""

    def fixed(pattern: str) -> int:
        """Return how many characters precede the first wildcard."""
        match = re.search(r"(?<!\\)[%_]", pattern)
        return len(pattern) + 1 if match is None else match.start()

    return max((pattern for pattern in patterns if _matches(pattern, database)), key=fixed, default=None)


def _matches(pattern: str, database: str) -> bool:
    """Whether the pattern of a right matches a database."""
    parts = re.split(r"(\\.|[%_])", pattern)
    kinds = {"%": ".*", "_": "."}
    text = "".join(
        kinds.get(part, re.escape(part[1] if part[:1] == "\\" and len(part) == 2 else part)) for part in parts
    )
    return re.fullmatch(text, database, re.DOTALL) is not None


def definers(client: Client, database: str) -> set[str]:
    """Return the definers of a database's programs, as USER@HOST."""
    schema, where = "information_schema", literal(database)
    script = ";\n".join(
        f"SELECT DEFINER FROM {schema}.{table} WHERE {column} = {where}"
        for table, column in (
            ("VIEWS", "TABLE_SCHEMA"),
            ("TRIGGERS", "TRIGGER_SCHEMA"),
            ("ROUTINES", "ROUTINE_SCHEMA"),
            ("EVENTS", "EVENT_SCHEMA"),
        )
    )
    return {row[0] for row in client.ask(script)}
