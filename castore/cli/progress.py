"""Progress of long tasks: one line on a terminal, drawn ten times per second.

If standard error is not a terminal, or with --quiet, nothing is shown and rich, which draws, is not imported.
A task that ends within half a second does not import it either.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from castore.cli import formatting
from castore.cli.messages import is_quiet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.progress import Progress as Drawn
    from rich.progress import ProgressColumn, TaskID

    from castore.progress import Progress

_FIRST_SECONDS: Final = 0.5
_STEP_SECONDS: Final = 0.1
_BAR: Final = 20
_LEAST_BAR: Final = 8
_RATE_STEPS: Final = 30
"""The rate shown is that of the last three seconds."""


class ProgressDisplay:
    """Shows the newest of the Progress counters that it was given; keeps the warnings of all."""

    def __init__(self) -> None:
        self._tasks: list[tuple[str, Progress]] = []
        self._done = threading.Event()
        self._drawing = threading.RLock()
        self._drawn: Drawn | None = None
        self._began = time.monotonic()
        self._before = 0
        """Bytes that the current task had read when it began, or was resumed."""
        self._past: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS)

    def __call__(self, name: str, counters: Progress) -> None:
        """Show the task `name`, which counts in `counters`."""
        # The same counters come again after their task was suspended for another.
        self._tasks = [task for task in self._tasks if task[1] is not counters] + [(name, counters)]
        self._past.clear()
        self._began, self._before = time.monotonic(), counters.read

    @property
    def warnings(self) -> list[tuple[str, bytes, str]]:
        """(name of the task, path, reason) of each file that is missing or possibly inconsistent."""
        return [(name, *warning) for name, counters in self._tasks for warning in counters.warnings]

    @contextlib.contextmanager
    def shown(self) -> Iterator[ProgressDisplay]:
        """Draw on a thread while the block runs."""
        from castore.process.signal_shield import start_without_signals

        thread = threading.Thread(target=self._draw, name="progress", daemon=True)
        start_without_signals(thread)
        try:
            yield self
        finally:
            self._done.set()
            thread.join()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Draw nothing while the block runs. Blocks can be nested."""
        with self._drawing:
            drawn = self._drawn if self._drawn is not None and self._drawn.live.is_started else None
            if drawn is not None:
                drawn.stop()
            try:
                yield
            finally:
                if drawn is not None:
                    drawn.start()

    def _draw(self) -> None:
        if self._done.wait(_FIRST_SECONDS):
            return
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Drawn
        from rich.table import Column

        text = Column(no_wrap=True, overflow="ellipsis")
        columns = [BarColumn(), TextColumn("{task.description}", markup=False, table_column=text)]
        drawn = Drawn(
            *columns,
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        task = drawn.add_task("")
        with self._drawing:
            self._update(drawn, task, *columns)
            drawn.start()
            self._drawn = drawn
        while not self._done.wait(_STEP_SECONDS):
            with self._drawing:
                self._update(drawn, task, *columns)
                drawn.refresh()
        with self._drawing:
            self._drawn = None
            drawn.stop()

    def _update(self, drawn: Drawn, task: TaskID, bar: ProgressColumn, text: ProgressColumn) -> None:
        if not self._tasks:
            drawn.columns = (text,)
            return
        name, counters = self._tasks[-1]
        # The total may be an estimate: an unfinished task must not show 100 %.
        done = min(counters.read, counters.total - 1) if counters.read != counters.total else counters.total
        room = min(max(drawn.console.width // 5 - 6, 0), _BAR) if counters.total else 0
        line = " ".join(fitted(self._pieces(name, counters, done), drawn.console.width - room - 1))
        drawn.columns = (bar, text) if room >= _LEAST_BAR else (text,)
        bar.bar_width = room  # type: ignore[attr-defined]
        drawn.update(task, total=counters.total or None, completed=done, description=line)

    def _pieces(self, name: str, counters: Progress, done: int) -> list[tuple[int, str]]:
        """Return the pieces to show, in order, each with its rank: the greatest rank is left out first."""
        share, left, amount = "", "", _amount(counters.read, counters) if counters.read else ""
        if counters.total:
            share = f"{100 * done // counters.total:3} %"
            seconds = time.monotonic() - self._began
            left = remaining(done - self._before, counters.total - self._before, seconds)
            amount = f"{_amount(counters.read, counters)} of {_amount(counters.total, counters)}"
        files = formatting.count(counters.files, "file") if counters.files else ""
        new = f"{formatting.size(counters.new_bytes)} new" if counters.chunks else ""
        rate = self._rate(counters)
        if done == counters.total:
            rate = 0  # all bytes are read: the rest of the task has no rate
        pieces = [
            *((1, share), (2, left), (0, formatting.printable(name)), (3, amount)),
            *((4, f"{formatting.size(rate)}/s" if rate and not counters.unit else ""), (5, files), (6, new)),
        ]
        return [(rank, f" {piece}" if rank > 2 else piece) for rank, piece in pieces if piece]

    def _rate(self, counters: Progress) -> int:
        now = time.monotonic()
        if self._past and self._past[-1][1] > counters.read:
            self._past.clear()  # the next part counts from 0
        self._past.append((now, counters.read))
        began, before = self._past[0]
        return int((counters.read - before) / (now - began)) if now > began else 0


def _amount(number: int, counters: Progress) -> str:
    return formatting.count(number, counters.unit) if counters.unit else formatting.size(number)


def fitted(pieces: list[tuple[int, str]], width: int) -> list[str]:
    """Return the pieces of a line that fit in `width`: those of the greatest rank are left out first."""
    kept = list(pieces)
    while len(kept) > 1 and sum(len(piece) + 1 for _, piece in kept) > width:
        kept.remove(max(kept))
    return [piece for _, piece in kept]


def remaining(done: int, total: int, seconds: float) -> str:
    """Return how long the rest of the task takes at its rate so far; "" if not known."""
    if done <= 0 or seconds < _FIRST_SECONDS:
        return ""
    left = round(seconds * (total - done) / done)
    if left == 0:
        return ""
    return f"about {left} s left" if left < 60 else f"about {formatting.duration(left * 1_000_000_000)} left"


_shown: list[ProgressDisplay] = []
"""The ProgressDisplay that draws now, if any: there is one terminal."""


@contextlib.contextmanager
def show_progress() -> Iterator[ProgressDisplay]:
    """Yield a ProgressDisplay, which draws while the block runs if standard error is a terminal."""
    display = ProgressDisplay()
    # On a dumb terminal, rich would draw nothing but an empty line.
    if _shown or is_quiet() or not sys.stderr.isatty() or os.environ.get("TERM") in {"dumb", "unknown"}:
        yield display
        return
    _shown.append(display)
    try:
        with display.shown():
            yield display
    finally:
        _shown.remove(display)


@contextlib.contextmanager
def progress_paused() -> Iterator[None]:
    """Draw nothing while the block runs: castore or a program asks on the terminal."""
    if _shown:
        with _shown[-1].paused():
            yield
    else:
        yield
