"""Stores on other machines: `ssh://`, through the system's ssh and `castore serve --stdio` on the far side.

One connection carries the requests of all threads. If it breaks, the next request makes a new one; but a lock
is lost with it, and its holder must not continue.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import signal
import subprocess
import threading
from concurrent.futures import Future, InvalidStateError
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import (
    CastoreError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    StorageTimeoutError,
    UnreachableError,
    UsageError,
)
from castore.storage.remote import RemoteStorage
from castore.storage.serve import KINDS
from castore.storage.wire import PAGE, Answer, Frames, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.storage.url import StoreUrl

_OPTIONS: Final = (
    *("-T", "-e", "none"),
    *("-o", "ConnectTimeout=20"),
    # A machine that does not answer for a minute is not there.
    *("-o", "ServerAliveInterval=15"),
    *("-o", "ServerAliveCountMax=4"),
    *("-o", "ForwardX11=no"),
    *("-o", "ForwardAgent=no"),
    *("-o", "ClearAllForwardings=yes"),
)
_PATIENCE: Final = 600.0
"""Seconds to wait for an answer on a connection that is alive: a pack may be sent slowly."""
_LOCK_PATIENCE: Final = 24 * 3600.0
_END_PATIENCE: Final = 1.0
"""Seconds for ssh to end by itself: at a prompt for a password, it switches the terminal's echo on again."""
_KEPT_ERRORS: Final = 2000
"""Bytes of what ssh and the far side print on standard error, for the message."""


class SshStorage(RemoteStorage):
    """A directory that `castore serve` gives access to.

    program: the command of ssh; by default that of CASTORE_SSH. Raises UsageError.
    """

    def __init__(self, url: StoreUrl, program: str | None = None, *, create: bool = False) -> None:
        if not url.path:
            raise UsageError(f"{url} names no directory: ssh://HOST/srv/store, or ssh://HOST/~/store")
        if url.host.startswith("-") or (url.user or "").startswith("-"):
            raise UsageError(f"{url} is not the URL of a store: a host and a user do not begin with '-'")
        self._url = str(url)
        path = url.path[2:] if url.path.startswith("~/") else "/" + url.path
        serve = ["castore", "serve", "--stdio", *(["--create"] if create else []), "--", path]
        ssh = shlex.split(program or os.environ.get("CASTORE_SSH", "ssh"))
        target = [] if url.user is None else ["-l", url.user]
        if url.port is not None:
            target += ["-p", str(url.port)]
        self._argv = [*ssh, *_OPTIONS, *target, "--", url.host.strip("[]"), shlex.join(serve)]
        self._connection: _Connection | None = None
        self._connecting = threading.Lock()
        self._locks = 0
        """How many locks this process holds, on the connection that it has."""

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def _connected(self) -> _Connection:
        with self._connecting:
            connection = self._connection
            if connection is None or connection.is_broken:
                if self._locks:
                    raise StorageError(
                        f"the connection to {self._url} broke, and the lock of the store was lost with it: "
                        "repeat the command"
                    )
                self._connection = connection = _Connection(self._url, self._argv)
            return connection

    def _ask(self, operation: str, body: bytes | bytearray | memoryview = b"", **fields: object) -> _Reply:
        return self._checked(
            self._connected().ask(operation, body, fields, _PATIENCE), str(fields.get("name", ""))
        )

    def _checked(self, reply: _Reply, name: str) -> _Reply:
        """Return a reply. Raises the error that it carries."""
        answer, data = reply
        if answer.error is None:
            return answer, data
        if answer.error == "exists":
            raise ObjectExistsError(f"{self._url}/{name} exists already, and objects are never replaced")
        if answer.error == "missing":
            raise ObjectMissingError(f"{self._url}/{name} does not exist")
        raise KINDS.get(answer.error, StorageError)(f"{self._url}: {answer.message}")

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""
        self._ask("put", data, name=name)

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes."""
        data = self._ask("get", name=name, offset=offset, length=length)[1]
        if length is not None and len(data) > length:
            raise self._nonsense(f"{len(data):,} bytes of {name}, instead of {length:,}")
        return data

    def _nonsense(self, answer: str) -> StorageError:
        return StorageError(f"the server of {self._url} answers with {answer}: is it really 'castore serve'?")

    def size(self, name: str) -> int:
        """Return an object's length."""
        size = self._ask("size", name=name)[0].size
        if size < 0:
            raise self._nonsense(f"a length of {size}")
        return size

    def hash(self, name: str) -> tuple[bytes, int]:
        """Return the BLAKE3 hash and the length of an object, computed by the server."""
        answer, data = self._ask("hash", name=name)
        return data, answer.size

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder, in order."""
        while True:
            answer, _ = self._ask("list", name=folder, after=after)
            # Else a listing could go on for ever.
            if any(name <= before for before, name in pairwise((after, *answer.names))):
                raise self._nonsense(f"names of {folder}/ that are not in order")
            yield from answer.names
            if not answer.more or not answer.names:
                return
            after = answer.names[-1]

    def sync_dir(self, folder: str) -> None:
        """Make durable what `list` shows."""
        self._ask("sync_dir", name=folder)

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.size(name)
        self.delete_all([name])

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects."""
        listed = [*names]
        for at in range(0, len(listed), PAGE):
            self._ask("delete", names=tuple(listed[at : at + PAGE]))

    @contextlib.contextmanager
    def lock(self, *, exclusive: bool = False) -> Iterator[bool]:
        """Hold the lock of the store, which the server takes and releases."""
        connection = self._connected()
        answer, _ = self._checked(connection.ask("lock", b"", {"exclusive": exclusive}, _LOCK_PATIENCE), "")
        with self._connecting:
            self._locks += 1
            is_lost = self._connection is not connection
        try:
            if is_lost:
                raise StorageError(f"the connection to {self._url} broke: repeat the command")
            yield answer.flag
        finally:
            with contextlib.suppress(StorageError):
                connection.ask("unlock", b"", {"offset": answer.number}, _PATIENCE)
            with self._connecting:
                self._locks -= 1

    def close(self) -> None:
        """Close the connection; a further request makes a new one."""
        with self._connecting:
            connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    @property
    def process_id(self) -> int | None:
        """The ssh of the connection; None if there is none."""
        return None if self._connection is None else self._connection.process_id


_Reply = tuple[Answer, bytes]


class _Connection:
    """A running ssh. Raises UnreachableError, StorageError, UsageError."""

    def __init__(self, url: str, argv: list[str]) -> None:
        self._url = url
        if shutil.which(argv[0]) is None:
            raise UsageError(f"{url} needs the program {argv[0]}: install openssh-client")
        self._process = _started(argv)
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._frames = Frames(self._stdout, self._stdin)
        self._lock = threading.Lock()
        self._waiting: dict[int, Future[_Reply]] = {}
        self._unsent: queue.SimpleQueue[_Unsent | None] = queue.SimpleQueue()
        """Requests; None ends the connection."""
        self._numbers = 0
        self._failure: StorageError | None = None
        self._printed = b""
        self._stderr_ended = threading.Event()
        self._threads = [
            threading.Thread(target=work, daemon=True)
            for work in (self._send_requests, self._read_answers, self._read_stderr)
        ]
        for thread in self._threads:
            thread.start()
        answer, _ = self.ask("hello", b"", {}, _PATIENCE)
        if answer.error is not None:
            self.close()
            raise KINDS.get(answer.error, StorageError)(f"{url}: {answer.message}")

    @property
    def process_id(self) -> int:
        """The process of ssh."""
        return self._process.pid

    @property
    def is_broken(self) -> bool:
        """Whether no request can succeed any more."""
        return self._failure is not None

    def ask(
        self, operation: str, body: bytes | bytearray | memoryview, fields: dict[str, object], patience: float
    ) -> _Reply:
        """Send a request, and wait for its answer, for at most `patience` seconds."""
        future: Future[_Reply] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._numbers += 1
            self._waiting[self._numbers] = future
            # Not by this thread: an interrupt would leave a part of a request, and the next one would be read
            # as the rest of it; and a server that reads no more would block it for ever.
            request = Request(self._numbers, operation, **fields)  # type: ignore[arg-type]
            self._unsent.put((request, body))
        try:
            return future.result(patience)
        except TimeoutError:
            error = StorageTimeoutError(f"{self._url} did not answer for {patience:.0f} seconds")
            self._break(error)
            raise error from None
        except CastoreError as error:
            raise error.with_traceback(None) from None
        except BaseException:
            # An interrupt does not wait until a pack is uploaded.
            self._break(StorageError(f"the requests to {self._url} were interrupted"))
            raise

    def _send_requests(self) -> None:
        with contextlib.suppress(OSError):
            while (unsent := self._unsent.get()) is not None:
                self._frames.write(*unsent)
                del unsent
        with contextlib.suppress(OSError):
            self._stdin.close()

    def _read_answers(self) -> None:
        decoder = msgspec.msgpack.Decoder(Answer)
        error: StorageError | None = None
        try:
            while (frame := self._frames.read()) is not None:
                answer = decoder.decode(frame[0])
                with self._lock:
                    future = self._waiting.pop(answer.number, None)
                if future is not None and not future.done():
                    future.set_result((answer, frame[1]))
        except StorageError as failure:
            error = None if isinstance(failure, UnreachableError) else failure
        except msgspec.DecodeError:
            error = StorageError(f"{self._url}: what arrives is not from 'castore serve'")
        except OSError:
            pass
        self._break(error)
        self._stdout.close()

    def _read_stderr(self) -> None:
        stream = self._process.stderr
        if stream is not None:
            with stream:
                while data := os.read(stream.fileno(), 4096):
                    self._printed = (self._printed + data)[-_KEPT_ERRORS:]
        self._stderr_ended.set()

    def _break(self, error: StorageError | None) -> None:
        """End ssh, and fail all requests with an error; None if the connection ended by itself."""
        with self._lock:
            if self._failure is not None:
                return
            self._process.terminate()
        self._end()
        self._stderr_ended.wait(2)
        self._fail(error or self._ended())

    def _fail(self, error: StorageError) -> None:
        """Fail all requests that wait, and all later ones, with the first error of the connection."""
        with self._lock:
            failure = self._failure = self._failure or error
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            with contextlib.suppress(InvalidStateError):
                future.set_exception(failure)

    def _end(self, patience: float = _END_PATIENCE) -> None:
        """Wait until ssh has ended, and kill it if it takes too long."""
        self._unsent.put(None)
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ended(self) -> StorageError:
        """Return the error for a connection that ended, with the reason that ssh or the far side printed."""
        lines = self._printed.decode("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "")
        shown = "".join(character for character in reason if character.isprintable())
        if any(text in shown for text in _FOR_GOOD):
            return StorageError(f"cannot reach {self._url}: {shown}")
        return UnreachableError(
            f"the connection to {self._url} ended{': ' if shown else ''}{shown}; repeat the command when "
            "there is a connection: ssh with that host tests it"
        )

    def close(self) -> None:
        """End the connection, and wait until ssh has ended."""
        self._fail(StorageError(f"the connection to {self._url} was closed"))
        try:
            self._end(5)
        except BaseException:
            self._process.kill()
            raise
        for thread in self._threads:
            thread.join(5)


_Unsent = tuple[Request, "bytes | bytearray | memoryview"]


def _started(argv: list[str]) -> subprocess.Popen[bytes]:
    """Start ssh without SIGINT: Ctrl-C must not end the connection that castore needs to revert its work."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_FOR_GOOD: Final = (
    "Permission denied",
    "Host key verification failed",
    "REMOTE HOST IDENTIFICATION",
    "Could not resolve hostname",
    "command not found",
    "No such command",
    "castore:",
)
"""Of what ssh or the far side print: reasons that a repetition does not change."""
