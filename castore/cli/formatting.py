"""Text for people: tables, sizes, times, names. Pure functions.

Names come from stored trees, so an attacker may have chosen them: terminal control sequences are escaped.
"""

from __future__ import annotations

import stat
import sys
import time
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from castore.model.counting import count as count  # noqa: PLC0414 - for commands
from castore.model.odd_text import message as readable
from castore.model.odd_text import printable as printable  # noqa: PLC0414 - for commands
from castore.model.odd_text import printable_char

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
_NS: Final = 1_000_000_000


def table(
    rows: Iterable[Sequence[str]],
    *,
    header: Sequence[str] | None = None,
    right: Collection[int] = (),
) -> str:
    """Return rows of cells as lines, in columns; columns with positions in `right` are right-aligned."""
    lines = [list(row) for row in ([header, *rows] if header else rows)]
    columns = max(map(len, lines), default=0)
    for line in lines:
        line.extend([""] * (columns - len(line)))
    padded = [
        _column(cells, right=position in right)
        for position, cells in enumerate(zip(*lines, strict=True))
    ]
    return "\n".join("  ".join(line).rstrip() for line in zip(*padded, strict=True))


def terminal_width() -> int | None:
    """Return the width of the terminal in columns; None if standard output is not a terminal."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def _column(cells: Sequence[str], *, right: bool) -> list[str]:
    """Return the cells of one column, padded to the width of the widest."""
    if all(map(str.isascii, cells)):  # for tables of thousands of lines
        width = max(map(len, cells))
        return [cell.rjust(width) if right else cell.ljust(width) for cell in cells]
    width = max(map(_width, cells))
    spaces = (" " * (width - _width(cell)) for cell in cells)
    pairs = zip(cells, spaces, strict=True)
    return [space + cell if right else cell + space for cell, space in pairs]


def _width(text: str) -> int:
    """Return how many columns of a terminal `text` occupies."""
    if text.isascii():
        return len(text)
    import unicodedata

    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    marks = sum(unicodedata.combining(char) != 0 for char in text)
    return len(text) + wide - marks


def size(count: int) -> str:
    """Return a size in binary units: `17 B`, `1.2 MiB`, `120 MiB`."""
    if 0 <= count < 1000:
        return f"{count} B"
    if count < 0:
        return "-" + size(-count)
    unit = min((count.bit_length() - 1) // 10, len(_UNITS) - 1)
    value = count / (1 << 10 * unit)
    # 999.5 and more would be rounded to four digits.
    if value >= 999.5 and unit < len(_UNITS) - 1:
        unit += 1
        value /= 1024
    return f"{value:.1f} {_UNITS[unit]}" if value < 9.95 and unit else f"{value:.0f} {_UNITS[unit]}"


def local_time(ns: int) -> str:
    """Return a time, in ns since 1970, in local time: `2026-11-20 02:30:00`."""
    return _local_second(ns // _NS)


@lru_cache(maxsize=1 << 16)
def _local_second(second: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))
    except (OverflowError, ValueError, OSError):
        # A stored file may have any time.
        return f"@{second}"


def duration(ns: int) -> str:
    """Return a duration in nanoseconds as text: `0.42 s`, `12 s`, `3 min 05 s`, `2 h 07 min`."""
    seconds = ns / _NS
    if seconds < 9.995:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def one_line(message: str) -> str:
    """Return a message on one line, with terminal control characters escaped."""
    joined = " ".join(line.strip() for line in readable(message).splitlines() if line.strip())
    return "".join(char if char == "\\" else printable_char(char) for char in joined)


def mode_text(st_mode: int) -> str:
    """Return type and permissions as `ls -l` writes them: `drwxr-xr-x`."""
    return stat.filemode(st_mode)
