"""The programs of a MariaDB or MySQL database: its views, triggers, routines, packages and events.

Each is kept as the server shows it, in bytes of the character set that it was written in, with the session
settings that it depends on. It is created again, in the database of the same name, from exactly this text:
nothing in it is edited.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from typing import TYPE_CHECKING, Final

import msgspec

from castore.engines.mariadb.script import unqualified
from castore.engines.mariadb.sql import literal, quoted
from castore.engines.mariadb.text import executable
from castore.errors import CastoreError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.engines.mariadb.client import Client

_SCHEMA: Final = "information_schema"
ROUTINES: Final = ("function", "procedure", "package", "package body")
KINDS: Final = (*ROUTINES, "view", "trigger", "event")
"""In the order of creation."""
_NAMES: Final = (
    # One query for all routines, since each query makes the server read all their definitions.
    "SELECT LOWER(ROUTINE_TYPE), ROUTINE_NAME FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = {0}",
    "SELECT 'view', TABLE_NAME FROM information_schema.VIEWS WHERE TABLE_SCHEMA = {0} AND NOT {1}",
    "SELECT 'trigger', TRIGGER_NAME FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = {0} ORDER BY {2}",
    "SELECT 'event', EVENT_NAME FROM information_schema.EVENTS WHERE EVENT_SCHEMA = {0}",
)
MIXED: Final = (
    "its name, comment or table has characters that the character set of its text does not have, so it could "
    "not be created again: create it again in a session with SET NAMES utf8mb4"
)
_INVALID: Final = "references invalid"
_MARK: Final = b"castore program"
_PLAIN_CHARSETS: Final = frozenset({"utf8mb4", "utf8mb3", "utf8", "latin1", "binary", "ascii"})
"""Character sets whose bytes below 128 are ASCII: with any of them the client finds where strings end."""
_DELIMITERS: Final = (";;", "$$", "//", *(f"~{number}~" for number in range(100)))
_ASIDE: Final = "TABLE_NAME LIKE 'castore!_view!_%' ESCAPE '!'"
_RUN: Final = "EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_ORDER"
"""The order in which the triggers of a table run, and are created."""


class Program(msgspec.Struct, frozen=True, omit_defaults=True, tag="program"):
    """A view, trigger, routine, package or event."""

    kind: str
    name: str
    text: bytes
    """The statement that creates it."""
    charset: str
    """The character set of the text, and of the client that created it."""
    collation: str
    """The collation of the connection that created it."""
    mode: str = ""
    """The sql_mode."""
    database_collation: str = ""
    """The default collation of the database when it was created."""
    time_zone: str = ""
    """The time zone of an event."""
    table: str = ""
    """The table of a trigger."""
    header: str = ""
    """When a trigger runs, such as BEFORE INSERT."""
    body: bytes = b""
    """The statement of a trigger, in UTF-8."""
    odd: bool = False
    """Whether the server reports a fault in a view: it is created if that succeeds."""
    broken: bool = False
    """Whether a view refers to an object that does not exist: the view cannot be created."""
    mixed: bool = False
    """Whether a name or comment cannot be written in the text's character set: it cannot be created again."""

    @property
    def shown(self) -> str:
        """Its kind and name for messages."""
        return f"the {self.kind} {self.name}"

    @property
    def identity(self) -> tuple[str, str]:
        """The kind and name, which no other program of the database shares."""
        return self.kind, self.name


def names(client: Client, database: str) -> list[tuple[str, str]]:
    """Return kind and name of each program that the account sees."""
    rows = client.ask(";\n".join(_NAMES).format(literal(database), _ASIDE, _RUN))
    return sorted(((kind, name) for kind, name in rows if kind in KINDS), key=lambda row: KINDS.index(row[0]))


def read(client: Client, database: str) -> tuple[list[Program], list[tuple[str, str]]]:
    """Return the programs of a database, and those whose text the account may not see."""
    wanted = names(client, database)
    if not wanted:
        return [], []
    script = ["SET character_set_results = binary"]
    for kind, name in wanted:
        script += [f"SELECT '{_MARK.decode()}'", f"SHOW CREATE {kind.upper()} {quoted(name)}"]
    rows = client.raw(";\n".join(script) + ";\n", database, lambda _line: None, force=True)
    triggers = _triggers(client, database)
    found: dict[int, list[bytes]] = {}
    at = -1
    for row in rows:
        if row == [_MARK]:
            at += 1
        else:
            found[at] = row
    programs, unseen = [], []
    for number, (kind, name) in enumerate(wanted):
        program = _program(kind, name, found.get(number), triggers)
        if program is None:
            unseen.append((kind, name))
        else:
            programs.append(program)
    programs = executable(client, database, programs)
    odd = _odd_views(client, database, [program.name for program in programs if program.kind == "view"])
    return [
        msgspec.structs.replace(program, odd=True, broken=odd[program.name])
        if program.kind == "view" and program.name in odd
        else program
        for program in programs
    ], unseen


def _triggers(client: Client, database: str) -> dict[str, tuple[str, str, bytes]]:
    columns = "TRIGGER_NAME, EVENT_OBJECT_TABLE, ACTION_TIMING, EVENT_MANIPULATION, ACTION_STATEMENT"
    where = f"WHERE TRIGGER_SCHEMA = {literal(database)}"
    rows = client.ask_raw(f"SELECT {columns} FROM {_SCHEMA}.TRIGGERS {where}")
    return {
        name.decode(): (table.decode(), f"{timing.decode()} {event.decode()}", body)
        for name, table, timing, event, body in rows
    }


def _program(
    kind: str, name: str, row: list[bytes] | None, triggers: dict[str, tuple[str, str, bytes]]
) -> Program | None:
    if row is None:
        return None
    zone = ""
    if kind == "view":
        _, text, charset, collation = row[:4]
        mode = database_collation = b""
    elif kind == "event":
        _, mode, zone_, text, charset, collation, database_collation = row[:7]
        zone = zone_.decode()
    else:
        _, mode, text, charset, collation, database_collation = row[:6]
    if text == b"NULL" or (kind == "trigger" and name not in triggers):
        return None
    table, header, body = triggers[name] if kind == "trigger" else ("", "", b"")
    return Program(
        kind=kind,
        name=name,
        text=text,
        charset=charset.decode(),
        collation=collation.decode(),
        mode=mode.decode(),
        database_collation=database_collation.decode(),
        time_zone=zone,
        table=table,
        header=header,
        body=body,
    )


def _odd_views(client: Client, database: str, views: list[str]) -> dict[str, bool]:
    """Return the views in which the server reports a fault, each with whether it is broken.

    If a view is not broken, its definer may be missing: it can then be created, but perhaps not be used.
    """
    if not views:
        return {}
    said: dict[str, str] = {}
    for table, _, kind, text in client.query(f"CHECK TABLE {', '.join(map(quoted, views))}", database):
        if kind.lower() == "error":
            name = table[len(database) + 1 :]
            said[name] = f"{said.get(name, '')} {text}"
    return {
        name: _INVALID in text or not client.works(f"SHOW FIELDS FROM {quoted(name)}", database)
        for name, text in said.items()
    }


def ordered(programs: Iterable[Program]) -> list[Program]:
    """Return programs ordered so that views come after the views that they name."""
    remaining = {program.identity: program for program in programs}
    views = {
        program.name: quoted(program.name).encode()
        for program in remaining.values()
        if program.kind == "view"
    }
    in_order: dict[tuple[str, str], Program] = {}

    def add(program: Program) -> None:
        if remaining.pop(program.identity, None) is None:
            return
        if program.kind == "view":
            for name, word in views.items():
                needed = remaining.get(("view", name))
                if needed is not None and word in program.text:
                    add(needed)
        in_order[program.identity] = program

    for program in list(remaining.values()):
        add(program)
    return list(in_order.values())


def script(programs: Iterable[Program], collation: str) -> Iterator[bytes]:
    """Yield the statements that create programs in the current database.

    collation: the database's own. It is changed temporarily for programs that need another one.
    """
    present = collation
    for program in programs:
        wanted = program.database_collation or collation
        if wanted != present:
            yield f"ALTER DATABASE COLLATE {wanted};\n".encode()
            present = wanted
        settings = f"character_set_client = {program.charset}, collation_connection = {program.collation}"
        settings += f", sql_mode = '{program.mode}'"
        if program.time_zone:
            settings += f", time_zone = '{program.time_zone}'"
        delimiter = next(mark for mark in _DELIMITERS if mark.encode() not in program.text)
        yield f"SET {settings};\nDELIMITER {delimiter}\n".encode()
        yield program.text + f"\n{delimiter}\nDELIMITER ;\n".encode()
    if present != collation:
        yield f"ALTER DATABASE COLLATE {collation};\n".encode()


def create(client: Client, database: str, programs: Iterable[Program], collation: str) -> None:
    """Create programs in a database that has its tables. Raises ProgramError.

    A broken view that cannot be created is no error.
    """
    wanted = ordered(programs)
    _feed(client, database, [program for program in wanted if program.kind in ROUTINES], collation)
    _create_views(client, database, [program for program in wanted if program.kind == "view"], collation)
    _feed(
        client, database, [program for program in wanted if program.kind in {"trigger", "event"}], collation
    )


def _feed(
    client: Client, database: str, programs: list[Program], collation: str, *, force: bool = False
) -> None:
    for charset, group in itertools.groupby(
        programs, lambda program: "utf8mb4" if program.charset in _PLAIN_CHARSETS else program.charset
    ):
        client.feed(database, script(group, collation), charset=charset, force=force)


def _create_views(client: Client, database: str, views: list[Program], collation: str) -> None:
    """Create views in any order that works, since one may use others."""
    remaining = views
    while remaining:
        with contextlib.suppress(ProgramError):
            _feed(client, database, remaining, collation, force=True)
        created = {name for kind, name in names(client, database) if kind == "view"}
        still = [view for view in remaining if view.name not in created]
        if len(still) == len(remaining):
            _create_over_orphans(client, database, views, {view.name for view in still}, collation)
            _feed(client, database, [view for view in still if not view.odd], collation)
            return
        remaining = still


def refuse_mixed(programs: Iterable[Program]) -> None:
    """Raise CastoreError for a program that could not be created again unchanged."""
    for program in programs:
        if program.mixed:
            raise CastoreError(f"{program.shown}: {MIXED}; nothing was changed")


def _create_over_orphans(
    client: Client, database: str, views: list[Program], lacking: set[str], collation: str
) -> None:
    """Create the views that are missing because a view that they use has a definer who does not exist.

    The server does not create a view that uses such a view. So its definer is temporarily castore's account.
    """
    orphans = [view for view in views if view.odd and view.name not in lacking]
    if not orphans:
        return
    drop_views = "".join(f"DROP VIEW IF EXISTS {quoted(orphan.name)};\n" for orphan in orphans)
    owned = [msgspec.structs.replace(orphan, text=_DEFINER.sub(rb"\1", orphan.text)) for orphan in orphans]
    client.query(drop_views, database)
    _feed(client, database, owned, collation, force=True)
    _feed(client, database, [view for view in views if view.name in lacking], collation, force=True)
    client.query(drop_views, database)
    _feed(client, database, orphans, collation)


def rehearse(client: Client, database: str, programs: Iterable[Program], own: str, collation: str) -> None:
    """Create routines, views and triggers in a staging database, to check that the server accepts them.

    own: the name of their database, which may qualify parts of views. A trigger's statement may contain that
    name anywhere, so the trigger's header is written from the catalogue. Events are left out: they would run.
    Raises CastoreError.
    """
    tried = [
        _rehearsed(program, own) for program in programs if program.kind != "event" and not program.broken
    ]
    try:
        create(client, database, tried, collation)
    except ProgramError as error:
        created = set(names(client, database))
        missing = [program for program in tried if program.identity not in created]
        first = f"{missing[0].shown} cannot be created on this server: " if missing else ""
        raise CastoreError(f"{first}{error}; nothing was changed") from None


def _rehearsed(program: Program, own: str) -> Program:
    """Return a program in a form that can be created in another database than its own."""
    if program.kind == "view":
        return msgspec.structs.replace(program, text=unqualified(program.text, own, parts=3))
    if program.kind == "trigger":
        header = (
            f"CREATE TRIGGER {quoted(program.name)} {program.header} ON {quoted(program.table)} FOR EACH ROW "
        )
        text = header.encode() + program.body
        return msgspec.structs.replace(program, text=text, charset="utf8mb4", collation="utf8mb4_bin")
    return program


def drop(client: Client, database: str) -> None:
    """Drop all programs of a database that the account sees."""
    to_drop = [(kind, name) for kind, name in names(client, database) if kind != "package body"]
    script = [f"DROP {kind.upper()} IF EXISTS {quoted(database)}.{quoted(name)};" for kind, name in to_drop]
    if any(kind == "package" for kind, _ in to_drop):
        script.insert(0, "SET SESSION sql_mode = ORACLE;")
    if script:
        client.query("\n".join(script))


def differences(expected: Iterable[Program], found: Iterable[Program]) -> tuple[list[str], list[str]]:
    """Return how programs differ from the expected ones, and which expected ones can no longer exist.

    Broken views are not compared.
    """
    remaining = {program.identity: program for program in found}
    lines, notes = [], []
    for program in expected:
        other = remaining.pop(program.identity, None)
        if program.broken or program == other:
            continue
        if program.odd and other is None:
            notes.append(
                f"{program.shown} could not be created: its definer, or what it refers to, is missing"
            )
            continue
        fields = [
            name for name in _COMPARED if other is not None and getattr(program, name) != getattr(other, name)
        ]
        if other is not None and program.odd != other.odd and fields == ["text"]:
            # For a view whose definer does not exist, the server writes columns with the database's name.
            continue
        if program.kind == "event" and _ENDING.search(program.text) and fields in ([], ["text"]):
            notes.append(
                f"{program.shown} has no time left to run in: the server has disabled or not created it"
            )
        elif other is None:
            lines.append(f"{program.shown} is missing")
        elif fields:
            lines.append(f"{program.shown} differs in {', '.join(fields)}")
    lines += [f"{program.shown} was not expected" for program in remaining.values()]
    return lines, notes


_DEFINER: Final = re.compile(rb"\A(CREATE ALGORITHM=\w+ )DEFINER=`(?:[^`]|``)*`(?:@`(?:[^`]|``)*`)? ")
_COMPARED: Final = (
    "text",
    "charset",
    "collation",
    "mode",
    "database_collation",
    "time_zone",
    "table",
    "header",
)
_ENDING: Final = re.compile(rb" ON SCHEDULE (?:AT '|EVERY [^']*(?:STARTS '[^']*' )?ENDS ')")
