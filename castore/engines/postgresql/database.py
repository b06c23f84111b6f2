"""One database of a PostgreSQL server: its properties, its content, and its dump."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec

from castore.engines.connecting import dump_when_free, open_when_free
from castore.engines.dump_stream import DumpStream, DumpWithPreamble, require_trailer
from castore.engines.inventory import INVENTORY, Inventory
from castore.engines.postgresql import inventory as catalogue
from castore.engines.postgresql.client import REFUSAL
from castore.engines.postgresql.session import DEFERRABLE, PREAMBLE, reading
from castore.engines.postgresql.sql import (
    COLUMNS,
    PASSWORDS,
    PROPERTIES,
    dbname_argument,
    plain,
    quoted_name,
    quoted_text,
    search_path,
)
from castore.errors import CastoreError, ProgramError
from castore.process.runners import output_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.engines.postgresql.client import Client

Compared = Literal["full", "objects", "off"]
"""How much of a database is compared: objects and numbers of rows, objects, or nothing."""
_TRAILER: Final = b"-- PostgreSQL database dump complete"


@contextlib.contextmanager
def valid_record() -> Iterator[None]:
    """Raise CastoreError if what a dump records of its database does not have the expected form."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CastoreError(
            f"what the dump records of its database is damaged: {error!r}; restore another generation"
        ) from None


def restrict_key(client: Client, program: str, secret: str) -> tuple[str, ...]:
    """Return the option of pg_dump or pg_dumpall that sets the word of restricted parts.

    The word has to be secret: a server that knows it can put commands for psql into the dump.
    """
    if not secret or b"--restrict-key" not in output_of([program, "--help"], **client.process(None)):
        return ()
    return (f"--restrict-key={secret}",)


class Database(msgspec.Struct, frozen=True):
    """A database by its name; it need not exist."""

    client: Client
    name: str
    options: tuple[str, ...] = ()
    """More arguments of pg_dump."""
    compared: Compared = "full"

    def exists(self) -> bool:
        """Return whether the server has this database."""
        sql = "SELECT 1 FROM pg_database WHERE datname = :'live';"
        return bool(self.client.ask(sql, {"live": self.name}))

    def oid(self) -> str:
        """Return the number with which the server identifies the database; empty if it does not exist."""
        sql = "SELECT oid FROM pg_database WHERE datname = :'name';"
        return "".join(self.client.ask(sql, {"name": self.name}))

    def properties(self) -> dict[str, Any] | None:
        """Return the properties of the database apart from its content; None if it does not exist."""
        ask = self.client.ask
        rows = ask(PROPERTIES, {"live": self.name})
        if not rows:
            return None
        recorded: dict[str, Any] = json.loads(rows[0])
        row = recorded.pop("row")
        recorded |= {name: row[name] for name in COLUMNS if row.get(name) is not None}
        # The column had another name before PostgreSQL 17.
        if locale := row.get("datlocale") or row.get("daticulocale"):
            recorded["locale"] = locale
        if ask("SELECT has_table_privilege('pg_catalog.pg_authid', 'SELECT');") == ["t"]:
            rows = ask(PASSWORDS)
            hashes = json.loads(rows[0]) if rows else {}
            for role in recorded["roles"] or ():
                role["password"] = hashes.get(role["name"])
        return recorded

    @contextlib.contextmanager
    def dump(self, secret: str) -> Iterator[DumpStream]:
        """Yield a stream of pg_dump's output, protected by a word that depends on the secret."""
        program = self.client.program("pg_dump")
        argv = [program, *self.client.where(), "--format=plain", *restrict_key(self.client, program, secret)]
        argv += self.options
        with self.client.connected() as client:
            live = msgspec.structs.replace(self, client=client)
            first = live.properties() or {}
            version = client.version()
        with contextlib.ExitStack() as stack:
            found, rest = stack.enter_context(self._inventory(first))
            if not rest["failed"] and self.compared != "off":
                first[INVENTORY] = catalogue.condensed(found)
            first["server"] = version
            first |= {"extensions": rest["extension"], "views": rest["view"], "orders": rest["order"]}
            if snapshot := rest["snapshot"].get(""):
                argv.append(f"--snapshot={snapshot}")
            argv.append(dbname_argument(self.name))
            readinto = stack.enter_context(dump_when_free(argv, self.client.process(None), REFUSAL))
            reader = DumpWithPreamble(require_trailer(readinto, _TRAILER, program), first)
            reader.warnings += [
                (os.fsencode(name), f"the {name} is not in the dump: {reason}")
                for name, reason in rest["missing"].items()
            ]
            if reason := rest["failed"].get(""):
                reader.warnings.append((b"inventory", f"no inventory was taken for comparison: {reason}"))
            yield reader

    @contextlib.contextmanager
    def _inventory(self, was: dict[str, Any]) -> Iterator[tuple[Inventory, dict[str, dict[str, str]]]]:
        """Yield what `snapshot` yields; if that fails, only the reason, since the dump is still useful."""
        with contextlib.ExitStack() as stack:
            try:
                snapshot = stack.enter_context(self.snapshot(was, dumped=True))
            except ProgramError as error:
                found, rest = catalogue.split(())
                snapshot = found, {**rest, "failed": {"": str(error)}}
            yield snapshot

    @contextlib.contextmanager
    def snapshot(
        self, was: dict[str, Any], *, dumped: bool = False
    ) -> Iterator[tuple[Inventory, dict[str, dict[str, str]]]]:
        """Yield the inventory of the database, and what `split` returns with it.

        was: the known properties of the database. dumped: also yield what a dump of it leaves out. The
        transaction of the inventory stays open during the block, and its snapshot is exported.
        """
        level = "SERIALIZABLE" if DEFERRABLE in self.options else "REPEATABLE READ"
        deferrable = " DEFERRABLE" if DEFERRABLE in self.options else ""
        role = [option.removeprefix("--role=") for option in self.options if option.startswith("--role=")]
        script = [PREAMBLE.removesuffix(";") + " \\g /dev/null"]
        if role and dumped:
            script.append(f"SET ROLE {quoted_name(role[-1])};")
        script.append(f"BEGIN ISOLATION LEVEL {level} READ ONLY{deferrable};")
        script += [catalogue.EXPORT, catalogue.EXTENSIONS, catalogue.ORDERS]
        if dumped:
            script.append(catalogue.LEFT_OUT)
        if self.compared != "off":
            script.append(catalogue.OBJECTS)
        if self.compared == "full":
            # Functions in indexes are evaluated while a query is planned, and may need the search path.
            path = quoted_text(search_path(was))
            script.append(f"SELECT set_config('search_path', {path}, false) \\g /dev/null")
            script += [catalogue.ROWS, catalogue.VIEWS]
        own = self.client.process("SQL_ASCII" if was.get("encoding") == "SQL_ASCII" else "UTF8")
        argv, sql = self.client.psql(self.name), "\n".join(script)
        with open_when_free(lambda only: reading(argv, sql, **own, only=only), plain, REFUSAL) as pairs:
            yield catalogue.split(pairs)
