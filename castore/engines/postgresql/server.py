"""A PostgreSQL server, as castore.toml says how to reach it: what all parts on it have in common."""

from __future__ import annotations

from typing import Any, ClassVar, Generic

from castore.engines.base import Engine, State
from castore.engines.password import Secret
from castore.engines.postgresql.client import Client


class ServerEngine(Engine[State], Generic[State], frozen=True):
    """A part that is on a PostgreSQL server."""

    host: str | None = None
    """A name or address, or the directory of the server's socket."""
    port: int | None = None
    user: str | None = None
    password: Secret | None = None
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

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = (
        *("program_path", "sslrootcert", "sslcert", "sslkey", "passfile", "service_file"),
    )

    @property
    def _renamed(self) -> str:
        """The database that a rollback renames: clients connect to another one meanwhile; empty: none."""
        return ""

    @property
    def _client(self) -> Client:
        names = ("sslmode", "sslrootcert", "sslcert", "sslkey", "passfile", "service", "service_file")
        given = {name: getattr(self, name) for name in names}
        variables = {
            "PG" + name.replace("_", "").upper(): value for name, value in given.items() if value is not None
        }
        is_own = self._renamed == self.maintenance_database
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

    def shared(self) -> dict[str, Any]:
        """Return the settings that all parts on the server have in common."""
        return {field: getattr(self, field) for field in ServerEngine.__struct_fields__}

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
