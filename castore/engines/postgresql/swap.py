"""Swap the live database and a staged one, by renaming both in one transaction."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from castore.engines.postgresql import checks
from castore.engines.postgresql.database import Database
from castore.engines.postgresql.sql import quoted_name
from castore.engines.state import DatabaseSwap
from castore.errors import CastoreError, NotIntactError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.postgresql.client import Client

SUBSCRIBED: Final = """SELECT subname FROM pg_subscription
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = :'name');"""


class PostgreSQLSwap(DatabaseSwap, kw_only=True):
    """A database that is replaced by renaming."""

    oid: str = ""
    """The number with which the server identifies the staged database, once it was loaded."""
    roles: tuple[str, ...] = ()
    """The roles that the rollback has created."""


class Swap:
    """The steps of a rollback on its databases."""

    def __init__(self, client: Client, state: PostgreSQLSwap) -> None:
        self._query = client.query
        self._client = client
        self._state = state
        self.live, self.new, self.old = state.live, state.new, state.old

    def existing(self) -> set[str]:
        """Return which of the rollback's databases exist."""
        names = {"live": self.live, "new": self.new, "old": self.old}
        sql = "SELECT datname FROM pg_database WHERE datname IN (:'live', :'new', :'old');"
        return set(self._client.ask(sql, names))

    def swap(self) -> None:
        """Swap the names of the two databases, in one transaction. Raises CastoreError."""
        checks.refuse(self.live, "rolled back", self._client.ask(checks.BLOCKERS, {"live": self.live}))
        existing = self.existing()
        if self.new in existing:
            pairs = ((self.live, self.old), (self.new, self.live))
            self._rename([(name, to) for name, to in pairs if name in existing])
        self._let_in(self.live)
        if Database(self._client, self.live).oid() != self._state.oid:
            raise CastoreError(
                f"the database that was restored does not have the name {self.live}: another session has "
                "renamed or replaced it"
            )

    def revert(self, *, swapped: bool) -> None:
        """Swap the names again, and drop the new database and the roles that were created for it.

        swapped: `swap` was called, however far it got.
        """
        existing = self.existing()
        if self.old in existing:
            pairs = ((self.live, self.new), (self.old, self.live))
            self._rename([(name, to) for name, to in pairs if name in existing])
        elif swapped and not self._state.existed and self.live in existing and self.new not in existing:
            self._rename([(self.live, self.new)])
        self._let_in(self.live)
        self.drop(self.new)
        for role in self._state.roles:
            # A role that is already in use stays.
            with contextlib.suppress(ProgramError):
                self._query(f"DROP ROLE IF EXISTS {quoted_name(role)};")

    def cleanup(self) -> None:
        """Drop the database that was replaced."""
        self._let_in(self.live)
        self.drop(self.old)

    def drop(self, name: str) -> None:
        """Drop a database that a rollback created or replaced, if it exists."""
        if not re.fullmatch("castore_(new|old)_[0-9a-f]{12}", name):
            raise NotIntactError(
                f"the journal of the rollback names the database {name!r}, which no rollback creates: it is "
                "not dropped"
            )
        if not self._client.ask("SELECT 1 FROM pg_database WHERE datname = :'name';", {"name": name}):
            return
        subscribed = self._query(f"ALTER DATABASE {name} IS_TEMPLATE false;\n{SUBSCRIBED}", {"name": name})
        if name.startswith("castore_new") and subscribed:
            self._let_in(name)
            for line in self._query(checks.SUBSCRIPTIONS, database=name):
                for statement in line.split("; "):
                    self._query(statement.removesuffix(";") + ";", database=name)
        self._close(name)
        self._query(f"DROP DATABASE {name};")

    def _rename(self, pairs: list[tuple[str, str]]) -> None:
        """Rename databases in one transaction."""
        script = [f"ALTER DATABASE {quoted_name(name)} RENAME TO {quoted_name(to)};" for name, to in pairs]
        try:
            self._close(*(name for name, _ in pairs))
            self._query("\n".join(["BEGIN;", *script, "COMMIT;"]), detail=True)
        finally:
            self._let_in(*(name for pair in pairs for name in pair))

    # One client for all statements: the service is down meanwhile, and starting a client takes most of the
    # time.

    def _close(self, *names: str) -> None:
        """End all connections to databases, and prevent new ones. Raises CastoreError."""
        values, listed = _listed(names)
        connected = f"FROM pg_stat_activity WHERE datname IN ({listed});"
        script = [f"ALTER DATABASE {quoted_name(name)} ALLOW_CONNECTIONS false;" for name in names]
        script += [f"SELECT count(pg_terminate_backend(pid)) {connected}", f"SELECT datname {connected}"]
        _, *left = self._query("\n".join(script), values)
        for _ in range(50):
            if not left:
                return
            _, *left = self._query(f"SELECT count(pg_sleep(0.1)); SELECT datname {connected}", values)
        raise CastoreError(f"a client stays connected to the database {left[0]}: stop what uses it")

    def _let_in(self, *names: str) -> None:
        values, listed = _listed(names)
        self._query(
            "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS true;', datname) FROM pg_database "
            f"WHERE datname IN ({listed}) AND NOT datallowconn \\gexec\n",
            values,
        )


def _listed(names: Iterable[str]) -> tuple[dict[str, str], str]:
    """Return psql variables with these values, and the list of the variables in SQL."""
    values = {f"name{number}": name for number, name in enumerate(names)}
    return values, ", ".join(f":'{variable}'" for variable in values)
