"""Fetch the directories of a stored tree ahead of a restore, in a process of its own.

Opening them takes about as much work as creating their files, in calls of a few microseconds each. Two
threads of one process would spend their time passing Python's lock to each other (measured: no faster than
one thread). The results come through shared memory, in the order in which a restore needs them.

The process is only an optimisation. If it fails for any reason, the restoring process opens the directories
itself, and reports why that fails.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import signal
import struct
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import msgspec

from castore.content.stored_dirs import Fetched, fetch_directory, open_fetched
from castore.content.streams import StreamReader
from castore.errors import CastoreError
from castore.model.refs import RecordId, Ref, RefKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future
    from types import TracebackType

    from castore.store import Store

ROOM: Final = 1 << 22
"""How many bytes of the files in one directory are fetched with it."""
_RING: Final = 1 << 25
_LEAST: Final = 1 << 24
"""Trees with fewer bytes than this are not worth a process."""
_PATIENCE_MS: Final = 60_000
"""How long the restore waits for a message of the process before it stops using it."""
_MESSAGE: Final = struct.Struct("<32sQQQQ")
"""Directory, depth, begin and end in all that was ever put into the ring, length of the head."""
_FREED: Final = struct.Struct("<Q")

_encode: Final = msgspec.msgpack.Encoder().encode
_Head = list[tuple[int, bytes, int, bool]]
_decode: Final = msgspec.msgpack.Decoder(_Head).decode


class Taken(NamedTuple):
    """A directory that was fetched ahead."""

    fetched: Fetched
    slot: _Slot


_SIGNALS: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class _Slot(msgspec.Struct):
    """A part of the ring, up to `end`."""

    end: int
    free: bool = False


class _Message(NamedTuple):
    ref: bytes
    depth: int
    start: int
    end: int
    head: int


class Prefetcher:
    """Fetches the directories of a tree ahead, depth first, in order; use it in a `with` block."""

    def __init__(self, store: Store, ref: Ref | None) -> None:
        self._child = 0
        self._ring: mmap.mmap | None = None
        self._message: _Message | None = None
        self._slots: deque[_Slot] = deque()
        self._lock = threading.Lock()
        if ref is None or ref.size < _LEAST or not store.storage.forks or (os.cpu_count() or 1) < 2:
            return
        pipes: list[int] = []
        try:
            self._ring = mmap.mmap(-1, _RING)
            pipes += os.pipe()
            pipes += os.pipe()
            self._messages, to_parent, to_child, self._freed = pipes
            # An interrupt in the new process must not run the cleanup that its parent has begun.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
            try:
                # There may be other threads, of which Python 3.12 warns if such warnings are enabled: the
                # new process takes no lock that they might hold.
                self._child = os.fork()
                if self._child == 0:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        except (OSError, DeprecationWarning):
            for fd in pipes:
                os.close(fd)
            return
        if self._child == 0:
            try:
                os.close(self._messages)
                os.close(self._freed)
                with store.reopened() as own:
                    _Opener(own, self._ring, to_parent, to_child).run(ref)
            finally:
                # The new process must not run the parent's exit handlers.
                os._exit(0)
        os.close(to_parent)
        os.close(to_child)
        os.set_blocking(self._freed, False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        with self._lock:
            child, self._child = self._child, 0
            if not child:
                return
            # No other code waits for the child, so its process id is not reused until here.
            with contextlib.suppress(ProcessLookupError):
                descriptor = os.pidfd_open(child)
                try:
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                finally:
                    os.close(descriptor)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)
            os.close(self._messages)
            os.close(self._freed)

    def take(self, ref: Ref, depth: int) -> Taken | None:
        """Return the directory `ref` at this depth below the top, if it was fetched; call in order."""
        while (message := self._next()) is not None and message.depth >= depth:
            self._message = None
            slot = _Slot(message.end)
            self._slots.append(slot)
            wanted = (message.depth, message.ref) == (depth, ref.id)
            if wanted and message.head:
                return Taken(self._fetched(message), slot)
            self._free(slot)
            if wanted:
                break
            # Else the restore has skipped that directory.
        return None

    def done_with(self, taken: Taken, user: Future[Any] | None) -> None:
        """Allow the memory of a fetched directory to be reused, as soon as `user` is done with it."""
        if user is None:
            self._free(taken.slot)
        else:
            user.add_done_callback(lambda _: self._free(taken.slot))

    def _free(self, slot: _Slot) -> None:
        with self._lock:
            slot.free = True
            freed = 0
            while self._slots and self._slots[0].free:
                freed = self._slots.popleft().end
            if freed and self._child:
                # If the pipe is full, the next message includes this one.
                with contextlib.suppress(OSError):
                    os.write(self._freed, _FREED.pack(freed))

    def _next(self) -> _Message | None:
        if self._message is None and self._child:
            poll = select.poll()
            poll.register(self._messages, select.POLLIN)
            data = os.read(self._messages, _MESSAGE.size) if poll.poll(_PATIENCE_MS) else b""
            if len(data) == _MESSAGE.size:
                self._message = _Message(*_MESSAGE.unpack(data))
            else:
                self._stop()
        return self._message

    def _fetched(self, message: _Message) -> Fetched:
        if self._ring is None:
            raise AssertionError("a message came through the ring")
        view = memoryview(self._ring)
        at = message.start % _RING
        head = _decode(view[at : at + message.head])
        at += message.head
        refs = []
        chunks: dict[RecordId, bytes | memoryview] = {}
        for kind, record_id, size, opened in head:
            ref = Ref(RefKind(kind), RecordId(record_id), size)
            refs.append(ref)
            if opened and ref.id not in chunks:
                chunks[ref.id] = view[at : at + size]
                at += size
        return Fetched(refs, chunks)


class _Opener:
    """The work of the process."""

    def __init__(self, store: Store, ring: mmap.mmap, messages: int, freed: int) -> None:
        self._reader = StreamReader(store)
        self._ring = ring
        self._messages = messages
        self._freed = freed
        os.set_blocking(freed, False)
        self._poll = select.poll()
        self._poll.register(freed, select.POLLIN)
        self._tail = 0
        self._head = 0

    def run(self, ref: Ref) -> None:
        """Fetch the directory `ref` and all below it."""
        for depth, one, fetched in self._walk(ref):
            # Read freed positions each time: a full pipe would lose the last one.
            self._take_freed(0)
            start, head = self._put(fetched) if fetched is not None else (self._head, 0)
            os.write(self._messages, _MESSAGE.pack(one.id, depth, start, self._head, head))

    def _walk(self, top: Ref) -> Iterator[tuple[int, Ref, Fetched | None]]:
        stack = [(0, top)]
        while stack:
            depth, ref = stack.pop()
            try:
                fetched = fetch_directory(self._reader, ref, ROOM)
                others = open_fetched(self._reader, ref, fetched).others
            except CastoreError:
                yield depth, ref, None
                continue
            yield depth, ref, fetched
            below = [child.ref for child in others if child.entry.is_dir and child.ref is not None]
            stack += [(depth + 1, one) for one in reversed(below)]

    def _put(self, fetched: Fetched) -> tuple[int, int]:
        """Put a fetched directory into the ring; return where it begins and the length of its head."""
        refs, chunks = fetched
        head = _encode([(ref.kind, ref.id, ref.size, ref.id in chunks) for ref in refs])
        length = len(head) + sum(map(len, chunks.values()))
        if length > _RING // 2:
            return self._head, 0
        start = self._head
        if start % _RING + length > _RING:
            start += _RING - start % _RING
        while start + length - self._tail > _RING:
            self._take_freed(None)
        at = start % _RING
        piece: bytes | memoryview
        for piece in (head, *chunks.values()):
            self._ring[at : at + len(piece)] = piece
            at += len(piece)
        self._head = start + length
        return start, len(head)

    def _take_freed(self, timeout: int | None) -> None:
        if self._poll.poll(timeout):
            data = os.read(self._freed, 1 << 16)
            if not data:
                raise EOFError
            (self._tail,) = _FREED.unpack(data[-_FREED.size :])
