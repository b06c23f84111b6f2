"""The output of MariaDB's programs: the script of a database's tables, and messages.

A stored dump has three sections. The first line is castore's preamble. The second section is what
mariadb-dump writes for tables and sequences: rows and definitions, which name no database. It ends at a line
with the dump's mark. The third section holds the *programs* of the database (views, triggers, routines,
events), which castore writes from what the server reports: a record of each in a comment, and the statements
with which a plain client creates it.

The script of tables is split where the client would split it: strings, comments and the bodies of statements
are never mistaken for statements. Rows are not parsed: mariadb-dump writes each on one line, and escapes line
ends in it.
"""

from __future__ import annotations

import itertools
import os
import re
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from castore.engines.dump_stream import Readinto

_ROWS: Final = re.compile(
    rb"(?:INSERT|REPLACE)(?: IGNORE)? +INTO +(`(?:[^`]|``)*`)(?: \((?:[^`)]|`(?:[^`]|``)*`)*\))? +VALUES(\s)"
)
_ROWS_BEGIN: Final = re.compile(rb"(?:INSERT|REPLACE) ")
_END_OF_ROWS: Final = b";\n"
_CREATE: Final = re.compile(rb"CREATE (?:TABLE|SEQUENCE) (`(?:[^`]|``)*`)")
_SETVAL: Final = re.compile(rb"DO SETVAL\((`(?:[^`]|``)*`), (-?\d+), 0\);")
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
"""More bytes than precede a row in its statement."""
_ESCAPES: Final = {b"\\t": b"\t", b"\\n": b"\n", b"\\0": b"\0", b"\\\\": b"\\"}
_CLOSING_BARE: Final = {b"'": re.compile(rb"''|'"), b'"': re.compile(rb'""|"')}
"""For scripts with NO_BACKSLASH_ESCAPES."""
_HEADER: Final = 1 << 20
"""More bytes than the statement of a row has before its first row."""


class TableScript:
    """Reads the script of tables as it passes: what it creates, and how many rows it inserts.

    database: names qualified with it lose the qualification, so that the tables can be created in another
    database. The server writes such names into a default like nextval(`app`.`numbers`).
    """

    def __init__(self, database: str = "") -> None:
        self.created: dict[str, bytes] = {}
        """The definition of each table and sequence."""
        self.rows: dict[str, int] = {}
        self.values: dict[str, int] = {}
        """The value at which each sequence continues."""
        self._script = _Script()
        self._database = database
        self._rest = b""
        self._in_rows = False
        self._table = ""
        self._creating: list[bytes] = []
        self._created_name = ""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield the next bytes of the script to run. Raises CastoreError if it names another database."""
        data = self._rest + data
        at = 0
        while at < len(data):
            if self._in_rows:
                end = data.find(_END_OF_ROWS, at)
                # A possible beginning of the end is checked again with the next piece.
                stop = end + 2 if end >= 0 else len(data) - (1 if data.endswith(b";") else 0)
                self.rows[self._table] += data.count(b"\n", at, stop)
                yield data[at:stop]
                at = stop
                if end < 0:
                    break
                self._in_rows = False
                continue
            if self._script.is_between and _ROWS_BEGIN.match(data, at):
                match = _ROWS.match(data, at)
                if match is None and len(data) - at < _HEADER and data.find(_END_OF_ROWS, at) < 0:
                    break
                self._table = _plain_name(match[1]) if match else ""
                # Without a list of columns the first row is on a line of its own.
                self.rows[self._table] = self.rows.get(self._table, 0) - (
                    match is not None and match[2] == b"\n"
                )
                self._in_rows = True
                continue
            end = data.find(b"\n", at) + 1
            if not end:
                break
            yield self._line(data[at:end])
            at = end
        self._rest = data[at:]

    def close(self) -> Iterator[bytes]:
        """Yield the rest at the end."""
        rest, self._rest = self._rest, b""
        if rest:
            yield self._line(rest)
        yield from self._creating

    def _line(self, line: bytes) -> bytes:
        if self._script.is_between:
            if match := _SETVAL.match(line):
                self.values[_plain_name(match[1])] = int(match[2])
            elif match := _CREATE.match(line):
                self._script.line(line)
                self._creating, self._created_name = [line], _plain_name(match[1])
                return self._created()
        self._script.line(line)
        if self._creating:
            self._creating.append(line)
            return self._created()
        return line

    def _created(self) -> bytes:
        """Return a definition once it is complete."""
        if not self._script.is_between:
            return b""
        text, self._creating = b"".join(self._creating), []
        self.created[self._created_name] = text.rstrip(b";\n")
        return unqualified(text, self._database) if self._database else text


def _plain_name(quoted: bytes) -> str:
    return quoted[1:-1].replace(b"``", b"`").decode(errors="surrogateescape")


def unqualified(text: bytes, database: str, parts: int = 2) -> bytes:
    """Return a definition, as SHOW CREATE writes it, without one database's name before other names.

    parts: the least number of parts of a name that begins with the database. In a view, a name of two parts
    may begin with a table of the same name.
    """
    name = re.escape(b"`" + os.fsencode(database).replace(b"`", b"``") + b"`")
    more = rb"(?:\.`(?:[^`]|``)*`)"
    tokens = rb"('(?:\\.|''|[^'\\])*')|%b\.((?:`(?:[^`]|``)*`)%b{%d,})|(`(?:[^`]|``)*`%b*)"
    tokens %= (name, more, parts - 2, more)
    return re.sub(tokens, lambda match: match[1] or match[2] or match[3], text, flags=re.DOTALL)


def normal(text: bytes, database: str) -> bytes:
    """Return a definition in the form in which definitions are compared."""
    # The counter changes while a dump is taken, and when rows are loaded.
    return re.sub(rb" AUTO_INCREMENT=\d+", b"", unqualified(text, database))


class Sections:
    """A stored dump, read once: the script of its tables first, then the lines after the mark."""

    def __init__(self, chunks: Iterable[bytes | memoryview], mark: str) -> None:
        self._chunks = iter(chunks)
        self._mark = f"\n-- castore {mark}: ".encode()
        self._tail: list[bytes] | None = None

    def tables(self) -> Iterator[bytes]:
        """Yield the script of the tables. Raises CastoreError if the dump ends before its mark."""
        rest = b""
        for chunk in self._chunks:
            rest += bytes(chunk)
            end = rest.find(self._mark)
            if end >= 0:
                yield rest[: end + 1]
                self._tail = [rest[end:]]
                return
            keep = len(self._mark) - 1
            yield rest[:-keep]
            rest = rest[-keep:]
        raise CastoreError(
            "the dump is incomplete: it ends before the views, triggers, routines and events; restore "
            "another generation"
        )

    def records(self) -> Iterator[bytes]:
        """Yield the records after the mark, in JSON; call it after reading `tables` to its end."""
        assert self._tail is not None
        tail = b"".join([*self._tail, *map(bytes, self._chunks)])
        # The first line is the heading.
        for match in itertools.islice(re.finditer(re.escape(self._mark) + rb"([^\n]*)(?=\n)", tail), 1, None):
            yield match[1]


def record_line(mark: str, record: bytes) -> bytes:
    """Return the comment that contains a record."""
    return f"-- castore {mark}: ".encode() + record + b"\n"


def unescaped(value: bytes) -> bytes:
    """Return a value that the client has escaped in its batch mode."""
    return re.sub(rb"\\[tn0\\]", lambda match: _ESCAPES[match[0]], value) if b"\\" in value else value


def plain(line: bytes) -> bytes | None:
    """Return the part of a client's message that may be shown: what failed and why, but no value of a row."""
    text = line.decode(errors="backslashreplace")
    if not re.match(r"ERROR\b|WARNING\b|\S*(?:mariadb|mysql)\S*: ", text):
        return None
    text = re.sub(r"\b(entry|value:?|near|range in|text:) '.*'(?= (?:for|at|in|as)\b)", r"\1 '...'", text)
    return re.sub(r"\b(entry|value:?|near|range in|text:) '(?!\.\.\.').*", r"\1 '...'", text).encode()


class Observed:
    """Reads a dump, and parses it as it passes.

    It reports rows that the server would not accept in one packet.
    """

    def __init__(
        self, readinto: Readinto, most: int, passed: Callable[[Observed], None] = lambda _observed: None
    ) -> None:
        """most: bytes that the server accepts at once. passed: is called as the dump proceeds."""
        self._passed = passed
        self.warnings: list[tuple[bytes, str]] = []
        self.script = TableScript()
        self.beginning = b""
        self._readinto = readinto
        self._most = most
        self._line = self._longest = 0

    def __call__(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes were written, 0 at the end."""
        count = self._readinto(view)
        data = bytes(view[:count])
        self.beginning += data[: 512 - len(self.beginning)]
        for _ in self.script.feed(data):
            pass
        self._passed(self)
        first = data.find(b"\n")
        if first < 0:
            self._line += count
        else:
            # Complete lines in a buffer are shorter than the buffer, and packets are larger than buffers.
            self._longest = max(self._longest, self._line + first)
            self._line = count - data.rfind(b"\n") - 1
        if not count and self._longest + _HEAD > self._most:
            reason = (
                f"a row is {self._longest} bytes in the dump, the server accepts {self._most}: it could not "
                "be loaded again; raise max_allowed_packet"
            )
            self.warnings.append((b".", reason))
            self._longest = 0  # it is reported once
        return count

    @property
    def rows(self) -> dict[str, int] | None:
        """How many rows each table has in the dump; None: the program does not write each on its own line."""
        match = re.search(
            rb"Distrib (\d+)\.(\d+)\.\d+-MariaDB|MariaDB dump [\d.]+-(\d+)\.(\d+)", self.beginning
        )
        if match is None or tuple(int(group) for group in match.groups() if group) < (10, 6):
            return None
        return self.script.rows


class _Script:
    """Follows where in a script the client is."""

    def __init__(self) -> None:
        self._delimiter = b";"
        self._open = b""
        """The opening of a string or comment that has begun."""
        self._pending = False
        """Whether a statement has begun."""
        self._bare = False
        """Whether a backslash has no special meaning."""

    @property
    def is_between(self) -> bool:
        """Whether a new statement begins here."""
        return not (self._pending or self._open)

    def line(self, line: bytes) -> None:
        """Read a complete line. Raises CastoreError if it names another database."""
        if self.is_between:
            text = line.strip()
            if match := _DELIMITER.match(text):
                self._delimiter = match[1]
                return
            if _ELSEWHERE.match(text):
                raise CastoreError(
                    "the dump names the database that it goes into, as with the option --databases: it "
                    "cannot be loaded next to the live one"
                )
            if _MODE.match(text):
                self._bare = b"NO_BACKSLASH_ESCAPES" in text.upper()
        self._pass(line)

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
            plain_text = line[at : token.start() if token else len(line)]
            self._pending = self._pending or bool(plain_text.strip())
            if token is None:
                return
            if token[0][:1] == b"#" or token[0][:2] == b"--":
                return
            self._open = token[0]
            self._pending = self._pending or self._open != b"/*"
            at = token.end()

    def _close(self, line: bytes, at: int) -> int:
        """Find the end of a string or comment; return where to continue."""
        closing = _CLOSING[self._open]
        if self._bare and self._open in _CLOSING_BARE:
            closing = _CLOSING_BARE[self._open]
        while match := closing.search(line, at):
            at = match.end()
            if match[0] == self._open or match[0] == b"*/":
                self._open = b""
                return at
        return len(line)
