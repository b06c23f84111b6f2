"""The exchange of the live database and a staged one, by renaming both in one transaction."""

from __future__ import annotations

import contextlib
import json
import re
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError, ProgramError
from castore.services.engines.contract import SWITCHING
from castore.services.engines.postgresql import checks
from castore.services.engines.postgresql.database import Database
from castore.services.engines.postgresql.sql import quoted_name

if TYPE_CHECKING:
    from castore.services.engines.contract import Memo
    from castore.services.engines.postgresql.client import Client

SUBSCRIBED: Final = """SELECT subname FROM pg_subscription
WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = :'name');"""


class Swap:
    """The steps of a rollback on the databases that its memo names."""

    def __init__(self, client: Client, memo: Memo) -> None:
        self._query = client.query
        self._client = client
        self._memo = memo
        self.live, self.new, self.old = memo["live"], memo["new"], memo["old"]

    def existing(self) -> set[str]:
        """Return which of the databases of the rollback exist."""
        names = {"live": self.live, "new": self.new, "old": self.old}
        sql = "SELECT datname FROM pg_database WHERE datname IN (:'live', :'new', :'old');"
        return set(self._query(sql, names))

    def switch(self) -> None:
        """Exchange the names of the two databases, in one transaction. Raises CastoreError."""
        checks.refuse(self.live, "rolled back", self._query(checks.BLOCKERS, {"live": self.live}))
        there = self.existing()
        if self.new in there:
            pairs = ((self.live, self.old), (self.new, self.live))
            self._rename([(one, to) for one, to in pairs if one in there])
        self._let_in(self.live)
        if Database(self._client, self.live).oid() != self._memo.get("oid"):
            raise CastoreError(f"the database that was restored does not have the name {self.live}")

    def undo(self) -> None:
        """Exchange the names back, and remove the new database and the roles that were made for it."""
        there = self.existing()
        if self.old in there:
            pairs = ((self.live, self.new), (self.old, self.live))
            self._rename([(one, to) for one, to in pairs if one in there])
        elif (
            self.live in there
            and not self._memo["existed"]
            and self.new not in there
            and SWITCHING in self._memo
        ):
            self._rename([(self.live, self.new)])
        self._let_in(self.live)
        self.drop(self.new)
        for role in json.loads(self._memo.get("roles", "[]")):
            # A role that somebody already uses stays.
            with contextlib.suppress(ProgramError):
                self._query(f"DROP ROLE IF EXISTS {quoted_name(role)};")

    def finish(self) -> None:
        """Remove the database that was replaced."""
        self._let_in(self.live)
        self.drop(self.old)

    def drop(self, name: str) -> None:
        """Remove a database that a rollback made or replaced, if it exists."""
        if not re.fullmatch("castore_(new|old)_[0-9a-f]{12}", name):
            raise AssertionError(name)  # nothing else is ever dropped
        if self._query("SELECT 1 FROM pg_database WHERE datname = :'name';", {"name": name}):
            self._query(f"ALTER DATABASE {name} IS_TEMPLATE false;")
            if name.startswith("castore_new") and self._query(SUBSCRIBED, {"name": name}):
                self._let_in(name)
                for line in self._query(checks.SUBSCRIPTIONS, database=name):
                    for statement in line.split("; "):
                        self._query(statement.removesuffix(";") + ";", database=name)
            self._close(name)
            self._query(f"DROP DATABASE {name};")

    def _rename(self, pairs: list[tuple[str, str]]) -> None:
        script = ["BEGIN;"]
        for name, to in pairs:
            self._close(name)
            sql = "SELECT format('ALTER DATABASE %I RENAME TO %I', :'name', :'to');"
            script += [line + ";" for line in self._query(sql, {"name": name, "to": to})]
        try:
            self._query("\n".join([*script, "COMMIT;"]), detail=True)
        finally:
            for pair in pairs:
                for name in pair:
                    self._let_in(name)

    def _close(self, name: str) -> None:
        """End all connections to a database, and keep new ones out."""
        names = {"name": name}
        out = "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS false', :'name');"
        for line in self._query(out, names):
            self._query(line + ";")
        ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :'name';"
        self._query(ended, names)
        left = "SELECT count(*) FROM pg_stat_activity WHERE datname = :'name' AND pid <> pg_backend_pid();"
        for _ in range(50):
            if self._query(left, names) == ["0"]:
                return
            self._query("SELECT pg_sleep(0.1);")
        raise CastoreError(f"somebody stays connected to the database {name}: stop what uses it")

    def _let_in(self, name: str) -> None:
        sql = (
            "SELECT format('ALTER DATABASE %I ALLOW_CONNECTIONS true', datname) FROM pg_database "
            "WHERE datname = :'name' AND NOT datallowconn;"
        )
        for line in self._query(sql, {"name": name}):
            self._query(line + ";")
