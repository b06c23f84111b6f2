"""Stores on other machines: `ssh://`, through the system's ssh and `castore serve --stdio` on the far side.

One connection carries the requests of all threads. If it breaks, the next request makes a new one; but a lock
is lost with it, and its holder must not continue.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import threading
from concurrent.futures import Future
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
        name = str(fields.get("name", ""))
        patience = _LOCK_PATIENCE if operation == "lock" else _PATIENCE
        answer, data = self._connected().ask(operation, body, fields, patience)
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
        return self._ask("get", name=name, offset=offset, length=length)[1]

    def size(self, name: str) -> int:
        """Return an object's length."""
        return self._ask("size", name=name)[0].size

    def hash(self, name: str) -> tuple[bytes, int]:
        """Return the BLAKE3 hash and the length of an object, computed by the server."""
        answer, data = self._ask("hash", name=name)
        return data, answer.size

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder, in order."""
        while True:
            answer, _ = self._ask("list", name=folder, after=after)
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
        answer, _ = self._ask("lock", exclusive=exclusive)
        with self._connecting:
            self._locks += 1
        try:
            yield answer.flag
        finally:
            with contextlib.suppress(StorageError):
                self._ask("unlock", offset=answer.number)
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
        self._process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, close_fds=True
        )
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError
        self._stdin, self._stdout = self._process.stdin, self._process.stdout
        self._frames = Frames(self._stdout, self._stdin)
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._waiting: dict[int, Future[_Reply]] = {}
        self._numbers = 0
        self._failure: StorageError | None = None
        self._printed = b""
        self._stderr_ended = threading.Event()
        self._readers = [
            threading.Thread(target=work, daemon=True) for work in (self._read_answers, self._read_stderr)
        ]
        for reader in self._readers:
            reader.start()
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
        """Send a request, and wait for its answer."""
        future: Future[_Reply] = Future()
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._numbers += 1
            number = self._numbers
            self._waiting[number] = future
        try:
            with self._writing:
                self._frames.write(Request(number, operation, **fields), body)  # type: ignore[arg-type]
        except OSError:
            self._break(None)
        try:
            return future.result(patience)
        except TimeoutError:
            error = StorageTimeoutError(f"{self._url} did not answer for {patience:.0f} seconds")
            self._break(error)
            raise error from None
        except CastoreError as error:
            raise error.with_traceback(None) from None

    def _read_answers(self) -> None:
        decoder = msgspec.msgpack.Decoder(Answer)
        error: StorageError | None = None
        try:
            while (frame := self._frames.read()) is not None:
                answer = decoder.decode(frame[0])
                with self._lock:
                    future = self._waiting.pop(answer.number, None)
                if future is not None:
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
        """Fail all requests that wait, and all later ones. error: None if the connection ended."""
        with self._lock:
            if self._failure is not None:
                return
            self._process.kill()
        self._stderr_ended.wait(2)
        with self._lock:
            if self._failure is None:
                self._failure = error or self._ended()
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(self._failure)
        self._process.wait()
        with contextlib.suppress(OSError):
            self._stdin.close()

    def _ended(self) -> StorageError:
        """Return the error for a connection that ended, with the reason that ssh or the far side printed."""
        lines = self._printed.decode("utf-8", "replace").split("\n")
        reason = next((line.strip() for line in reversed(lines) if line.strip()), "")
        shown = "".join(character for character in reason if character.isprintable())
        if any(text in shown for text in _FOR_GOOD):
            return StorageError(f"cannot reach {self._url}: {shown}")
        return UnreachableError(f"the connection to {self._url} ended{': ' if shown else ''}{shown}")

    def close(self) -> None:
        """End the connection, and wait until ssh has ended."""
        with self._lock:
            if self._failure is None:
                self._failure = StorageError(f"the connection to {self._url} was closed")
        with contextlib.suppress(OSError):
            self._stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._process.kill()
        self._process.wait()
        for reader in self._readers:
            reader.join(5)


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
