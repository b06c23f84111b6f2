"""One PostgreSQL database, restored into a new one that then takes its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from castore.engines.dump_stream import read_preamble
from castore.engines.postgresql import checks, staging
from castore.engines.postgresql.database import Compared, Database, valid_record
from castore.engines.postgresql.drill import drilled
from castore.engines.postgresql.roles import PostgreSQLRoles
from castore.engines.postgresql.server import ServerEngine
from castore.engines.postgresql.sql import missing_roles
from castore.engines.postgresql.swap import PostgreSQLSwap, Swap
from castore.engines.state import EngineState, new_name
from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.engines.base import Contents, Engine
    from castore.engines.dump_stream import DumpStream
    from castore.engines.postgresql.client import Client


class PostgreSQL(ServerEngine[PostgreSQLSwap], frozen=True):
    """One database of a PostgreSQL server, as pg_dump writes it in plain SQL."""

    database: str = ""
    cluster: bool = False
    """Take all databases of the server instead, each as a part of its own, and the roles."""
    options: tuple[str, ...] = ()
    """More arguments of pg_dump."""
    inventory: Compared = "full"
    """What is compared after a dump was staged: objects and numbers of rows, objects, or nothing."""

    state_type: ClassVar[type[EngineState]] = PostgreSQLSwap

    def __post_init__(self) -> None:
        """Refuse settings that name neither a database nor the cluster, or both."""
        if bool(self.database) == self.cluster:
            raise ValueError("either `database` or `cluster = true` was expected")

    @property
    def _renamed(self) -> str:
        return self.database

    def label(self) -> str:
        """Return the name of the database."""
        return self.database

    def expand(self, name: str) -> dict[str, tuple[str, Engine[Any]]]:
        """Return the parts of a cluster: NAME, its roles, and NAME.DATABASE for each database."""
        if not self.cluster:
            return {}
        every = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1;"
        found = self._roles_part(name)
        for database in self._client.ask(every):
            plain = re.sub("[^A-Za-z0-9_.-]", "_", database)
            part = f"{name}.{plain}"
            if plain != database or part in found:
                part += "-" + hashlib.sha256(os.fsencode(database)).hexdigest()[:8]
            found[part] = ("postgresql", self._one(database))
        return found

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine[Any]]]:
        """Return the parts of a cluster that a generation has, on this server."""
        if not self.cluster:
            return {}
        found = self._roles_part(name)
        for part, known in settings.items():
            database = known.get("database")
            if part.startswith(f"{name}.") and isinstance(database, str) and database:
                found[part] = ("postgresql", self._one(database))
        return found

    def _roles_part(self, name: str) -> dict[str, tuple[str, Engine[Any]]]:
        """Return the part of a cluster that holds its roles."""
        return {name: ("postgresql-roles", PostgreSQLRoles(**self.shared()))}

    def _one(self, database: str) -> PostgreSQL:
        """Return the part that is one database of the cluster."""
        return msgspec.structs.replace(self, database=database, cluster=False)

    @property
    def _live(self) -> Database:
        return self._database(self._client)

    def _database(self, client: Client) -> Database:
        return Database(client, self.database, self.options, self.inventory)

    def exists(self) -> bool:
        """Whether the server has this database."""
        return not self.database or self._live.exists()

    def check(self) -> None:
        """Raise CastoreError if the database could not be dumped, or a rollback would be refused."""
        if not self.cluster:
            with self._client.connected() as client:
                checks.check(self._database(client))
            return
        self._client.program("pg_dump")
        problems = []
        for part, (_, engine) in self.expand("").items():
            try:
                engine.check()
            except CastoreError as error:
                problems.append(f"{part.removeprefix('.') or 'roles'}: {error}")
        if problems:
            raise CastoreError("; ".join(problems))

    def dump(self) -> AbstractContextManager[DumpStream]:
        """Return a context with a stream of pg_dump's output."""
        return self.stable_dump("")

    def stable_dump(self, secret: str) -> AbstractContextManager[DumpStream]:
        """Do as `dump`; a word that stays the same protects the restricted parts."""
        return self._live.dump(secret)

    def preflight(self) -> None:
        """Raise CastoreError if a rollback would be refused: for options, rights, replication, space."""
        with self._client.connected() as client:
            checks.ready(self._database(client))

    def prepare(self) -> PostgreSQLSwap:
        """Return the names of the databases that the rollback creates."""
        new, old = new_name("new"), new_name("old")
        return PostgreSQLSwap(live=self.database, existed=self._live.exists(), new=new, old=old)

    def stage(self, state: PostgreSQLSwap, contents: Contents) -> list[str]:
        """Create a database like the dumped one, and load the dump."""
        with self._client.connected() as client:
            remarks = staging.stage(self._database(client), state, contents)
        return remarks if state.existed else [f"created the database {self.database}", *remarks]

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the database and the roles that a rollback would create."""
        created = [] if self.exists() else [f"the database {self.database}"]
        with valid_record():
            lacking = missing_roles(read_preamble(contents()), self._client.roles())
        return [*created, *(f"the role {role}" for role in lacking)]

    def swap(self, state: PostgreSQLSwap, contents: Contents) -> list[str]:
        """Swap the names of the two databases, in one transaction."""
        del contents
        with self._client.connected() as client:
            Swap(client, state).swap()
        return []

    def revert(self, state: PostgreSQLSwap, contents: Contents, *, swapped: bool) -> None:
        """Swap the names again, and drop the new database."""
        del contents
        with self._client.connected() as client:
            Swap(client, state).revert(swapped=swapped)

    def cleanup(self, state: PostgreSQLSwap) -> None:
        """Drop the replaced database."""
        with self._client.connected() as client:
            Swap(client, state).cleanup()

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the dump into a private server on a private socket, and count its rows."""
        with drilled(folder, contents, self.program_path) as found:
            yield found
