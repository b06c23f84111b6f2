"""Dump a MariaDB or MySQL database: consistent, complete, and compared with what the server has."""

from __future__ import annotations

import contextlib
import os
import re
from contextlib import ExitStack
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from castore.engines.dump_stream import DumpWithPreamble, preceded, require_trailer
from castore.engines.mariadb import (
    accounts,
    inventory,
    programs,
    reports,
    swap,
)
from castore.engines.mariadb.client import DUMP, MOST, environment
from castore.engines.mariadb.contents import digest, digests_of
from castore.engines.mariadb.lock import OtherTables
from castore.engines.mariadb.reports import State
from castore.engines.mariadb.rights import Rights
from castore.engines.mariadb.script import Observed, record_line
from castore.engines.options import refuse_filters
from castore.errors import ProgramError
from castore.process.runners import output_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterator

    from castore.engines.dump_stream import Readinto
    from castore.engines.mariadb.client import Client

FILTERS: Final = (
    *("-d", "-t", "-w", "--ignore", "--where", "--no-data", "--no-create-info", "--tables", "--skip-opt"),
    *("--skip-create-options", "--skip-hex-blob", "--skip-tz-utc", "--skip-extended-insert", "--as-of"),
)
"""Options of the dump program that leave something out, or change what is read."""
_ARGUMENTS: Final = (
    *("--single-transaction", "--skip-dump-date", "--hex-blob", "--no-tablespaces", "--skip-triggers"),
    *("--skip-routines", "--skip-events", "--skip-add-locks"),
)
_END: Final = b"-- Dump completed"
_PIECE: Final = 1 << 16
_HEADER_MODE: Final = re.compile(rb"(?m)^/\*!40101 SET @OLD_SQL_MODE=[^\n]*\n")
_MODES: Final = (
    b"/*!50003 SET SESSION SQL_MODE='NO_AUTO_VALUE_ON_ZERO,ALLOW_INVALID_DATES,NO_ENGINE_SUBSTITUTION' */;\n"
)


@contextlib.contextmanager
def dump(client: Client, database: str, options: tuple[str, ...], mark: str) -> Iterator[DumpWithPreamble]:
    """Yield a stream of a dump. mark: what begins the lines that castore writes into it."""
    reports.refuse_limits(client)
    before = State(client, database)
    rights = Rights(client)
    warnings, unseen = reports.unseen(rights, database, before)
    charset = swap.charset(client, database)
    # If the database does not exist, mariadb-dump says so.
    origin = _Origin(database, mark, charset[1] if charset else "")
    preamble: dict[str, Any] = {"charset": charset, "database": database, "mark": mark}
    # Without the right to read the schema mysql, the users are not recorded.
    with contextlib.suppress(ProgramError):
        recorded = accounts.read_accounts(partial(client.ask, quiet=True), database)
        preamble["accounts"] = msgspec.to_builtins(recorded)
    most = int(client.ask("SELECT @@GLOBAL.max_allowed_packet")[0][0])
    with ExitStack() as stack:
        others = stack.enter_context(OtherTables(client, database, before.tables.values()))
        views = [program.name for program in before.programs if program.kind == "view"]
        views += [name for kind, name in before.unseen if kind == "view"]
        arguments = [
            *_ARGUMENTS,
            *history(client),
            *options,
            *(f"--ignore-table={database}.{view}" for view in views),
            *("--", database),
        ]
        readinto = stack.enter_context(client.dumping(arguments))
        watched = others.watched(require_trailer(readinto, _END, client.program(DUMP)))
        observed = Observed(_with_modes(watched), most, others.passed)

        def tail() -> bytes:
            later = State(client, database)
            reader.warnings += reports.compare(observed, before, later)
            reader.warnings += reports.uncounted(client, observed, before, later)
            other_tables = others.unlocked.items()
            reader.warnings += [(os.fsencode(name), reports.OTHER_MOMENT + why) for name, why in other_tables]
            return b"".join(_tail(client, origin, observed, before, unseen))

        reader = DumpWithPreamble(_continued(observed, tail), preamble)
        observed.warnings = reader.warnings
        reader.warnings += warnings
        reader.warnings += reports.lasting(client, database, before)
        yield reader


def _with_modes(readinto: Readinto) -> Readinto:
    """Return a function that adds, after a dump's header, a statement for the modes that its rows need.

    With the dump program's header alone the server would replace invalid dates, and engines that it does not
    have.
    """
    changed: Readinto | None = None

    def read(view: memoryview) -> int:
        nonlocal changed
        if changed is None:
            beginning = b""
            piece = memoryview(bytearray(_PIECE))
            while not (header := _HEADER_MODE.search(beginning)) and len(beginning) < _PIECE:
                count = readinto(piece)
                if not count:
                    break
                beginning += piece[:count]
            at = header.end() if header else 0
            beginning = beginning[:at] + (_MODES if header else b"") + beginning[at:]
            changed = preceded(beginning, readinto)
        return changed(view)

    return read


def _continued(readinto: Readinto, tail: Callable[[], bytes]) -> Readinto:
    """Return a function that reads a stream, and then what `tail` returns at its end."""
    rest: Readinto | None = None

    def read(view: memoryview) -> int:
        nonlocal rest
        if rest is None:
            if count := readinto(view):
                return count
            rest = preceded(tail(), lambda _view: 0)
        return rest(view)

    return read


class _Origin(NamedTuple):
    """The dumped database."""

    database: str
    mark: str
    """What begins the lines that castore writes into the dump."""
    collation: str


def _tail(
    client: Client, origin: _Origin, observed: Observed, state: State, unseen: list[str]
) -> Iterator[bytes]:
    """Yield the section after the tables: programs as SQL, for any client, and the records."""
    mark = origin.mark
    yield b"\n" + record_line(mark, b"views, triggers, routines and events")
    recorded = _recorded_tables(client, origin.database, observed, state)
    for table in recorded:
        yield record_line(mark, msgspec.json.encode(table))
    yield os.fsencode(inventory.begin_rounds(recorded))
    for program in state.programs:
        yield record_line(mark, msgspec.json.encode(program))
    creatable = programs.ordered(program for program in state.programs if not program.broken)
    yield from programs.script(creatable, origin.collation)
    version = client.ask("SELECT VERSION()")[0][0]
    digests = digests_of([*recorded, *state.programs])
    end = inventory.End(version, tuple(unseen), digests)
    yield b"\n" + record_line(mark, msgspec.json.encode(end))


def _recorded_tables(
    client: Client, database: str, observed: Observed, state: State
) -> list[inventory.Table]:
    """Return the tables with what the dump has of them."""
    rows = observed.rows
    rounds = inventory.rounds(client, database, state.tables.values())
    recorded = []
    for name, table in state.tables.items():
        present = rows.get(name, 0) if rows is not None and not inventory.is_elsewhere(table) else None
        recorded.append(
            msgspec.structs.replace(
                table,
                rows=None if table.kind == "SEQUENCE" else present,
                value=observed.script.values.get(name),
                round=rounds.get(name, 0),
                definition=digest(observed.script.created.get(name, b"")),
            )
        )
    return recorded


def history(client: Client) -> list[str]:
    """Return the option with which the history of system-versioned tables is also dumped."""
    usage = _usage(client.program(DUMP), client.account)
    return ["--dump-history"] if b"--dump-history" in usage else []


@lru_cache(maxsize=16)
def _usage(program: str, account: pwd.struct_passwd | None) -> bytes:
    ask = partial(output_of, limit=MOST, env=environment(), account=account)
    try:
        return ask([program, "--help"])
    except ProgramError:  # an option file of the machine is not valid
        return ask([program, "--no-defaults", "--help"])


def refuse_options(client: Client, options: tuple[str, ...]) -> None:
    """Raise CastoreError if options leave out what a rollback has to restore."""
    refuse_filters(options, FILTERS)
    refuse_filters(tuple(client.file_options()), FILTERS)
