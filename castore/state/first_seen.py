"""How long this machine has seen objects in a store, kept in its state. No other machine's clock is used.

Within one boot of the machine, time is measured by the boot clock, which nobody sets. Across boots it is
measured by the calendar, but at most half of the wanted age is counted: a calendar that was wrong once, or is
correct again, makes nothing old. If the file is lost, the wait starts again.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import msgspec

from castore.errors import StorageError
from castore.fs.durable import read_private, write_private
from castore.state.locks import waiting_lock

if TYPE_CHECKING:
    from collections.abc import Collection


class _Look(msgspec.Struct, frozen=True):
    """One observation of objects of a kind; times in nanoseconds."""

    start: str
    """The id of the machine's boot."""
    boot: int
    """The boot clock."""
    calendar: int
    ages: dict[str, int]
    """Age of each object that existed."""


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

    def observe(self, kind: str, names: Collection[str], wanted: int) -> dict[str, int]:
        """Return for how many ns each of these objects has been seen, 0 for new ones; forget all others.

        wanted: the age, in ns, that the caller waits for. If the file cannot be read, all objects are new. If
        it cannot be written (on a full disk), they do not get older.
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
