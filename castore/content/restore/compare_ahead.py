"""Compare directories on worker threads, ahead of the planner, which needs them in order."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from castore.content.restore.dir_comparison import DirectoryComparison, LiveDirectory
from castore.content.stored_dirs import Opened, fetch_directories, fetch_directory, open_fetched
from castore.errors import CastoreError
from castore.fs.beneath import OPEN_DIRECTORY

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Comparison
    from castore.content.restore.undo_journal import Path
    from castore.content.stored_dirs import Child, Fetched
    from castore.content.streams import StreamReader
    from castore.model.refs import Ref

_WORKERS: Final = 2
_BATCH: Final = 8
"""How many directories are compared in one task: their entries are read from the store together."""
_MOST_AHEAD: Final = 32
"""How many subdirectories of one directory are compared before the planner needs them."""
_MOST_OPEN: Final = 256
"""How many directories that were compared ahead are open at once."""

_Result = LiveDirectory | Exception


class Wanted(NamedTuple):
    """A directory to compare."""

    child: Child
    path: Path
    at: int | None
    """The position of the last snapshot's record of it."""


class CompareAhead:
    """Compares the directories of one tree; use it in a `with` block."""

    def __init__(self, reader: StreamReader, ownership: Ownership, choices: Comparison) -> None:
        self._reader = reader
        self._comparison = DirectoryComparison(reader, ownership, choices)
        self._pool = ThreadPoolExecutor(_WORKERS, thread_name_prefix="castore-compare")
        self._levels: list[Level] = []
        self.open = 0
        """How many directories are being compared, or are open until they are used."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        for level in self._levels:
            level.close()

    def enter(self, fd: int, wanted: list[Wanted]) -> Level:
        """Begin to compare subdirectories of the directory open as `fd`; `leave` ends that."""
        level = Level(self, fd, wanted)
        self._levels.append(level)
        return level

    def leave(self, level: Level) -> None:
        """Close a level."""
        self._levels.remove(level)
        level.close()

    def submit(self, fd: int, batch: list[Wanted]) -> Future[list[_Result]]:
        """Compare some subdirectories of the directory open as `fd` on a worker thread."""
        return self._pool.submit(self.compare, fd, batch)

    def compare(self, parent: int, batch: list[Wanted]) -> list[_Result]:
        """Compare some subdirectories of an open directory; return an exception where that fails."""
        refs = [wanted.child.ref for wanted in batch if wanted.child.ref is not None]
        fetched: dict[Ref, Fetched | None] = {}
        if len(refs) > 1:
            fetched = dict(zip(refs, fetch_directories(self._reader, refs), strict=True))
        found: list[_Result] = []
        for wanted in batch:
            try:
                fd = os.open(wanted.child.entry.name, OPEN_DIRECTORY, dir_fd=parent)
                found.append(self.compare_open(fd, wanted, fetched))
            except (OSError, CastoreError, ValueError) as error:
                found.append(error)
        return found

    def compare_open(
        self, fd: int, wanted: Wanted, fetched: dict[Ref, Fetched | None] | None = None
    ) -> LiveDirectory:
        """Compare one directory, which is open as `fd`. The result owns `fd`; an exception closes it."""
        live = LiveDirectory(fd)
        try:
            ref = wanted.child.ref
            opened = Opened([])
            if ref is not None:
                known = fetched.get(ref) if fetched else None
                opened = open_fetched(self._reader, ref, known or fetch_directory(self._reader, ref, 0))
            self._comparison.compare(live, wanted.child, opened, wanted.path, wanted.at)
        except BaseException:
            live.close()
            raise
        return live


class Level:
    """The subdirectories of one directory, which the planner takes in order."""

    def __init__(self, ahead: CompareAhead, fd: int, wanted: list[Wanted]) -> None:
        self._ahead = ahead
        self._fd = fd
        self._waiting = deque(wanted)
        self._names = {one.child.entry.name for one in wanted}
        self._begun: dict[bytes, tuple[Future[list[_Result]], int]] = {}
        self._begin()

    def _begin(self) -> None:
        while self._waiting and len(self._begun) <= _MOST_AHEAD - _BATCH and self._ahead.open < _MOST_OPEN:
            batch = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            future = self._ahead.submit(self._fd, batch)
            self._begun |= {wanted.child.entry.name: (future, number) for number, wanted in enumerate(batch)}
            self._ahead.open += len(batch)

    def has(self, name: bytes) -> bool:
        """Whether a subdirectory is to be taken."""
        return name in self._names

    def take(self, name: bytes) -> LiveDirectory:
        """Return the comparison of a subdirectory, which the caller closes. Raises OSError, DamageError."""
        begun = self._begun.pop(name, None)
        if begun is None:
            # Too many are open: those above it are compared meanwhile.
            result = self._ahead.compare(self._fd, [self._waiting.popleft()])[0]
        else:
            self._ahead.open -= 1
            result = begun[0].result()[begun[1]]
        self._begin()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Close the directories that were not taken."""
        self._waiting.clear()
        for future, number in self._begun.values():
            self._ahead.open -= 1
            if not future.cancel():
                result = future.result()[number]
                if isinstance(result, LiveDirectory):
                    result.close()
        self._begun.clear()
