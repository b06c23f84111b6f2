"""Stores in object stores: `s3://`, `gs://` and `az://`, through obstore.

An object of a store is one object of the bucket, written by one conditional request: it exists completely or
not at all, and is never replaced. Nothing is retried here: see `castore.storage.retrying`.
"""

from __future__ import annotations

import os
import re
import threading
from concurrent.futures import Future
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from castore.errors import (
    DamageError,
    ObjectExistsError,
    ObjectMissingError,
    StorageError,
    StoragePermissionError,
    StorageTimeoutError,
    ThrottledError,
    TransientStorageError,
    UnreachableError,
    UsageError,
)
from castore.storage.base import MAX_WHOLE
from castore.storage.remote import RemoteStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from obstore.store import RetryConfig

    from castore.storage.url import StoreUrl

try:
    import obstore
    from obstore import exceptions as failures
    from obstore.store import AzureStore, GCSStore, S3Store
except ImportError:
    raise UsageError(
        "a store in an object store needs the package obstore: pip install 'castore[s3]'"
    ) from None

Result = TypeVar("Result")

_LISTED: Final = 1000
"""Names in one answer of a listing: what the servers give at most."""
_NO_RETRY: Final[RetryConfig] = {"max_retries": 0, "retry_timeout": timedelta(seconds=0)}
_CONNECT_TIMEOUT: Final = timedelta(seconds=10)
_REQUEST_TIMEOUT: Final = timedelta(minutes=5)
"""A pack of 64 MiB takes so long at 2 Mbit/s."""
_SHORT_TIMEOUT: Final = timedelta(minutes=1)
"""For requests without the data of objects: a server that hangs is noticed sooner."""

_FAILURES: Final = (failures.BaseError, FileNotFoundError)
"""What obstore raises."""

# Of the text of an error, which obstore does not give in parts.
_STATUS: Final = re.compile(r"\bstatus: ([1-5][0-9]{2}),")
_CODE: Final = re.compile(r"<Code>([A-Za-z0-9]{1,60})</Code>")
_KIND: Final = re.compile(r"\bkind: (Connect|Timeout)\b")
_NOT_SATISFIABLE: Final = 416
_CONFLICT: Final = "ConditionalRequestConflict"
"""S3: a deletion or another write of the name was in progress; nothing was written."""


class ObjectStorage(RemoteStorage):
    """The objects below a folder of a bucket. Raises UsageError, StorageError."""

    def __init__(self, url: StoreUrl) -> None:
        if url.user is not None or url.port is not None:
            raise UsageError(
                f"{url}: the URL of an object store names a bucket, without user and port; a server other "
                "than that of the cloud is named by AWS_ENDPOINT_URL"
            )
        self._url = str(url)
        self._prefix = url.path + "/" if url.path else ""
        self._store = _opened(url, _REQUEST_TIMEOUT)
        self._metadata = _opened(url, _SHORT_TIMEOUT)
        """The same, for requests without the data of objects."""

    @property
    def location(self) -> str:
        """The URL."""
        return self._url

    def put(self, name: str, data: bytes | bytearray | memoryview) -> None:
        """Write an object by one request, unless one of that name exists."""
        try:
            _interruptible(
                lambda: obstore.put(
                    self._store, self._prefix + name, data, mode="create", use_multipart=False
                )
            )
        except _FAILURES as error:
            raise self._refusal("write", name, error) from error

    def get(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """Return an object's bytes by one request."""
        try:
            if length is None and offset == 0:
                return _interruptible(lambda: self._whole(name))
            if length == 0:
                self.size(name)
                return b""
            wanted: Any = {"offset": offset} if length is None else (offset, offset + length)
            start, end, data = _interruptible(lambda: self._range(name, wanted))
        except _FAILURES as error:
            if _status(error) == _NOT_SATISFIABLE:
                return b""  # the range begins at or after the end of the object
            raise self._refusal("read", name, error) from error
        if start != offset or len(data) != end - start or (length is not None and len(data) > length):
            raise StorageError(
                f"cannot read {self._url}/{name}: the server ignores ranges; castore store probe {self._url}"
            )
        return data

    def _whole(self, name: str) -> bytes:
        answer = obstore.get(self._store, self._prefix + name)
        if (size := answer.meta["size"]) > MAX_WHOLE:
            raise DamageError(f"{name} is damaged: it has {size:,} bytes, more than castore writes")
        return bytes(answer.bytes())

    def _range(self, name: str, wanted: Any) -> tuple[int, int, bytes]:
        """Return the bytes of a range, and the range of the answer's head."""
        answer = obstore.get(self._store, self._prefix + name, options={"range": wanted})
        return *answer.range, bytes(answer.bytes())

    def size(self, name: str) -> int:
        """Return an object's length."""
        try:
            return int(_interruptible(lambda: obstore.head(self._metadata, self._prefix + name))["size"])
        except _FAILURES as error:
            raise self._refusal("read", name, error) from error

    def list(self, folder: str, after: str = "") -> Iterator[str]:
        """Yield the names in a folder, in order, by requests of 1000."""
        prefix = f"{self._prefix}{folder}/"
        try:
            pages = obstore.list(
                self._metadata, prefix, offset=prefix + after if after else None, chunk_size=_LISTED
            )
            while page := _interruptible(partial(_next_page, pages)):
                for found in page:
                    name = found["path"][len(prefix) :]
                    if "/" not in name:
                        yield name
        except _FAILURES as error:
            raise self._refusal("list", folder, error) from error

    def delete(self, name: str) -> None:
        """Delete an object."""
        self.size(name)  # a server reports the deletion of a missing object as done
        self.delete_all([name])

    def delete_all(self, names: Iterable[str]) -> None:
        """Delete objects, a thousand by one request where the server can."""
        paths = [self._prefix + name for name in names]
        for at in range(0, len(paths), _LISTED):
            some = paths[at : at + _LISTED]
            try:
                self._delete_paths(some)
            except _FAILURES as error:
                raise self._refusal("delete", some[0][len(self._prefix) :], error) from error

    def _delete_paths(self, paths: Sequence[str]) -> None:
        try:
            _interruptible(lambda: obstore.delete(self._metadata, paths))
        except FileNotFoundError:
            # Google and Azure report an object that is missing; those after it may not have been deleted.
            if len(paths) > 1:
                for path in paths:
                    self._delete_paths([path])

    def _refusal(self, doing: str, name: str, error: BaseException) -> StorageError:
        """Return the error for a failure of obstore, without its text: that may contain credentials."""
        what = f"{self._url}/{name}"
        status, code = _status(error), _code(error)
        failed = f"cannot {doing} {what}: "
        reason = " ".join(filter(None, (str(status or ""), code)))
        if code == "NoSuchBucket":
            return StorageError(f"{failed}there is no such bucket; create it, or correct the URL")
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(f"{what} does not exist")
        if code == _CONFLICT:
            return TransientStorageError(f"{failed}another request for this name is in progress")
        if isinstance(error, failures.AlreadyExistsError | failures.PreconditionError):
            return ObjectExistsError(f"{what} exists already, and objects are never replaced")
        if status in _DENIED:
            return StoragePermissionError(
                f"{failed}the server refuses these credentials ({reason}); what they need to be allowed is "
                "in: castore help remote"
            )
        return _other_refusal(failed, error, status, reason)


def _other_refusal(failed: str, error: BaseException, status: int | None, reason: str) -> StorageError:
    if status in _BUSY:
        return ThrottledError(f"{failed}the server asks for fewer requests ({reason})")
    if status is not None and status >= _SERVER_FAILED:
        return TransientStorageError(f"{failed}the server failed ({reason})")
    if status is not None:
        return StorageError(f"{failed}the server refused ({reason})")
    kind = _KIND.search(str(error))
    if kind is not None and kind[1] == "Timeout":
        return StorageTimeoutError(f"{failed}the server did not answer in time")
    if kind is not None:
        return UnreachableError(
            f"{failed}there is no connection to the server; repeat the command when it runs, or correct "
            "AWS_ENDPOINT_URL"
        )
    if isinstance(error, failures.GenericError):
        return UnreachableError(f"{failed}the connection to the server broke, or there are no credentials")
    return StorageError(f"{failed}the request was refused ({type(error).__name__})")


_DENIED: Final = {401, 403}
_BUSY: Final = {429, 503}
_SERVER_FAILED: Final = 500


def _status(error: BaseException) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


def _code(error: BaseException) -> str:
    found = _CODE.search(str(error))
    return found[1] if found else ""


def _next_page(pages: Any) -> Any:
    """Return the next page of a listing; None after the last."""
    return next(pages, None)


def _interruptible(request: Callable[[], Result]) -> Result:
    """Return the result of a request; Ctrl-C ends the wait for it, which obstore's functions do not allow."""
    if threading.current_thread() is not threading.main_thread():
        return request()  # signals interrupt the main thread only
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(request())
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result()


def _endpoint() -> str | None:
    """Return the URL of the S3 server if it is not Amazon's, as the AWS tools find it. Raises UsageError."""
    for variable in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if value := os.environ.get(variable):
            if not _HTTP.fullmatch(value):
                raise UsageError(f"{variable} is not the URL of a server: https://HOST[:PORT]")
            return value
    if os.environ.get("AWS_ENDPOINT_URL") == "":
        raise UsageError("AWS_ENDPOINT_URL is empty: unset it, or set it to https://HOST[:PORT]")
    return None


_HTTP: Final = re.compile(r"https?://[^\s/@]+(/[^\s@]*)?", re.IGNORECASE)


def _opened(url: StoreUrl, timeout: timedelta) -> Any:
    """Return obstore's store; credentials and endpoint are those of the environment, files and instance."""
    client: Any = {"connect_timeout": _CONNECT_TIMEOUT, "timeout": timeout, "user_agent": "castore"}
    settings: Any = {"client_options": client, "retry_config": _NO_RETRY}
    try:
        if url.scheme == "s3":
            if endpoint := _endpoint():
                settings["endpoint"] = endpoint
                # Without TLS is the user's decision: objects are encrypted, their names are not secret.
                client["allow_http"] = endpoint.lower().startswith("http://")
            return S3Store(url.host, **settings)
        return (GCSStore if url.scheme == "gs" else AzureStore)(url.host, **settings)
    except (failures.BaseError, ValueError) as error:
        reason = str(error).partition("Debug source:")[0].strip()
        raise StorageError(
            f"cannot open {url}: the settings in the environment are not usable: {reason}"
        ) from error
