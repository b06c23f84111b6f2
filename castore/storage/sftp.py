"""Stores on SFTP servers: `sftp://`, through asyncssh, where nothing but SFTP is allowed.

An object is written to a file under `tmp/`, synced where the server can, and renamed to its name; a rename of
SFTP, unlike that of POSIX, fails if the name is taken. There is no lock, and no sync of a directory: if the
server loses power, an object whose name was new may be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import posixpath
import stat
import threading
from typing import TYPE_CHECKING, Any, Final, TypeVar

from castore.errors import (
    CastoreError,
    DamageError,
    NotFoundError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    StorageFullError,
    StoragePermissionError,
    StorageTimeoutError,
    TransientStorageError,
    UnreachableError,
    UsageError,
)
from castore.storage.base import MAX_WHOLE
from castore.storage.remote import RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from castore.storage.url import StoreUrl

try:
    import asyncssh
except ImportError:
    raise UsageError(
        "a store on an SFTP server needs the package asyncssh: pip install 'castore[sftp]'"
    ) from None

Result = TypeVar("Result")

_TMP: Final = "tmp"
_CONNECT_SECONDS: Final = 20
_PATIENCE: Final = 600.0
"""Seconds that one operation may take: a pack may be sent slowly."""
_STALE_SECONDS: Final = 7 * 86400
"""Temporary files older than this are abandoned."""
_FULL: Final = {"no space", "quota", "disk full"}


class SftpStorage(RemoteStorage):
    """A directory of an SFTP server; with `create`, it is created if it does not exist.

    Hosts, users, keys, agents and certificates are those of ~/.ssh/config (CASTORE_SSH_CONFIG names another
    file); an unknown host key is refused. Raises UsageError, NotFoundError, StorageError.
    """

    def __init__(self, url: StoreUrl, *, create: bool = False) -> None:
        if not url.path:
            raise UsageError(f"{url} names no directory: sftp://HOST/srv/store, or sftp://HOST/~/store")
        self._url = url
        self._root = url.path[2:] if url.path.startswith("~/") else "/" + url.path
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connecting = asyncio.Lock()
        self._client: Any = None
        self._connection: Any = None
        try:
            self._run("open", "", lambda sftp: self._open(sftp, create))
        except BaseException:
            self.close()
            raise

    @property
    def location(self) -> str:
        """The URL."""
        return str(self._url)

    async def _open(self, sftp: Any, create: bool) -> None:
        if create:
            await sftp.makedirs(self._path(_TMP), exist_ok=True)
        try:
            attributes = await sftp.stat(self._root)
        except asyncssh.SFTPNoSuchFile:
            raise NotFoundError(f"no store at {self._url}: there is no such directory") from None
        if attributes.permissions is not None and not stat.S_ISDIR(attributes.permissions):
            raise NotFoundError(f"no store at {self._url}: it is not a directory")
        await self._sweep(sftp)

    async def _sweep(self, sftp: Any) -> None:
        """Delete files that killed writers left in `tmp/`; the clock is that of the server."""
        with contextlib.suppress(asyncssh.SFTPError):
            entries = [
                entry for entry in await sftp.readdir(self._path(_TMP)) if entry.filename not in {".", ".."}
            ]
            newest = max((entry.attrs.mtime or 0 for entry in entries), default=0)
            for entry in entries:
                if newest - (entry.attrs.mtime or 0) > _STALE_SECONDS:
                    with contextlib.suppress(asyncssh.SFTPError):
                        await sftp.remove(self._path(_TMP, entry.filename))

    def _path(self, *names: str) -> str:
        return posixpath.join(self._root, *names)

    async def _connected(self) -> Any:
        async with self._connecting:
            if self._client is not None:
                return self._client
            given: dict[str, Any] = (
                {"config": [config]} if (config := os.environ.get("CASTORE_SSH_CONFIG")) else {}
            )
            if self._url.user is not None:
                given["username"] = self._url.user
            if self._url.port is not None:
                given["port"] = self._url.port
            self._connection = await asyncssh.connect(
                self._url.host.strip("[]"),
                **given,
                connect_timeout=_CONNECT_SECONDS,
                login_timeout=_CONNECT_SECONDS,
                keepalive_interval=15,
                keepalive_count_max=4,
            )
            try:
                self._client = await self._connection.start_sftp_client()
            except BaseException:
                await self._forget()
                raise
            return self._client

    async def _forget(self) -> None:
        connection, self._connection, self._client = self._connection, None, None
        if connection is not None:
            connection.abort()

    def _run(self, doing: str, name: str, operation: Callable[[Any], Awaitable[Result]]) -> Result:
        """Run an operation in the thread of the event loop. Raises CastoreError."""

        async def run() -> Result:
            try:
                return await operation(await self._connected())
            except (
                asyncssh.SFTPConnectionLost,
                asyncssh.SFTPNoConnection,
                ConnectionError,
                asyncssh.ConnectionLost,
            ):
                await self._forget()
                raise

        running = asyncio.run_coroutine_threadsafe(run(), self._loop)
        try:
            return running.result(_PATIENCE)
        except CastoreError:
            raise
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise self._refusal(doing, name, error) from error
        finally:
            # After an interrupt, or if the server does not answer in time.
            if running.cancel():
                asyncio.run_coroutine_threadsafe(self._forget(), self._loop)

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object."""

        async def write(sftp: Any) -> None:
            temporary = self._path(_TMP, os.urandom(16).hex())
            try:
                await self._write(sftp, temporary, bytes(data))
                await self._name(sftp, temporary, name)
            except BaseException:
                with contextlib.suppress(asyncssh.Error, OSError):
                    await sftp.remove(temporary)
                raise

        self._run("write", name, write)

    async def _write(self, sftp: Any, path: str, data: bytes) -> None:
        attributes = asyncssh.SFTPAttrs(permissions=0o600)
        try:
            file = await sftp.open(path, "xb", attributes)
        except asyncssh.SFTPNoSuchFile:
            await sftp.mkdir(posixpath.dirname(path), asyncssh.SFTPAttrs(permissions=0o700))
            file = await sftp.open(path, "xb", attributes)
        async with file:
            await file.write(data)
            with contextlib.suppress(asyncssh.SFTPOpUnsupported):
                await file.fsync()

    async def _name(self, sftp: Any, temporary: str, name: str) -> None:
        path = self._path(name)
        try:
            await sftp.rename(temporary, path)
        except asyncssh.SFTPNoSuchFile:
            with contextlib.suppress(asyncssh.SFTPFailure):
                await sftp.mkdir(posixpath.dirname(path), asyncssh.SFTPAttrs(permissions=0o700))
            await self._rename(sftp, temporary, path, name)
        except asyncssh.SFTPFailure as error:
            await self._refuse_existing(sftp, path, name)
            raise error from None

    async def _rename(self, sftp: Any, temporary: str, path: str, name: str) -> None:
        try:
            await sftp.rename(temporary, path)
        except asyncssh.SFTPFailure as error:
            await self._refuse_existing(sftp, path, name)
            raise error from None

    async def _refuse_existing(self, sftp: Any, path: str, name: str) -> None:
        if await sftp.exists(path):
            raise ObjectExistsError(f"{self._url}/{name} exists already, and objects are never replaced")

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes; the requests for its pieces are sent at once."""

        async def read(sftp: Any) -> bytes:
            async with await sftp.open(self._path(name), "rb") as file:
                size = (await file.stat()).size
                wanted = max(size - offset, 0) if length is None else min(length, max(size - offset, 0))
                if length is None and wanted > MAX_WHOLE:
                    raise DamageError(f"{name} is damaged: it has {size:,} bytes, more than castore writes")
                return bytes(await file.read(wanted, offset)) if wanted else b""

        return self._run("read", name, read)

    def size(self, name: str) -> int:
        """Return an object's length."""

        async def ask(sftp: Any) -> int:
            return int((await sftp.stat(self._path(name))).size)

        return self._run("read", name, ask)

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder."""

        async def ask(sftp: Any) -> list[str]:
            try:
                names = await sftp.listdir(self._path(folder))
            except asyncssh.SFTPNoSuchFile:
                await sftp.stat(self._root)
                return []
            return [name for name in names if name not in {".", ".."} and "/" not in name and name > after]

        yield from self._run("list", folder, ask)

    def delete(self, name: str) -> None:
        """Delete an object."""

        async def remove(sftp: Any) -> None:
            await sftp.remove(self._path(name))

        self._run("delete", name, remove)

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects; many requests are under way at a time."""
        listed = [*names]

        async def remove(sftp: Any) -> None:
            async def one(name: str) -> None:
                with contextlib.suppress(asyncssh.SFTPNoSuchFile):
                    await sftp.remove(self._path(name))

            for at in range(0, len(listed), _AT_ONCE):
                await asyncio.gather(*map(one, listed[at : at + _AT_ONCE]))

        self._run("delete", listed[0] if listed else "", remove)

    def close(self) -> None:
        """Close the connection; a further operation makes a new one."""
        with contextlib.suppress(CastoreError, TimeoutError):
            asyncio.run_coroutine_threadsafe(self._forget(), self._loop).result(5)

    def _refusal(self, doing: str, name: str, error: Exception) -> StorageError:
        what = f"{self._url}/{name}".rstrip("/")
        failed = f"cannot {doing} {what}"
        text = str(getattr(error, "reason", "") or error)
        reason = "".join(character for character in text if character.isprintable())
        if isinstance(error, asyncssh.SFTPNoSuchFile):
            return ObjectMissingError(f"{what} does not exist")
        if isinstance(error, asyncssh.SFTPPermissionDenied):
            return StoragePermissionError(f"{failed}: the server does not allow it to this user")
        if isinstance(
            error, asyncssh.SFTPConnectionLost | asyncssh.SFTPNoConnection | asyncssh.ConnectionLost
        ):
            return UnreachableError(f"{failed}: the connection broke")
        if isinstance(error, asyncssh.SFTPError):
            kind = StorageFullError if any(word in reason.lower() for word in _FULL) else StorageError
            return kind(f"{failed}: {reason}; is there space left, and does the user own the directory?")
        if isinstance(error, asyncssh.PermissionDenied):
            return StoragePermissionError(
                f"cannot log in to {self._url}: {reason}; which key does ssh use there?"
            )
        if isinstance(error, asyncssh.HostKeyNotVerifiable):
            return StorageError(
                f"cannot trust the host of {self._url}: {reason}; compare its key, and log in once with ssh"
            )
        if isinstance(error, asyncssh.Error):
            return TransientStorageError(f"{failed}: {reason}")
        if isinstance(error, TimeoutError):
            return StorageTimeoutError(f"{failed}: the server did not answer in time")
        if isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
        host = self._url.host
        return UnreachableError(
            f"{failed}: {reason}; repeat the command when there is a connection, test it with: sftp {host}"
        )


_AT_ONCE: Final = 64
"""Deletions under way at a time."""
