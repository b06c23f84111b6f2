"""The text of routines, events and triggers in a form that a client can execute.

The server shows the text in bytes of the character set of the client that created it. Some parts the server
writes itself, in UTF-8: a comment, all of an event before its body, and the table of a trigger after it was
renamed. It escapes a comment with backslashes in every sql_mode. A client that executed this text would
create another comment, an event with another name, or no trigger.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.mariadb.client import Client
    from castore.engines.mariadb.programs import Program

_STRING: Final = rb"'(?:[^'\\]|\\.|'')*'"
_NAME: Final = rb'(?:`(?:[^`]|``)*`|"(?:[^"]|"")*")'
_EVENT: Final = re.compile(
    rb"CREATE DEFINER=%b(?:@%b)? EVENT %b "
    rb"ON SCHEDULE (?:AT %b|EVERY (?:%b|[0-9]+) \w+(?: STARTS %b)?(?: ENDS %b)?) "
    rb"ON COMPLETION (?:NOT )?PRESERVE (?:ENABLE|DISABLE(?: ON SLAVE)?)(?: COMMENT (%b))? DO "
    % (*[_NAME] * 3, *[_STRING] * 5),
    re.DOTALL,
)
_SAME: Final = frozenset({"utf8mb4", "utf8mb3", "utf8", "binary"})
"""Character sets in which UTF-8 is read unchanged."""
_LITERAL: Final = "NO_BACKSLASH_ESCAPES"
_ESCAPES: Final = {b"\\": rb"\\", b"\0": rb"\0", b"\n": rb"\n", b"\r": rb"\r", b"'": b"''"}
_ESCAPED: Final = {one: char for char, one in _ESCAPES.items()}


class _Part(NamedTuple):
    """A part of a text that the server has written itself."""

    start: int
    end: int
    wanted: bytes
    """In UTF-8, in the form that the program's sql_mode needs."""


def executable(client: Client, database: str, programs: Iterable[Program]) -> list[Program]:
    """Return programs with the text of each in its own character set and sql_mode.

    `mixed` is set if the character set lacks a character: the program cannot be created again.
    """
    programs = list(programs)
    kinds = {program.kind for program in programs if _is_doubtful(program)}
    comments = _comments(client, database) if kinds - {"event", "trigger"} else {}
    parts = {
        at: part
        for at, one in enumerate(programs)
        if _is_doubtful(one) and (part := _part(one, comments.get(one.identity, b"")))
    }
    script = []
    for at, part in parts.items():
        text = f"_utf8mb4 0x{part.wanted.hex()}"
        written = text if programs[at].charset in _SAME else f"CONVERT({text} USING {programs[at].charset})"
        script.append(f"SELECT {at}, HEX({written}), CONVERT({written} USING utf8mb4) = BINARY {text}")
    for number, digits, is_same in client.ask(";\n".join(script)) if script else ():
        at = int(number)
        source, part = programs[at].text, parts[at]
        if is_same == "1":
            source = source[: part.start] + bytes.fromhex(digits) + source[part.end :]
        programs[at] = msgspec.structs.replace(programs[at], text=source, mixed=is_same != "1")
    return programs


def _is_doubtful(program: Program) -> bool:
    """Whether the server may have written a part of a text in a form that cannot be executed."""
    is_foreign = program.charset not in _SAME and not program.text.isascii()
    if program.kind in {"view", "trigger"}:
        return is_foreign and not program.table.isascii()
    return is_foreign or (_LITERAL in program.mode and b"\\" in program.text)


def _comments(client: Client, database: str) -> dict[tuple[str, str], bytes]:
    where = f"WHERE ROUTINE_SCHEMA = 0x{os.fsencode(database).hex()} AND ROUTINE_COMMENT <> ''"
    columns = "LOWER(ROUTINE_TYPE), ROUTINE_NAME, ROUTINE_COMMENT"
    rows = client.ask(f"SELECT {columns} FROM information_schema.ROUTINES {where}")
    return {(kind, name): os.fsencode(comment) for kind, name, comment in rows}


def _part(program: Program, comment: bytes) -> _Part | None:
    """Return the part that the server has written; None if that does not matter. comment: of a routine."""
    text = program.text
    if program.kind == "trigger":
        # RENAME TABLE writes the new name into the text of a trigger in UTF-8.
        for quote in ("`", '"'):
            name = f"{quote}{program.table.replace(quote, 2 * quote)}{quote}".encode()
            if (start := text.find(name)) >= 0:
                return _Part(start, start + len(name), name)
        return None
    if program.kind == "event":
        match = _EVENT.match(text)
        if match is None:
            return None
        at = slice(*match.span(1)) if match[1] else slice(0, 0)
        return _Part(
            0, match.end(), text[: at.start] + _literal(program, text[at]) + text[at.stop : match.end()]
        )
    shown = b"'%b'" % re.sub(rb"[\\\0\n\r']", lambda char: _ESCAPES[char[0]], comment)
    start = text.find(b"    COMMENT %b\n" % shown) + len(b"    COMMENT ")
    if not comment or start < len(b"    COMMENT "):
        return None
    return _Part(start, start + len(shown), _literal(program, shown))


def _literal(program: Program, string: bytes) -> bytes:
    """Return a string that the server has written, in the form that the program's sql_mode needs."""
    if _LITERAL not in program.mode:
        return string
    return re.sub(rb"\\.", lambda escape: _ESCAPED.get(escape[0], escape[0][1:]), string, flags=re.DOTALL)
