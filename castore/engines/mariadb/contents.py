"""A stored dump of a MariaDB database: its tables, its records, and a comparison with a database."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.engines.mariadb import inventory, programs
from castore.engines.mariadb.client import LENIENT
from castore.engines.mariadb.programs import Program
from castore.engines.mariadb.script import Sections, TableScript, normal
from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.engines.mariadb.client import Client

_HEADERS: Final = tuple(
    f"{time} {event}" for time in ("BEFORE", "AFTER") for event in ("INSERT", "UPDATE", "DELETE")
)


class _Preamble(msgspec.Struct):
    """What the first line of a dump records, except for the users, which are read elsewhere."""

    mark: str
    database: str
    charset: list[str]
    """The character set and collation."""


class StoredDump:
    """A stored dump, read and decoded: its records come after the script of its tables.

    Raises CastoreError if a dump is incomplete.
    """

    def __init__(self, preamble: dict[str, Any], chunks: Iterable[bytes | memoryview]) -> None:
        try:
            begin = msgspec.convert(preamble, _Preamble)
        except msgspec.ValidationError:
            begin = _Preamble("", "", [])
        words = [begin.mark, *begin.charset]
        if len(words) != 3 or not all(re.fullmatch(r"\w+", word) for word in words):
            raise CastoreError(
                "the dump was not taken by castore's engine for MariaDB, so it cannot be rolled back to; its "
                "text can be restored: castore cat"
            )
        self.database, self.charset = begin.database, begin.charset
        self.script = TableScript(self.database)
        self.tables: list[inventory.Table] = []
        self.programs: list[Program] = []
        self._end: inventory.End | None = None
        self._sections = Sections(chunks, begin.mark)

    def load(self) -> Iterator[bytes]:
        """Yield the script of the tables, which can be fed into any database, and read the records."""
        yield LENIENT
        for chunk in self._sections.tables():
            yield from self.script.feed(chunk)
        yield from self.script.close()
        for line in self._sections.records():
            try:
                record = msgspec.json.decode(line, type=inventory.Table | Program | inventory.End)
            except (msgspec.DecodeError, msgspec.ValidationError) as error:
                raise CastoreError(
                    f"a record of the dump is not valid: {error}; restore another generation"
                ) from None
            if isinstance(record, inventory.Table):
                self.tables.append(record)
            elif isinstance(record, Program):
                self.programs.append(_safe(record))
            else:
                self._end = record
        self._check_end()

    @property
    def end(self) -> inventory.End:
        """The record at the end of the dump, which `load` reads. Raises CastoreError if it is missing."""
        return self._check_end()

    def _check_end(self) -> inventory.End:
        if self._end is None:
            raise CastoreError(
                "the dump is incomplete: the record of its end is missing; restore another generation"
            )
        return self._end

    def load_into(self, client: Client, database: str) -> None:
        """Load the tables into a database. Raises CastoreError."""
        client.feed(database, self.load())
        if script := inventory.begin_rounds(self.tables):
            client.query(script, database)

    def differences(self, client: Client, database: str) -> list[str]:
        """Return how a database that the dump was loaded into differs from the dump's tables."""
        tables = inventory.tables(client, database)
        expected = {name: normal(text, self.database) for name, text in self.script.created.items()}
        lines = [
            f"the table {table.name} is not in the dump"
            for table in self.tables
            if table.name not in expected
        ]
        lines += [
            f"the definition of the table {table.name} is not the one that was taken"
            for table in self.tables
            if table.definition and table.definition != digest(self.script.created.get(table.name, b""))
        ]
        digests = digests_of([*self.tables, *self.programs])
        lines += [
            f"the record of the {name} is not the one that was taken"
            for name in sorted(self.end.digests.keys() | digests.keys())
            if self.end.digests.get(name) != digests.get(name)
        ]
        if inventory.release(self.end.version) == inventory.release(client.ask("SELECT VERSION()")[0][0]):
            lines += inventory.compared(expected, inventory.definitions(client, database, tables.values()))
        else:
            # Another server writes the same definition differently.
            lines += [f"the table {name} is missing" for name in expected if name not in tables]
        return lines + inventory.miscounted(self.tables, inventory.count(client, database, tables.values()))


def _safe(program: Program) -> Program:
    """Return a program whose settings are words, as the server writes them. Raises CastoreError."""
    words = (program.charset, program.collation, program.database_collation)
    kinds = program.kind in programs.KINDS and program.header in {"", *_HEADERS}
    if not kinds or not all(re.fullmatch(r"\w*", word) for word in words):
        raise CastoreError(f"the record of {program.name!r} in the dump is not valid")
    if not re.fullmatch(r"[\w,]*", program.mode) or not re.fullmatch(r"[\w/:+-]*", program.time_zone):
        raise CastoreError(f"the record of {program.name!r} in the dump is not valid")
    return program


def digests_of(records: Iterable[inventory.Table | Program]) -> dict[str, str]:
    """Return a digest of each record, by kind and name."""
    return {
        f"{'table' if isinstance(record, inventory.Table) else record.kind} {record.name}": digest(
            msgspec.json.encode(record)
        )
        for record in records
    }


def digest(data: bytes) -> str:
    """Return the digest with which a dump records a text."""
    return hashlib.blake2b(data, digest_size=12).hexdigest()
