"""The server of a store: `castore serve --stdio` answers the requests of one client.

The client may be anybody who has the account or the key: names are checked, and with `append_only` nothing is
deleted or replaced.
"""

from __future__ import annotations

import contextlib
import re
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Final

import msgspec
from blake3 import blake3

from castore.errors import (
    CastoreError,
    DamageError,
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    StorageFullError,
    StoragePermissionError,
)
from castore.storage.wire import MAX_BODY, PAGE, VERSION, Answer, Frames, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.storage.base import Storage

KINDS: Final[dict[str, type[CastoreError]]] = {
    "exists": ObjectExistsError,
    "missing": ObjectMissingError,
    "full": StorageFullError,
    "permission": StoragePermissionError,
    "damage": DamageError,
    "no-store": NotFoundError,
    "failed": StorageError,
}
"""The errors that an answer can carry, the most specific ones first."""

_NAME: Final = re.compile(r"[a-z]{1,32}/(?!\.{1,2}$)[a-z0-9.-]{1,128}")
_FOLDER: Final = re.compile(r"[a-z]{1,32}")
_THREADS: Final = 4
_MAX_PUT: Final = MAX_BODY
_LARGE: Final = 65 << 20
"""A body longer than this, of which a pack has none, is handled while no other request is."""
_MAX_LOCKS: Final = 8
"""Locks that a client may hold or wait for; castore needs one."""
_HASHED: Final = 1 << 20
"""Bytes read at once to hash an object."""

Reply = tuple[Answer, bytes]


class Server:
    """Answers the requests of a client about one storage, several at a time.

    open_storage: called by the first request, so that its error reaches the client. append_only: refuse to
    delete, and to hold the lock exclusively.
    """

    def __init__(self, open_storage: Callable[[], Storage], frames: Frames, *, append_only: bool) -> None:
        self._open_storage = open_storage
        self._opened: Storage | None = None
        self._frames = frames
        self._append_only = append_only
        self._writing = threading.Lock()
        self._locks: dict[int, contextlib.ExitStack] = {}
        """The locks that are held, by the number of the request."""
        self._lock_threads: list[threading.Thread] = []
        self._operations: dict[str, Callable[[Request, bytes], Reply]] = {
            "hello": self._hello,
            "put": self._put,
            "get": self._get,
            "size": self._size,
            "list": self._list,
            "delete": self._delete,
            "sync_dir": self._sync_dir,
            "lock": self._lock,
            "unlock": self._unlock,
            "hash": self._hash,
        }

    def run(self) -> None:
        """Answer until the client closes the connection. Raises UnreachableError, StorageError, OSError."""
        decoder = msgspec.msgpack.Decoder(Request)
        waiting = threading.BoundedSemaphore(_THREADS)
        with self._unlocking(), ThreadPoolExecutor(_THREADS) as threads:
            while (frame := self._frames.read(_MAX_PUT)) is not None:
                try:
                    request = decoder.decode(frame[0])
                except msgspec.DecodeError:
                    raise StorageError("a request is not one of castore's protocol") from None
                if request.operation == "lock":
                    self._answer_lock(request)
                    continue
                # At most so many requests are in memory.
                taken = _THREADS if len(frame[1]) > _LARGE else 1
                for _ in range(taken):
                    waiting.acquire()
                answered = threads.submit(self._answer, request, frame[1])
                answered.add_done_callback(partial(_release, waiting, taken))
                del frame

    @property
    def _storage(self) -> Storage:
        if self._opened is None:
            raise StorageError("the first request must be 'hello'")
        return self._opened

    @contextlib.contextmanager
    def _unlocking(self) -> Iterator[None]:
        """Release the locks of the client at the end, however it ends."""
        try:
            yield
        finally:
            for number in [*self._locks]:
                self._locks.pop(number).close()

    def _answer_lock(self, request: Request) -> None:
        """Wait for a lock in a thread that neither delays other requests nor the end of this process."""
        self._lock_threads = [thread for thread in self._lock_threads if thread.is_alive()]
        if len(self._lock_threads) + len(self._locks) >= _MAX_LOCKS:
            raise StorageError(f"a client may hold and wait for {_MAX_LOCKS} locks")
        thread = threading.Thread(target=self._answer, args=(request, b""), daemon=True)
        self._lock_threads.append(thread)
        thread.start()

    def _answer(self, request: Request, body: bytes) -> None:
        answer, data = self._result(request, body)
        with self._writing, contextlib.suppress(OSError):  # the client is not there any more
            self._frames.write(answer, data)

    def _result(self, request: Request, body: bytes) -> Reply:
        try:
            return self._operations.get(request.operation, _unknown)(request, body)
        except CastoreError as error:
            kind = next((kind for kind, known in KINDS.items() if isinstance(error, known)), "failed")
            return Answer(request.number, error=kind, message=str(error)), b""
        except Exception as error:  # noqa: BLE001 - the client waits for an answer
            return Answer(request.number, error="failed", message=f"castore serve failed: {error!r}"), b""

    # Operations

    def _hello(self, request: Request, _body: bytes) -> Reply:
        if request.version != VERSION:
            raise StorageError(
                f"the client speaks version {request.version} of the protocol, and this castore version "
                f"{VERSION}: install the same castore on both machines"
            )
        self._opened = self._open_storage()
        return Answer(request.number, flag=self._append_only), b""

    def _put(self, request: Request, body: bytes) -> Reply:
        self._storage.put(_checked(request.name), body)
        return Answer(request.number), b""

    def _get(self, request: Request, _body: bytes) -> Reply:
        length = request.length
        if request.offset < 0 or (length is not None and not 0 <= length <= MAX_BODY):
            raise StorageError("a range that no castore asks for")
        return Answer(request.number), self._storage.get(_checked(request.name), request.offset, length)

    def _size(self, request: Request, _body: bytes) -> Reply:
        return Answer(request.number, size=self._storage.size(_checked(request.name))), b""

    def _list(self, request: Request, _body: bytes) -> Reply:
        """Return a page of names in order, so that the next one can begin after the last."""
        names = sorted(self._storage.list(_checked_folder(request.name), request.after))
        page = tuple(islice(names, PAGE))
        return Answer(request.number, names=page, more=len(page) < len(names)), b""

    def _delete(self, request: Request, _body: bytes) -> Reply:
        if self._append_only:
            raise StoragePermissionError(
                "this key may only add and read: the server was started with --append-only"
            )
        self._storage.delete_all([_checked(name) for name in request.names])
        return Answer(request.number), b""

    def _sync_dir(self, request: Request, _body: bytes) -> Reply:
        self._storage.sync_dir(_checked_folder(request.name))
        return Answer(request.number), b""

    def _lock(self, request: Request, _body: bytes) -> Reply:
        if request.exclusive and self._append_only:
            raise StoragePermissionError(
                "this key may not lock the store for itself: the server was started with --append-only"
            )
        if request.number in self._locks:
            raise StorageError(f"the request {request.number} holds a lock already")
        lock = contextlib.ExitStack()
        held = lock.enter_context(self._storage.lock(exclusive=request.exclusive))
        self._locks[request.number] = lock
        return Answer(request.number, flag=held), b""

    def _unlock(self, request: Request, _body: bytes) -> Reply:
        """Release the lock of the request whose number is the offset."""
        self._locks.pop(request.offset, contextlib.ExitStack()).close()
        return Answer(request.number), b""

    def _hash(self, request: Request, _body: bytes) -> Reply:
        """Return the BLAKE3 hash of an object, so that its bytes need not be sent to be checked."""
        name, offset, hasher = _checked(request.name), 0, blake3()
        while data := self._storage.get(name, offset, _HASHED):
            hasher.update(data)
            offset += len(data)
        return Answer(request.number, size=offset), hasher.digest()


def _release(waiting: threading.BoundedSemaphore, taken: int, _: Future[None]) -> None:
    waiting.release(taken)


def _unknown(request: Request, _body: bytes) -> Reply:
    raise StorageError(f"this castore does not know the operation {request.operation!r}")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name) or name.startswith("tmp/"):
        raise StorageError(f"{name!r} is not the name of an object of a store")
    return name


def _checked_folder(name: str) -> str:
    if not _FOLDER.fullmatch(name) or name == "tmp":
        raise StorageError(f"{name!r} is not a folder of a store")
    return name
