"""Compare directories on worker threads, ahead of the planner, which needs them in order."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, Final, Self

from castore.content.restore.dir_comparison import DirectoryComparison, LiveDirectory, Wanted
from castore.content.stored_dirs import Opened, fetch_directories, fetch_directory, open_fetched
from castore.errors import CastoreError
from castore.fs.beneath import OPEN_DIRECTORY

if TYPE_CHECKING:
    from concurrent.futures import Future
    from types import TracebackType

    from castore.content.restore.metadata import Ownership
    from castore.content.restore.plan import Comparison
    from castore.content.stored_dirs import Fetched
    from castore.content.streams import StreamReader
    from castore.model.refs import Ref

_WORKERS: Final = 2
_BATCH: Final = 16
"""How many subdirectories of one directory are compared in one task."""
_TASK: Final = 32
"""How many directories are compared in one task: these, and then those below them, level by level.

The entries of each level are read from the store together.
"""
_EACH: Final = _TASK // _BATCH
_MOST_AHEAD: Final = 64
"""How many subdirectories of one directory are compared before the planner needs them."""
_MOST_OPEN: Final = 512
"""How many directories that were compared ahead are open at once."""
_MOST_BELOW: Final = 768
"""How many are open at most, with those that the planner compares itself: it then compares one at a time."""

_Result = LiveDirectory | Exception


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

    def enter(self, live: LiveDirectory) -> Level:
        """Begin to compare the wanted subdirectories of a directory; `leave` ends that."""
        level = Level(self, live)
        self._levels.append(level)
        return level

    def leave(self, level: Level) -> None:
        """Close a level."""
        self._levels.remove(level)
        level.close()

    def compare_now(self, parent: int, wanted: Wanted) -> _Result:
        """Compare a subdirectory on this thread; those below it, too, unless too many are open already."""
        few = self.open + _TASK * len(self._levels) < _MOST_BELOW
        return self.compare(parent, [wanted], _TASK if few else 1)[0]

    def submit(self, fd: int, batch: list[Wanted]) -> Future[list[_Result]]:
        """Compare some subdirectories of the directory open as `fd` on a worker thread."""
        return self._pool.submit(self.compare, fd, batch)

    def compare(self, parent: int, batch: list[Wanted], most: int = _TASK) -> list[_Result]:
        """Compare some subdirectories of an open directory, and directories below these.

        most: how many in all. The result of a directory that cannot be compared is the exception.
        """
        found: dict[bytes, _Result] = {}
        todo = deque((parent, found, wanted) for wanted in batch)
        left = most
        while todo and left > 0:
            together = [todo.popleft() for _ in range(min(left, len(todo)))]
            left -= len(together)
            fetched = self._fetch([wanted for _, _, wanted in together])
            for fd, siblings, wanted in together:
                result = siblings[wanted.child.entry.name] = self._compare_one(fd, wanted, fetched)
                if isinstance(result, LiveDirectory):
                    todo += [(result.fd, result.below, below) for below in result.wanted]
        results = [found[wanted.child.entry.name] for wanted in batch]
        for result in results:
            if isinstance(result, LiveDirectory):
                result.settle()
        return results

    def _fetch(self, together: list[Wanted]) -> dict[Ref, Fetched | None]:
        """Read the entries of directories. Those that are left out have to be read one by one."""
        refs = [wanted.child.ref for wanted in together if wanted.child.ref is not None]
        return dict(zip(refs, fetch_directories(self._reader, refs), strict=True))

    def _compare_one(self, parent: int, wanted: Wanted, fetched: dict[Ref, Fetched | None]) -> _Result:
        try:
            fd = os.open(wanted.child.entry.name, OPEN_DIRECTORY, dir_fd=parent)
            return self._compare_open(fd, wanted, fetched)
        except (OSError, CastoreError, ValueError) as error:
            return error

    def compare_top(self, fd: int, wanted: Wanted) -> LiveDirectory:
        """Compare the top directory, which is open as `fd`. The result owns `fd`; an exception closes it."""
        live = self._compare_open(fd, wanted, {})
        live.settle()
        return live

    def _compare_open(
        self, fd: int, wanted: Wanted, fetched: dict[Ref, Fetched | None]
    ) -> LiveDirectory:
        live = LiveDirectory(fd)
        try:
            ref = wanted.child.ref
            opened = Opened([])
            if ref is not None:
                known = fetched.get(ref)
                opened = open_fetched(self._reader, ref, known or fetch_directory(self._reader, ref, 0))
            self._comparison.compare(live, wanted.child, opened, wanted.path, wanted.at)
        except BaseException:
            live.close()
            raise
        return live


class Level:
    """The subdirectories of one directory, which the planner takes in order."""

    def __init__(self, ahead: CompareAhead, live: LiveDirectory) -> None:
        self._ahead = ahead
        self._fd = live.fd
        self._below = live.below
        self._names = {wanted.child.entry.name for wanted in live.wanted}
        self._waiting = {
            wanted.child.entry.name: wanted
            for wanted in live.wanted
            if wanted.child.entry.name not in live.below
        }
        self._begun: dict[bytes, tuple[Future[list[_Result]], int]] = {}
        self._begin()

    def _begin(self) -> None:
        while self._waiting and len(self._begun) <= _MOST_AHEAD - _BATCH and self._ahead.open < _MOST_OPEN:
            batch = [self._waiting.pop(name) for name in list(islice(self._waiting, _BATCH))]
            future = self._ahead.submit(self._fd, batch)
            self._begun |= {wanted.child.entry.name: (future, number) for number, wanted in enumerate(batch)}
            self._ahead.open += _EACH * len(batch)

    def has(self, name: bytes) -> bool:
        """Whether a subdirectory is to be taken."""
        return name in self._names

    def take(self, name: bytes) -> LiveDirectory:
        """Return the comparison of a subdirectory, which the caller closes. Raises OSError, DamageError."""
        below = self._below.pop(name, None)
        begun = self._begun.pop(name, None)
        if below is not None:
            result = below
        elif begun is None:
            # Too many are open: those above it are compared meanwhile.
            result = self._ahead.compare_now(self._fd, self._waiting.pop(name))
        else:
            self._ahead.open -= _EACH
            result = begun[0].result()[begun[1]]
        self._begin()
        if isinstance(result, Exception):
            raise result
        return result

    def close(self) -> None:
        """Close the directories that were not taken."""
        self._waiting.clear()
        for future, number in self._begun.values():
            self._ahead.open -= _EACH
            if not future.cancel():
                result = future.result()[number]
                if isinstance(result, LiveDirectory):
                    result.close()
        self._begun.clear()
