"""For how long things have been seen in a store by this machine, in its state: nobody else's clock counts.

Within one start of the machine time is what its boot clock says, which nobody sets. Across starts it is
what the calendar says, but never more than half of what is asked for: a calendar that was wrong once, or is
right again, makes nothing old. Who loses the file waits anew.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from castore.errors import StorageError
from castore.state.locks import waiting_lock
from castore.state.paths import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Collection


class _Look(msgspec.Struct, frozen=True):
    """A look at things of one kind, in nanoseconds."""

    start: str
    """Which start of the machine it was in."""
    boot: int
    """By the clock that runs from there."""
    calendar: int
    ages: dict[str, int]
    """Of each thing that was there."""


def _now() -> tuple[str, int, int]:
    start = ""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        start = file.read().strip()
    return start, time.clock_gettime_ns(time.CLOCK_BOOTTIME), time.time_ns()


def _aged(before: _Look | None, names: Collection[str], wanted: int) -> _Look:
    start, boot, calendar = _now()
    if before is None:
        return _Look(start, boot, calendar, dict.fromkeys(names, 0))
    if start and before.start == start:
        passed = boot - before.boot
    else:
        passed = min(calendar - before.calendar, wanted // 2)
    ages = {name: before.ages[name] + max(passed, 0) if name in before.ages else 0 for name in names}
    return _Look(start, boot, calendar, ages)


class FirstSeen:
    """The file `path`; safe to use from several processes at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def look(self, kind: str, names: Collection[str], wanted: int) -> dict[str, int]:
        """Return for how many ns each of these has been seen, 0 for new ones; others are forgotten.

        wanted: the age, in ns, that matters. Where the file cannot be read all are new; where it cannot be
        written, on a full disk, they do not become older.
        """
        with contextlib.suppress(StorageError), waiting_lock(f"{self._path}.lock"):
            looks = self._read()
            now = _aged(looks.get(kind), names, wanted)
            if kind in looks or now.ages:
                looks[kind] = now
                with contextlib.suppress(StorageError):
                    write_private(self._path, msgspec.json.encode(looks) + b"\n")
            return now.ages
        return dict.fromkeys(names, 0)

    def _read(self) -> dict[str, _Look]:
        try:
            return msgspec.json.decode(read_private(self._path) or "{}", type=dict[str, _Look])
        except (msgspec.MsgspecError, UnicodeError):
            return {}
