"""What MariaDB's programs write: scripts, fed into another database than they were taken from, and messages.

Beside rows and definitions, which name no database, it writes ALTER DATABASE `NAME` around a trigger, routine
or event that is older than its database's present character set: fed as it stands, that changes the live
database. Such a statement is found where the client would find it, never in a string, a comment or the body
of a routine, and made one of the database that the script is fed to.

Rows pass unread: mariadb-dump writes each on one line, with ends of lines in it escaped.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.services.engines.contract import Readinto

_ROWS: Final = re.compile(rb"(?:INSERT|REPLACE) ")
_END_OF_ROWS: Final = b";\n"
_ALTER: Final = re.compile(rb"ALTER DATABASE `(?:[^`]|``)*`( CHARACTER SET \w+ COLLATE \w+ *)")
_DELIMITER: Final = re.compile(rb"DELIMITER +(\S+)", re.IGNORECASE)
_ELSEWHERE: Final = re.compile(rb"(?:USE|CREATE DATABASE(?: /\*!\d+ IF NOT EXISTS\*/)?) +`", re.IGNORECASE)
_MODE: Final = re.compile(rb"(?:/\*!\d+ )?SET sql_mode +=|.*\bSQL_MODE='", re.IGNORECASE)
_OPENING: Final = re.compile(rb"['\"`#]|--(?=\s|$)|/\*(?!M?!)")
_CLOSING: Final = {
    b"'": re.compile(rb"\\.|''|'", re.DOTALL),
    b'"': re.compile(rb'\\.|""|"', re.DOTALL),
    b"`": re.compile(rb"``|`"),
    b"/*": re.compile(rb"\*/"),
}
_HEAD: Final = 1024
"""More than stands before a row in its statement."""
_ESCAPES: Final = {"\\t": "\t", "\\n": "\n", "\\0": "\0", "\\\\": "\\"}
_CLOSING_BARE: Final = {b"'": re.compile(rb"''|'"), b'"': re.compile(rb'""|"')}
"""Where NO_BACKSLASH_ESCAPES is set."""


def led_into(database: str, chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield a script with `database` as the one that it alters. Raises CastoreError if it leaves it.

    It is held a line at a time, and rows not even that.
    """
    script = _Script(b"`" + database.encode().replace(b"`", b"``") + b"`")
    rest = b""
    for chunk in chunks:
        data = rest + bytes(chunk)
        at = 0
        while at < len(data):
            if script.in_rows:
                end = data.find(_END_OF_ROWS, at)
                if end < 0:
                    # What may be the beginning of the end is looked at again with the next piece.
                    keep = len(data) - (1 if data.endswith(b";") else 0)
                    yield data[at:keep]
                    at = keep
                    break
                yield data[at : end + 2]
                at = end + 2
                script.in_rows = False
                continue
            if script.begins_rows(data[at : at + 64]):
                script.in_rows = True
                continue
            end = data.find(b"\n", at) + 1
            if not end:
                break
            yield script.line(data[at:end])
            at = end
        rest = data[at:]
    if rest:
        yield script.line(rest)


def unescaped(value: str) -> str:
    """Return what the client has written in its batch mode."""
    return re.sub(r"\\[tn0\\]", lambda found: _ESCAPES[found[0]], value) if "\\" in value else value


def unqualified(text: str, name: str) -> str:
    """Return the text of a view without the name of its database, quoted, before columns."""
    column = f"{re.escape(name)}\\.(?=`(?:[^`]|``)*`\\.`)"
    kept = "('(?:\\\\.|''|[^'\\\\])*'|`(?:[^`]|``)*`(?:\\.`(?:[^`]|``)*`)*)"
    return re.sub(f"{column}|{kept}", lambda found: found[1] or "", text, flags=re.DOTALL)


def plain(line: bytes) -> bytes | None:
    """Return what may be told of what the client says: what failed, and why, but no value of a row."""
    text = line.decode(errors="backslashreplace")
    if not re.match(r"ERROR\b|WARNING\b|\S*(?:mariadb|mysql)\S*: ", text):
        return None
    text = re.sub(r"\b(entry|value:?|near|range in|text:) '.*'(?= (?:for|at|in|as)\b)", r"\1 '...'", text)
    return re.sub(r"\b(entry|value:?|near|range in|text:) '(?!\.\.\.').*", r"\1 '...'", text).encode()


class Measured:
    """What reads a dump and looks for rows that the server would not take back in one packet."""

    def __init__(self, readinto: Readinto, most: int) -> None:
        self.warnings: list[tuple[bytes, str]] = []
        self._readinto = readinto
        self._most = most
        self._line = self._longest = 0

    def __call__(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes that were, 0 at the end."""
        count = self._readinto(view)
        data = bytes(view[:count])
        first = data.find(b"\n")
        if first < 0:
            self._line += count
        else:
            # Lines that are whole in a buffer are no longer than it, and packets larger than buffers.
            self._longest = max(self._longest, self._line + first)
            self._line = count - data.rfind(b"\n") - 1
        if not count and self._longest + _HEAD > self._most:
            reason = (
                f"a row is {self._longest} bytes in the dump, the server takes {self._most}: it could not "
                "be loaded again; raise max_allowed_packet"
            )
            self.warnings.append((b".", reason))
            self._longest = 0  # it is told once
        return count


class _Script:
    """Where in a script one is, as the client sees it."""

    def __init__(self, name: bytes) -> None:
        self.in_rows = False
        self._name = name
        self._delimiter = b";"
        self._open = b""
        """The string or comment that has begun: its opening."""
        self._pending = False
        """Whether a statement has begun."""
        self._bare = False
        """Whether a backslash is nothing special."""

    def begins_rows(self, beginning: bytes) -> bool:
        """Whether a line begins a statement that brings rows."""
        if self._pending or self._open or self._delimiter != b";":
            return False
        return _ROWS.match(beginning) is not None

    def line(self, line: bytes) -> bytes:
        """Return a whole line, changed if it alters a database."""
        if not self._pending and not self._open:
            text = line.strip()
            if found := _DELIMITER.match(text):
                self._delimiter = found[1]
                return line
            if found := _ALTER.match(text):
                if text[found.end() :] == self._delimiter:
                    return b"ALTER DATABASE " + self._name + found[1] + self._delimiter + b"\n"
            elif _ELSEWHERE.match(text):
                raise CastoreError(
                    "the dump says itself which database it goes into, as with the option --databases: it "
                    "cannot be loaded beside the live one"
                )
            elif _MODE.match(text):
                self._bare = b"NO_BACKSLASH_ESCAPES" in text.upper()
        self._pass(line)
        return line

    def _pass(self, line: bytes) -> None:
        at = 0
        while at < len(line):
            if self._open:
                at = self._close(line, at)
                continue
            token = _OPENING.search(line, at)
            end = line.find(self._delimiter, at, token.start() if token else len(line))
            if end >= 0:
                self._pending = False
                at = end + len(self._delimiter)
                continue
            plain = line[at : token.start() if token else len(line)]
            self._pending = self._pending or bool(plain.strip())
            if token is None:
                return
            if token[0][:1] == b"#" or token[0][:2] == b"--":
                return
            self._open = token[0]
            self._pending = self._pending or self._open != b"/*"
            at = token.end()

    def _close(self, line: bytes, at: int) -> int:
        """Look for the end of a string or comment; return where to go on."""
        closing = _CLOSING[self._open]
        if self._bare and self._open in _CLOSING_BARE:
            closing = _CLOSING_BARE[self._open]
        while found := closing.search(line, at):
            at = found.end()
            if found[0] == self._open or found[0] == b"*/":
                self._open = b""
                return at
        return len(line)
