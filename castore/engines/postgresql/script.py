r"""Keep psql from running commands in a dump: backslash commands, which can start programs.

A psql with `\restrict` refuses them itself, until it reads a key that the dump cannot know. For an older
psql, `without_commands` reads the script as psql's scanner does, and refuses each command outside COPY data.
If the two could disagree, it refuses the script: it never passes on what psql might run.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any, Final

from castore.errors import CastoreError
from castore.process.runners import output_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from castore.engines.dump_stream import Bytes

_HEAD_BYTES: Final = 1 << 25
"""More bytes than the comments before the first statement of a dump."""
_TAIL_BYTES: Final = 4096
_PAIR: Final = re.compile(rb"\\restrict ([A-Za-z0-9]{1,255})[ \r]*\n")
_COMMENT_OR_BLANK: Final = re.compile(rb"(?:--[^\n]*|[ \t\r]*)\n")
_TOKEN: Final = re.compile(
    rb"--[^\r\n]*|/\*|[bBeExX]'|[uU]&'|'|\"|\$[0-9]+[A-Za-z_\x80-\xff]?|[0-9][0-9A-Za-z_.]*'|\$(?:[A-Za-z_\x80-\xff][A-Za-z0-9_\x80-\xff]*)?\$"
    rb"|[A-Za-z_\x80-\xff][A-Za-z0-9_$\x80-\xff]*|[();\\]|::|:['\"{A-Z_]"
)
_OPENS: Final = re.compile(rb"(?:[bBeExX]|[uU]&)?'|\"|/\*|\$.*\$", re.DOTALL)
_ODD: Final = re.compile(rb":[^:]|\$[0-9]+[^0-9]|[0-9].*'", re.DOTALL)
_COMMENT_EDGE: Final = re.compile(rb"/\*|\*/")
_CLOSING: Final = {b"'": re.compile(rb"'"), b'"': re.compile(rb'"')}
_CLOSING_ESCAPED: Final = re.compile(rb"[\x80-\xff]\\'|\\.|''|'", re.DOTALL)
"""The first alternative: in some encodings the backslash belongs to the preceding letter."""
_COPY: Final = re.compile(r"copy( [^ ();]+){1,3}( \([^()]*\))? from stdin")
_COPY_END: Final = re.compile(rb"(?m)^\\\.\r?\n")
_KEPT_TOKENS: Final = 4096
_OWN_COMMANDS: Final = re.compile(
    rb"""\\(?:(?:un)?restrict [A-Za-z0-9]{1,255}"""
    rb"""|connect (?:"[A-Za-z0-9_.]+"|[a-z0-9_.]+"""
    rb"""|-reuse-previous=on "dbname='(?:[^'"`\\\r\n]|"")*'"))[ \r]*\n"""
)
r"""Commands that pg_dump and pg_dumpall write outside COPY data.

\connect with anything but the name of a database could lead to another server, or make libpq load a library.
"""


def guarded(
    psql: str, chunks: Iterable[Bytes], process: Mapping[str, Any], *, stops: bool = True
) -> Iterator[Bytes]:
    """Yield a dump so that this psql runs no command in it. Raises CastoreError for a dump that it refuses.

    process: how psql is run. stops: whether psql ends at the first error.
    """
    if b"\\restrict " in output_of([psql, "--help=commands"], **process):
        # A new key each time: no dump can contain it.
        yield b"\\restrict %s\n" % os.urandom(24).hex().encode()
        yield from _without_zero_bytes(without_pair(chunks))
    else:
        lexers = (_Lexer(copy=stops), _Lexer(copy=stops, escapes=True))
        yield from _checked(without_pair(chunks), lexers)


def without_commands(chunks: Iterable[Bytes]) -> Iterator[bytes]:
    """Yield a script for any psql; refuse commands that pg_dump does not write."""
    return _checked(chunks, (_Lexer(allowed=_OWN_COMMANDS),))


def without_pair(chunks: Iterable[Bytes]) -> Iterator[bytes]:
    r"""Yield a dump without the `\restrict KEY` and `\unrestrict KEY` that pg_dump wrote around it."""
    source = iter(chunks)
    head, word, at = b"", b"", 0
    for chunk in source:
        head += bytes(chunk)
        while match := _COMMENT_OR_BLANK.match(head, at):
            at = match.end()
        if b"\n" in head[at:] or len(head) > _HEAD_BYTES:
            break
    if pair := _PAIR.match(head, at):
        word = pair[1]
        head = head[:at] + head[pair.end() :]
    tail = head
    for chunk in source:
        tail += bytes(chunk)
        if len(tail) > 2 * _TAIL_BYTES:
            yield tail[:-_TAIL_BYTES]
            tail = tail[-_TAIL_BYTES:]
    if word and (end := re.search(rb"\n\\unrestrict " + word + rb"\s*\Z", tail)):
        tail = tail[: end.start() + 1]
    yield tail


def _without_zero_bytes(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Yield a script; refuse a zero byte: psql drops the rest of its line, and reports no error."""
    for chunk in chunks:
        if b"\0" in chunk:
            raise CastoreError(
                "the dump has a zero byte, which pg_dump never writes: psql would drop the rest of that "
                "line. Nothing after it was loaded; castore cat prints the dump"
            )
        yield chunk


def _checked(chunks: Iterable[Bytes], lexers: tuple[_Lexer, ...]) -> Iterator[bytes]:
    """Yield the lines of a script once every lexer has accepted them."""
    pieces: list[bytes] = []  # joined once: a row of COPY data may be as long as a gigabyte
    for chunk in _without_zero_bytes(bytes(piece) for piece in chunks):
        end = chunk.rfind(b"\n") + 1
        if end:
            lines = b"".join([*pieces, chunk[:end]])
            for lexer in lexers:
                lexer.accept(lines)
            yield lines
            pieces.clear()
        pieces.append(chunk[end:])
    rest = b"".join(pieces)
    for lexer in lexers:
        lexer.accept(rest + b"\n")
    yield rest


class _Lexer:
    """Reads complete lines as psql's scanner does. escapes: as if standard_conforming_strings were off."""

    def __init__(
        self, *, copy: bool = True, escapes: bool = False, allowed: re.Pattern[bytes] | None = None
    ) -> None:
        """copy: whether psql ends when the server refuses a COPY, so that data cannot become commands."""
        self._copy = copy
        self._escapes = escapes
        self._allowed = allowed
        self._open = b""
        """What has been opened: a quote, `/*`, a dollar quote, or b"copy"."""
        self._escaped = False
        self._depth = 0
        self._line = 1
        self._begin()

    def _begin(self) -> None:
        self._tokens: list[str] = []
        self._words: list[str] = []
        """The first tokens that are unquoted words."""
        self._parentheses = 0
        self._blocks = 0

    def accept(self, data: bytes) -> None:
        """Read lines. Raises CastoreError at a command."""
        at = 0
        while at < len(data):
            at = self._pass(data, at) if self._open else self._scan(data, at)
        self._line += data.count(b"\n")

    def _refusal(self, what: str) -> CastoreError:
        return CastoreError(
            f"the dump has {what}, in the lines from {self._line} on; castore lets no dump run commands, and "
            "loaded nothing after it. If the dump is known to be harmless: castore restore it and load it "
            "with psql; a psql from August 2025 or later (with \\restrict) decides this exactly"
        )

    def _pass(self, data: bytes, at: int) -> int:
        """Find the end of what is open; return where to continue."""
        opened = self._open
        if opened == b"copy":
            end = _COPY_END.search(data, at)
        elif opened == b"/*":
            end = _COMMENT_EDGE.search(data, at)
            if end is not None:
                self._depth += 1 if end[0] == b"/*" else -1
                self._open = b"/*" if self._depth else b""
                return end.end()
        elif opened in _CLOSING:
            pattern = _CLOSING_ESCAPED if self._escaped else _CLOSING[opened]
            end = pattern.search(data, at)
            if end is not None and end[0] != opened:
                if len(end[0]) == 3:
                    raise self._refusal("a string whose end depends on the encoding")
                return end.end()
        else:
            found = data.find(opened, at)
            if found >= 0:
                self._open = b""
                return found + len(opened)
            return len(data)
        if end is None:
            return len(data)
        self._open = b""
        return end.end()

    def _scan(self, data: bytes, at: int) -> int:
        """Read tokens until something opens; return where to continue."""
        while token := _TOKEN.search(data, at):
            text, at = token[0], token.end()
            first = text[:1]
            if first == b"\\":
                match = self._allowed.match(data, token.start()) if self._allowed is not None else None
                if match is None:
                    line = data[token.start() : token.start() + 40].split(b"\n")[0]
                    raise self._refusal(f"the psql command {line.decode(errors='backslashreplace')!r}")
                at = match.end()
            elif text == b";":
                if self._end_statement(data, at):
                    return data.index(b"\n", at) + 1
            elif _ODD.fullmatch(text):
                raise self._refusal("a psql variable, or a number that runs into a name")
            elif _OPENS.fullmatch(text):
                self._depth = 1
                self._escaped = first in b"eE" or (first == b"'" and self._escapes)
                self._open = text[-1:] if text[-1:] in _CLOSING else text
                if text != b"/*":
                    self._note("?")
                return at
            elif text[:2] != b"--":
                self._count(text.decode("latin-1").lower())
        return len(data)

    def _note(self, word: str) -> None:
        if len(self._tokens) < _KEPT_TOKENS:
            self._tokens.append(word)

    def _count(self, word: str) -> None:
        """Count parentheses and blocks: a semicolon in them does not end a statement."""
        self._note(word)
        if word == "(":
            self._parentheses += 1
        elif word == ")":
            self._parentheses = max(0, self._parentheses - 1)
        elif word[0] not in "$:":
            self._words += [word] if len(self._words) < 4 else []
            if self._blocks and word == "copy":
                raise self._refusal("COPY in a routine")
            if not self._makes_routine() or self._parentheses:
                return
            if word == "begin" or (word == "case" and self._blocks):
                self._blocks += 1
            elif word == "end":
                self._blocks = max(0, self._blocks - 1)

    def _makes_routine(self) -> bool:
        words = self._words
        if words[1:3] == ["or", "replace"]:
            words = words[:1] + words[3:]
        return words[:2] in (["create", "function"], ["create", "procedure"])

    def _end_statement(self, data: bytes, at: int) -> bool:
        """Process a semicolon; return whether the lines after this one are data."""
        if self._parentheses or self._blocks:
            return False
        tokens = self._tokens
        self._begin()
        if tokens[:1] != ["copy"]:
            return False
        blank = not data[at : data.index(b"\n", at)].strip()
        if self._copy and blank and _COPY.fullmatch(" ".join(tokens)):
            self._open = b"copy"
            return True
        raise self._refusal("a COPY that pg_dump does not write")
