"""Defer interrupts during work that would leave an inconsistent state if it were interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from typing import TYPE_CHECKING, Final, Self

from castore.process.own_process import is_own_process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_OVER: Final = b"\0"
"""Ends the watching thread: it is not the number of a signal."""


def _is_shielded() -> bool:
    return isinstance(getattr(signal.getsignal(signal.SIGINT), "__self__", None), DeferInterrupts)


@contextlib.contextmanager
def ignoring_sigint() -> Iterator[None]:
    """Make a program that is started in the block ignore Ctrl-C, if castore defers interrupts now.

    An interrupt that arrives meanwhile is delivered to castore after the block.
    """
    if not _is_shielded() or threading.current_thread() is not threading.main_thread():
        yield
        return
    # A signal mask is not enough: programs inherit it, but shells clear it. A signal that is ignored when a
    # program starts stays ignored. Linux keeps a blocked signal pending until it is unblocked, even if it is
    # ignored.
    _block(signal.SIGINT)
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT,))


@contextlib.contextmanager
def interrupt_note(text: str | Callable[[], str]) -> Iterator[None]:
    """Add to an interrupt in the block which state it leaves; the innermost block decides.

    text: the note, or a function that returns it when the interrupt arrives.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if not interrupt_notes(error):
            error.add_note(text if isinstance(text, str) else text())
        raise


def interrupt_notes(error: BaseException | None) -> list[str]:
    """Return the notes of `interrupt_note`."""
    return list(getattr(error, "__notes__", ()))


def start_without_signals(thread: threading.Thread) -> None:
    """Start a thread that blocks interrupts: they are left to the main thread, even while it blocks them."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _block(number: signal.Signals) -> None:
    """Block a signal while none is pending: ignoring it would discard a pending one."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (number,))
    while number in signal.sigpending():
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (number,))
        signal.pthread_sigmask(signal.SIG_BLOCK, (number,))


class DeferInterrupts:
    """During the block, the first interrupt is only reported; the next one raises KeyboardInterrupt.

    Programs that are run in the block do not get Ctrl-C, which a terminal sends to all of its processes. In
    other threads than the main one, which get no interrupts, and within another such block, it does nothing.
    So it does in a process that is not castore's own, whose signal handlers are not castore's to replace.
    """

    def __init__(self, report: Callable[[], None]) -> None:
        self._report = report
        self._count = 0
        self._own = 0
        """How many signals this object has sent to its own process."""
        self._active = False

    def __enter__(self) -> Self:
        if not is_own_process() or _is_shielded():
            return self
        if threading.current_thread() is not threading.main_thread():
            return self
        self._active = True
        self._main = threading.get_ident()
        # The parent process may have had some of them ignored, as nohup does: keep that.
        wanted = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        # Python runs a handler in the main thread, and only after its current blocking call. So another
        # thread gets the signals through a pipe, and interrupts the main thread's call if necessary.
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, self._handle) for number in wanted}
        self._thread = threading.Thread(target=self._watch, name="castore-interrupts", daemon=True)
        start_without_signals(self._thread)
        return self

    def __exit__(self, *_: object) -> None:
        if not self._active:
            return
        self._active = False
        os.write(self._write, _OVER)
        self._thread.join()
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def _watch(self) -> None:
        """Count interrupts; from the second one on, make the main thread raise."""
        while (got := os.read(self._read, 1)) != _OVER:
            if got[0] == signal.SIGTERM and self._own:
                self._own -= 1
                continue
            self._count += 1
            if self._count == 1:
                self._report()
            else:
                self._own += 1
                signal.pthread_kill(self._main, signal.SIGTERM)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self._active and self._count > 1:
            raise KeyboardInterrupt
