"""LDIF, the text form of LDAP entries, and the messages of the programs that read it."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Final

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BEGINNING: Final = 4096
"""Bytes of a line that are checked: more than the name of an attribute with its options."""
_READS_FILE: Final = re.compile(rb"[^:]*:[ \t\r]*<|include:", re.IGNORECASE)


def without_files(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield LDIF line by line. Raises CastoreError for a line that makes slapadd read another file.

    Such lines are `attribute:< URL` and `include: URL`; both may be folded. slapcat writes neither.
    """
    pieces: list[bytes] = []  # joined once: a line may be long
    began = b""
    for chunk in itertools.chain(chunks, [None]):
        pieces.append(b"" if chunk is None else bytes(chunk))
        if chunk is not None and b"\n" not in pieces[-1]:
            continue
        lines = b"".join(pieces).split(b"\n")
        # What follows the last line end is checked with the next piece.
        rest = lines.pop()
        pieces = [rest]
        if chunk is None and rest:
            lines.append(rest)
        for line in lines:
            folded = line.startswith(b" ")
            began = (began + line[1:] if folded else line)[:_BEGINNING]
            # No attribute name is as long as the part that is checked.
            odd = b"\0" in line or (folded and len(began) == _BEGINNING and b":" not in began)
            if odd or _READS_FILE.match(began) or _READS_FILE.match(line):
                shown = line[:40].decode(errors="backslashreplace")
                raise CastoreError(
                    f"the LDIF has the line {shown!r}, which makes slapadd read another file, or stop "
                    "reading: such a dump is not loaded; restore another generation"
                )
        if lines:
            yield b"\n".join(lines) + (b"" if chunk is None else b"\n")


def unfolded(ldif: bytes) -> str:
    """Return LDIF whose long lines are not folded."""
    return ldif.decode().replace("\n ", "")


def without_values(line: bytes) -> bytes:
    """Return what may be shown of slapadd's messages: what failed and in which line, but not whose entry."""
    return re.sub(rb'"[^"]*"?', b'"..."', line)
