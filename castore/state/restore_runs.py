"""What the last restores in place on this machine had to do, and how long they took: for estimates."""

from __future__ import annotations

import contextlib
from statistics import median
from typing import Final, NamedTuple

import msgspec

from castore.errors import StorageError
from castore.fs.durable import write_private

_KEPT: Final = 20
"""How many runs are recorded."""
_USED: Final = 5
"""How many runs an estimate uses: older ones may be of another machine load, disk or network."""

# Seconds that the parts of a restore in place took on two cores with a warm cache. Only their ratios matter:
# the last runs give the factor of this machine.
_START: Final = 0.2
_ENTRY: Final = 8e-6
_READ: Final = 0.5e-9
_STEP: Final = 3e-4
_WRITTEN: Final = 2e-9


class Work(msgspec.Struct, frozen=True, array_like=True):
    """What a restore in place has to do."""

    entries: int = 0
    """Entries of directories that are compared."""
    read: int = 0
    """Bytes of live files that are compared."""
    steps: int = 0
    written: int = 0
    """Bytes to write, which are read from the store or, for the undo area, from live files."""

    def __add__(self, other: Work) -> Work:
        """Return what both have to do."""
        return Work(
            self.entries + other.entries,
            self.read + other.read,
            self.steps + other.steps,
            self.written + other.written,
        )

    @property
    def cost(self) -> float:
        """The expected seconds on the machine of the measurements."""
        return (
            _START
            + self.entries * _ENTRY
            + self.read * _READ
            + self.steps * _STEP
            + self.written * _WRITTEN
        )


class _Run(msgspec.Struct, frozen=True, array_like=True):
    work: Work
    seconds: float


class Estimate(NamedTuple):
    """How long a restore in place probably takes."""

    seconds: float
    runs: int
    """From how many earlier runs this is concluded."""


def record_run(path: str, work: Work, seconds: float) -> None:
    """Add a run to the record at `path`. If that cannot be written, later estimates do without the run."""
    with contextlib.suppress(StorageError, OSError):
        write_private(path, msgspec.json.encode([*_runs(path), _Run(work, seconds)][-_KEPT:]))


def estimate(path: str, work: Work) -> Estimate | None:
    """Return how long this work probably takes; None if no earlier run is recorded at `path`."""
    last = _runs(path)[-_USED:]
    if not last:
        return None
    factor = median(run.seconds / run.work.cost for run in last)
    return Estimate(factor * work.cost, len(last))


def _runs(path: str) -> list[_Run]:
    try:
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=list[_Run])
    except (OSError, msgspec.MsgspecError):
        return []
