"""Clients of a server that allows an account only few connections.

A server may count an ended client for a moment longer, and refuse the next one. The refused client has not
done anything yet, so castore runs it again.
"""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any, Final, TypeVar

from castore.engines.dump_stream import preceded
from castore.errors import ProgramError
from castore.process.runners import run_dump

if TYPE_CHECKING:
    import re
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from castore.engines.dump_stream import Bytes, Readinto
    from castore.process.standard_error import Filter

_Result = TypeVar("_Result")

_FREE_SECONDS: Final = 5.0
"""Seconds for which an account may have all its connections before that is an error."""
_PAUSE_SECONDS: Final = 0.05
_FIRST: Final = 1 << 16
"""Bytes of a dump that are read to check that its program is connected."""
_KEPT_BYTES: Final = 1 << 22
"""More bytes than a client can receive before it is connected: those in a pipe, and a chunk."""


class _Messages:
    """A filter of a client's messages that notes whether the server has refused the connection."""

    def __init__(self, only: Filter, refusal: re.Pattern[bytes], *, last: bool) -> None:
        self._only = only
        self._refusal = refusal
        self.is_last = last
        self.is_refused = False

    def __call__(self, line: bytes) -> bytes | None:
        if self._refusal.search(line):
            self.is_refused = True
            if not self.is_last:
                return None
        return self._only(line)


def when_free(run: Callable[[Filter], _Result], only: Filter, refusal: re.Pattern[bytes]) -> _Result:
    """Run a client, again while the server refuses its connection; return the result of `run`.

    run: called with a filter of the client's messages, which replaces `only`. refusal: matches the messages
    of such a refusal. Raises ProgramError, after _FREE_SECONDS also for a refusal.
    """
    end = time.monotonic() + _FREE_SECONDS
    while True:
        messages = _Messages(only, refusal, last=time.monotonic() >= end)
        try:
            return run(messages)
        except ProgramError:
            if not messages.is_refused or messages.is_last:
                raise
        time.sleep(_PAUSE_SECONDS)


@contextlib.contextmanager
def open_when_free(
    client: Callable[[Filter], AbstractContextManager[_Result]], only: Filter, refusal: re.Pattern[bytes]
) -> Iterator[_Result]:
    """Yield the value of a client's context manager; enter it again while the server refuses the client.

    The arguments are those of `when_free`.
    """
    with contextlib.ExitStack() as stack:

        def begin(only: Filter) -> _Result:
            with contextlib.ExitStack() as begun:
                result = begun.enter_context(client(only))
                stack.enter_context(begun.pop_all())
            return result

        yield when_free(begin, only, refusal)


@contextlib.contextmanager
def dump_when_free(
    argv: Sequence[str], process: Mapping[str, Any], refusal: re.Pattern[bytes]
) -> Iterator[Readinto]:
    """Yield a function that reads a dump, as `run_dump`; the program starts at the first call.

    process: what the program is run with. As `when_free`.
    """

    @contextlib.contextmanager
    def started(only: Filter) -> Iterator[Readinto]:
        with run_dump(argv, **process, only=only) as readinto:
            room = memoryview(bytearray(_FIRST))
            yield preceded(room[: readinto(room)], readinto)

    with contextlib.ExitStack() as stack:
        found: Readinto | None = None

        def read(view: memoryview) -> int:
            nonlocal found
            if found is None:
                found = stack.enter_context(open_when_free(started, _not_empty, refusal))
            return found(view)

        yield read


def _not_empty(line: bytes) -> bytes | None:
    return line if line.strip() else None


class Chunks:
    """Chunks that can be iterated again from the first one, as long as few were taken."""

    def __init__(self, chunks: Iterable[Bytes]) -> None:
        self._rest = iter(chunks)
        self._taken: list[bytes] = []
        self._length = 0

    def __iter__(self) -> Iterator[Bytes]:
        yield from list(self._taken)
        for chunk in self._rest:
            # After so many it is connected, and is not run again.
            if self._length < _KEPT_BYTES:
                self._length += len(chunk)
                self._taken.append(bytes(chunk))
            yield chunk
