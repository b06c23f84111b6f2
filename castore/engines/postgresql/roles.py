"""The roles of a PostgreSQL cluster."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from castore.engines.connecting import dump_when_free
from castore.engines.dump_stream import DumpStream, require_trailer
from castore.engines.postgresql.client import REFUSAL
from castore.engines.postgresql.database import restrict_key
from castore.engines.postgresql.server import ServerEngine
from castore.engines.postgresql.sql import quoted_name
from castore.engines.state import NoState
from castore.engines.unstaged import UnstagedEngine
from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.engines.base import Contents
    from castore.engines.dump_stream import Bytes


_TRAILER: Final = b"-- PostgreSQL database cluster dump complete"


def _created_role(line: bytes) -> str | None:
    """Return the name of the role that a line of pg_dumpall creates; None for every other line."""
    match = re.fullmatch(r'CREATE ROLE (?:"((?:[^"]|"")*)"|([^ ;"]+));\s*', line.decode("utf-8", "replace"))
    return (match[1].replace('""', '"') if match[1] else match[2]) if match else None


class PostgreSQLRoles(UnstagedEngine, ServerEngine[NoState], frozen=True):
    """The roles of a cluster, with the password hashes that the server stores, and tablespaces.

    A rollback creates missing roles, and sets all recorded ones to their recorded state. Roles that are newer
    than the generation stay.
    """

    def dump(self) -> AbstractContextManager[DumpStream]:
        """Return a context with a stream of pg_dumpall's output of all but databases."""
        return self.stable_dump("")

    @contextlib.contextmanager
    def stable_dump(self, secret: str) -> Iterator[DumpStream]:
        """Do as `dump`; a word that stays the same protects the restricted parts."""
        client = self._client
        program = client.program("pg_dumpall")
        argv = [program, *client.where(), "--globals-only", *restrict_key(client, program, secret)]
        with dump_when_free(argv, client.process(), REFUSAL) as readinto:
            yield DumpStream(require_trailer(readinto, _TRAILER, program))

    def check(self) -> None:
        """Raise CastoreError if the roles could not be dumped or set."""
        self._client.program("pg_dumpall")
        self.preflight()

    def preflight(self) -> None:
        """Raise CastoreError if the account may not read and set roles."""
        sql = "SELECT current_user FROM pg_roles WHERE rolname = current_user AND NOT rolsuper;"
        for name in self._client.query(sql):
            raise CastoreError(
                f"only a superuser reads and sets all roles: ALTER ROLE {quoted_name(name)} SUPERUSER;"
            )

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the roles that a rollback would create."""
        existing = self._client.roles()
        lines = b"".join(map(bytes, contents())).splitlines()
        named = [role for line in lines if (role := _created_role(line)) is not None]
        return [f"the role {role}" for role in named if role not in existing]

    def stage(self, state: NoState, contents: Contents) -> list[str]:
        """Create missing roles: they may own databases that are staged."""
        del state
        missing = self.creates(contents.restore_dump)
        lines = b"".join(map(bytes, contents.restore_dump())).splitlines(keepends=True)
        self.load([line for line in lines if _created_role(line) is not None])
        return [f"created {role}" for role in missing]

    def load(self, dump: Iterable[Bytes]) -> None:
        """Create missing roles, and set all to their recorded state."""
        existing = self._client.roles()
        lines = b"".join(map(bytes, dump)).splitlines(keepends=True)
        wanted = [line for line in lines if _created_role(line) not in existing]
        # An existing tablespace cannot be created: that is no failure.
        self._client.load(self._client.elsewhere, wanted, stops=False)

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Read the roles only: castore loads them into no server for a drill."""
        del folder
        count = sum(
            bytes(line).startswith(b"CREATE ROLE ")
            for line in b"".join(map(bytes, contents.restore_dump())).splitlines()
        )
        yield f"{count} roles", {}
