"""What is shown of long work: one line on a terminal, drawn anew ten times a second.

Where standard error is no terminal nothing is shown, and rich, which draws, is not imported; nor
is it for work that is done in half a second.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final

from castore.cli import text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import RenderableType
    from rich.live import Live

    from castore.model.tally import Tally

_FIRST_SECONDS: Final = 0.5
_STEP_SECONDS: Final = 0.1
_RATE_STEPS: Final = 30
"""The rate shown is that of the last three seconds."""


class Watch:
    """Shows the newest of the tallies that it was told of; remembers the warnings of all."""

    def __init__(self, total: int | None = None) -> None:
        self._total = total
        self._totals: dict[str, int] = {}
        """Of each part, by its name."""
        self._tallies: list[tuple[str, Tally]] = []
        self._done = threading.Event()
        self._drawing = threading.Lock()
        self._live: Live | None = None
        self._began = time.monotonic()
        self._past: deque[tuple[float, int]] = deque(maxlen=_RATE_STEPS)

    def __call__(self, name: str, tally: Tally) -> None:
        """Turn to the work on `name`, which counts in `tally`."""
        self._tallies.append((name, tally))
        self._began = time.monotonic()

    def expect(self, total: int, name: str = "") -> None:
        """Show the share of so many bytes, and the time that is left: of the work on `name`, or of all."""
        if name:
            self._totals[name] = total
        else:
            self._total = total

    @property
    def warnings(self) -> list[tuple[str, bytes, str]]:
        """(name of the work, path, reason) of each file that is missing or doubtful."""
        return [(name, *warning) for name, tally in self._tallies for warning in tally.warnings]

    @contextlib.contextmanager
    def shown(self) -> Iterator[Watch]:
        """Draw while the block runs, on a thread."""
        thread = threading.Thread(target=self._draw, name="progress", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._done.set()
            thread.join()

    @contextlib.contextmanager
    def hushed(self) -> Iterator[None]:
        """Keep the screen clear while the block runs."""
        with self._drawing:
            if self._live is not None:
                self._live.stop()
            try:
                yield
            finally:
                if self._live is not None:
                    self._live.start()

    def _draw(self) -> None:
        if self._done.wait(_FIRST_SECONDS):
            return
        from rich.console import Console
        from rich.live import Live

        live = Live(
            console=Console(stderr=True),
            auto_refresh=False,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        with self._drawing:
            live.start()
            self._live = live
        while not self._done.wait(_STEP_SECONDS):
            with self._drawing:
                live.update(self._line(), refresh=True)
        with self._drawing:
            self._live = None
            live.stop()

    def _line(self) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        if not self._tallies:
            return Text("")
        name, tally = self._tallies[-1]
        line = Text(f"{text.printable(name)}  {self._numbers(tally)}", no_wrap=True)
        line.overflow = "ellipsis"
        total = self._totals.get(name, self._total)
        if not total:
            return line
        grid = Table.grid(padding=(0, 1))
        # What is expected may be an estimate: work that is not done does not show 100 %.
        done = min(tally.read, total - 1) if tally.read != total else total
        share = f"{100 * done // total:3} %"
        left = remaining(done, total, time.monotonic() - self._began)
        grid.add_row(ProgressBar(total, done, width=20), Text(share), Text(left), line)
        return grid

    def _numbers(self, tally: Tally) -> str:
        now = time.monotonic()
        if self._past and self._past[-1][1] > tally.read:
            self._past.clear()  # another part, counted from 0
        self._past.append((now, tally.read))
        began, before = self._past[0]
        rate = int((tally.read - before) / (now - began)) if now > began else 0
        numbers = [text.size(tally.read), f"{text.size(rate)}/s"]
        if tally.files:
            numbers.append(text.count(tally.files, "file"))
        if tally.chunks:
            numbers.append(f"{text.size(tally.new_bytes)} new")
        return "  ".join(numbers)


def remaining(done: int, total: int, seconds: float) -> str:
    """Return how long the rest of some work takes at its rate so far; "" if not known."""
    if done <= 0 or seconds < _FIRST_SECONDS:
        return ""
    left = round(seconds * (total - done) / done)
    return f"about {left} s left" if left < 60 else f"about {text.duration(left * 1_000_000_000)} left"


_shown: list[Watch] = []
"""The one that draws now, if any: there is one terminal."""


@contextlib.contextmanager
def watching(total: int | None = None) -> Iterator[Watch]:
    """Give a Watch, which draws while the block runs if standard error is a terminal.

    total: how many bytes there are to read, if it is known.
    """
    watch = Watch(total)
    if _shown or not sys.stderr.isatty():
        yield watch
        return
    _shown.append(watch)
    try:
        with watch.shown():
            yield watch
    finally:
        _shown.remove(watch)


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Keep the screen clear while the block runs: something is asked on the terminal."""
    if _shown:
        with _shown[-1].hushed():
            yield
    else:
        yield
