"""One PostgreSQL database, restored into a new one that then takes its name."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Any, ClassVar

from castore.engines import find
from castore.engines.base import Contents, Engine, Memo, Secret, new_name, read_preamble
from castore.engines.postgresql import checks, staging
from castore.engines.postgresql.client import Client
from castore.engines.postgresql.database import Compared, Database, valid_record
from castore.engines.postgresql.drill import drilled
from castore.engines.postgresql.sql import missing_roles
from castore.engines.postgresql.swap import Swap
from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.engines.base import Readinto


class PostgreSQL(Engine, frozen=True):
    """One database of a PostgreSQL server, as pg_dump writes it in plain SQL."""

    database: str = ""
    cluster: bool = False
    """Take all databases of the server instead, each as a part of its own, and the roles."""
    host: str | None = None
    """A name or address, or the directory of the server's socket."""
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
    options: tuple[str, ...] = ()
    """More arguments of pg_dump."""
    program_path: str | None = None
    """The directory of pg_dump and psql."""
    maintenance_database: str = "postgres"
    """The database to connect to while others are renamed."""
    sslmode: str | None = None
    sslrootcert: str | None = None
    sslcert: str | None = None
    sslkey: str | None = None
    passfile: str | None = None
    """A file like ~/.pgpass; castore does not let libpq read ~/.pgpass by itself."""
    service: str | None = None
    """The name of a connection service."""
    service_file: str | None = None
    """The file that describes the connection service."""
    inventory: Compared = "full"
    """What is compared after a dump was staged: objects and numbers of rows, objects, or nothing."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = (
        *("program_path", "sslrootcert", "sslcert", "sslkey", "passfile", "service_file"),
    )

    def __post_init__(self) -> None:
        """Refuse settings that name neither a database nor the cluster, or both."""
        if bool(self.database) == self.cluster:
            raise ValueError("either `database` or `cluster = true` was expected")

    def expand(self, name: str) -> dict[str, tuple[str, Engine]]:
        """Return the parts of a cluster: NAME, its roles, and NAME.DATABASE for each database."""
        if not self.cluster:
            return {}
        every = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY 1;"
        common = self._shared()
        found = self._roles_part(name)
        for database in self._client.ask(every):
            plain = re.sub("[^A-Za-z0-9_.-]", "_", database)
            part = f"{name}.{plain}"
            if plain != database or part in found:
                part += "-" + hashlib.sha256(os.fsencode(database)).hexdigest()[:8]
            found[part] = ("postgresql", PostgreSQL(database=database, **common))
        return found

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine]]:
        """Return the parts of a cluster that a generation has, on this server."""
        if not self.cluster:
            return {}
        found = self._roles_part(name)
        for part, known in settings.items():
            database = known.get("database")
            if part.startswith(f"{name}.") and isinstance(database, str) and database:
                found[part] = ("postgresql", PostgreSQL(database=database, **self._shared()))
        return found

    def _roles_part(self, name: str) -> dict[str, tuple[str, Engine]]:
        """Return the part of a cluster that holds its roles."""
        return {name: ("postgresql-roles", find("postgresql-roles")(**self._shared()))}

    def _shared(self) -> dict[str, Any]:
        """Return the settings that the parts of a cluster share."""
        return {
            field: getattr(self, field)
            for field in self.__struct_fields__
            if field not in {"database", "cluster"}
        }

    @property
    def _client(self) -> Client:
        names = ("sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "service", "service_file")
        given = {name: getattr(self, name) for name in names}
        variables = {
            "PG" + name.replace("_", "").upper(): value for name, value in given.items() if value is not None
        }
        is_own = self.database == self.maintenance_database
        return Client(
            elsewhere="template1" if is_own else self.maintenance_database,
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password,
            program_path=self.program_path,
            variables=variables,
            timeout=self.timeout,
            account=self.account,
        )

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

    def version(self) -> str:
        """Return the server's version."""
        return f"postgresql {self._client.version()}"

    def compatibility_warning(self, version: str) -> str:
        """Return a warning if the server is older than the one that was dumped."""
        try:
            then, now = int(version.split()[1]) // 10000, self._client.version() // 10000
        except (IndexError, ValueError):
            return ""
        if now >= then:
            return ""
        return f"it was dumped from PostgreSQL {then}, and the server here is {now}: it may fail to load"

    def dump(self) -> AbstractContextManager[Readinto]:
        """Return a context with a function that reads pg_dump's output."""
        return self.stable_dump("")

    def stable_dump(self, secret: str) -> AbstractContextManager[Readinto]:
        """Do as `dump`; a word that stays the same protects the restricted parts."""
        return self._live.dump(secret)

    def preflight(self) -> None:
        """Raise CastoreError if a rollback would be refused: for options, rights, replication, space."""
        with self._client.connected() as client:
            checks.ready(self._database(client))

    def prepare(self) -> Memo:
        """Return the names of the databases that the rollback creates."""
        memo = {"live": self.database, "new": new_name("new"), "old": new_name("old")}
        there = self.database in Swap(self._client, memo).existing()
        return {**memo, "existed": "yes" if there else ""}

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Create a database like the dumped one, and load the dump."""
        with self._client.connected() as client:
            staging.stage(self._database(client), memo, contents)

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the database and the roles that a rollback would create."""
        found = [] if self.exists() else [f"the database {self.database}"]
        with valid_record():
            lacking = missing_roles(read_preamble(contents()), self._client.roles())
        return [*found, *(f"the role {role}" for role in lacking)]

    def swap(self, memo: Memo, contents: Contents) -> None:
        """Swap the names of the two databases, in one transaction."""
        del contents
        with self._client.connected() as client:
            Swap(client, memo).swap()

    def revert(self, memo: Memo, contents: Contents) -> None:
        """Swap the names again, and drop the new database."""
        del contents
        with self._client.connected() as client:
            Swap(client, memo).revert()

    def cleanup(self, memo: Memo) -> None:
        """Drop the replaced database."""
        with self._client.connected() as client:
            Swap(client, memo).cleanup()

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the dump into a private server on a private socket, and count its rows."""
        with drilled(folder, contents, self.program_path) as found:
            yield found
