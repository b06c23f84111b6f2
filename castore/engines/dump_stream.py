"""A dump while it is written: a stream of bytes that is read once, with warnings, preamble and trailer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

from castore.errors import CastoreError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.fs.stamp import Stamp

    Bytes = bytes | memoryview
    Readinto = Callable[[memoryview], int]
    """Fills the beginning of a buffer; returns how many bytes were written, 0 at the end."""

_PREAMBLE: Final = b"-- castore: "
_MAX_PREAMBLE: Final = 1 << 24
"""Bytes of the longest preamble."""


class DumpStream:
    """A dump that is read once, from its beginning to its end.

    warnings: (name, reason) of parts of the state that are not in the dump, or that could not be restored.
    They are complete once the dump has been read to its end.
    """

    def __init__(self, readinto: Readinto) -> None:
        self.warnings: list[tuple[bytes, str]] = []
        self.stamp: Stamp | None = None
        """That of the regular file that this is, byte for byte.

        None: it is no file, or the file may change and keep its stamp.
        """
        self._readinto = readinto

    def readinto(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes were written, 0 at the end.

        Raises ProgramError if the dump failed or is incomplete.
        """
        return self._readinto(view)


class DumpWithPreamble(DumpStream):
    """A dump that begins with a line of castore's own, which the restoring program ignores."""

    def __init__(self, readinto: Readinto, preamble: dict[str, Any]) -> None:
        # In ASCII, so that the line contains no line end.
        text = json.dumps(preamble, sort_keys=True)
        super().__init__(preceded(_PREAMBLE + text.encode("ascii") + b"\n", readinto))


def read_preamble(chunks: Iterable[Bytes]) -> dict[str, Any]:
    """Return what the first line of a dump records; {} if a castore without this line took the dump.

    Raises CastoreError if the line is not valid.
    """
    line = b""
    for chunk in chunks:
        line += bytes(chunk[: _MAX_PREAMBLE - len(line)])
        if b"\n" in line or len(line) == _MAX_PREAMBLE or not line.startswith(_PREAMBLE[: len(line)]):
            break
    text = line.partition(b"\n")[0]
    if not text.startswith(_PREAMBLE):
        return {}
    try:
        preamble = json.loads(text[len(_PREAMBLE) :])
        # JSON may hold lone surrogates, which cannot be passed to a program.
        json.dumps(preamble, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        preamble = None
    if not isinstance(preamble, dict):
        raise CastoreError(
            "the first line of the dump, which castore wrote, is damaged: restore another generation"
        )
    return preamble


def require_trailer(readinto: Readinto, promise: bytes, what: str, within: int = 4096) -> Readinto:
    """Return `readinto` with a check: at the end it raises ProgramError unless the dump has its trailer.

    promise: bytes that occur in the last `within` bytes of a complete dump.
    """
    tail = b""

    def read(view: memoryview) -> int:
        nonlocal tail
        count = readinto(view)
        if count:
            tail = (tail + bytes(view[max(0, count - within) : count]))[-within:]
        elif promise not in tail:
            raise ProgramError(f"{what} exited with 0, but its dump is incomplete: its end is missing")
        return count

    return read


def preceded(first: bytes | memoryview, readinto: Readinto) -> Readinto:
    """Return a function that reads the bytes `first` again, then those that `readinto` reads."""
    rest = memoryview(first)

    def read(view: memoryview) -> int:
        nonlocal rest
        if rest:
            count = min(len(rest), len(view))
            view[:count] = rest[:count]
            rest = rest[count:]
            return count
        return readinto(view)

    return read
