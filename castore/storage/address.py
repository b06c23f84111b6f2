"""The address of a store: the path of a directory, or a URL such as `s3://bucket/folder`."""

from __future__ import annotations

import contextlib
import importlib
import re
from typing import TYPE_CHECKING, Final

from castore.errors import UsageError
from castore.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.storage.base import Storage
    from castore.storage.limited import Limits
    from castore.storage.url import StoreUrl

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_url(text: str) -> bool:
    """Return whether the address of a store is a URL, of any scheme."""
    return _URL.match(text) is not None


def _parsed(text: str) -> StoreUrl:
    from castore.storage.url import StoreUrl  # noqa: PLC0415 - urllib takes 3 ms, and most stores are directories

    return StoreUrl(text)


def normalized_url(text: str) -> str:
    """Return the one form of a URL of a store. Raises UsageError, also if no backend knows the scheme."""
    url = _parsed(text)
    if url.scheme not in _BACKENDS:
        known = ", ".join(f"{scheme}://" for scheme in _BACKENDS)
        raise UsageError(
            f"{text!r}: castore knows no store of the kind {url.scheme}://; name a directory "
            f"(./{url.scheme}:... for one of that name), or a URL that begins with one of {known}"
        )
    return str(url)


def open_storage(address: str, *, create: bool = False, limits: Limits | None = None) -> Storage:
    """Open the storage at an address, an absolute path or a URL.

    create: create the directory of the store if there is none. limits: of the bytes a second; None: none.
    Raises UsageError, NotFoundError, StorageError.
    """
    if not is_url(address):
        directory = LocalStorage(address, create=create)
        return directory if limits is None else limits.apply(directory)
    url = _parsed(normalized_url(address))
    from castore.storage.retrying import RetryingStorage  # noqa: PLC0415 - most stores are directories

    storage = _BACKENDS[url.scheme](url, create)
    # What is sent again takes bandwidth again.
    return RetryingStorage(storage if limits is None else limits.apply(storage))


def import_backend(address: str) -> None:
    """Import what the storage at an address needs, before the process is confined. Raises UsageError."""
    if is_url(address) and (module := _LIBRARIES.get(_parsed(normalized_url(address)).scheme)):
        with contextlib.suppress(ImportError):  # the backend reports it
            importlib.import_module(module)


def _object_storage(url: StoreUrl, _create: bool) -> Storage:
    from castore.storage.object_store import ObjectStorage  # noqa: PLC0415 - needs castore[s3]

    return ObjectStorage(url)


def _ssh_storage(url: StoreUrl, create: bool) -> Storage:
    from castore.storage.ssh import SshStorage  # noqa: PLC0415 - most stores are directories

    return SshStorage(url, create=create)


def _sftp_storage(url: StoreUrl, create: bool) -> Storage:
    from castore.storage.sftp import SftpStorage  # noqa: PLC0415 - needs castore[sftp]

    return SftpStorage(url, create=create)


_BACKENDS: Final[dict[str, Callable[[StoreUrl, bool], Storage]]] = {
    "s3": _object_storage,
    "gs": _object_storage,
    "az": _object_storage,
    "ssh": _ssh_storage,
    "sftp": _sftp_storage,
}
"""How to open the storage of each scheme: a function of the URL and of `create`."""
_LIBRARIES: Final = {"sftp": "asyncssh", "s3": "obstore", "gs": "obstore", "az": "obstore"}
"""What the backend of a scheme imports of others."""
