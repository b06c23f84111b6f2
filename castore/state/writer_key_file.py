"""The writer key on this machine: where it comes from, and how it is kept."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from castore.crypto import WriterKey
from castore.errors import StorageError, UsageError
from castore.state.paths import read_private, refusal, write_private
from castore.storage.os_files import sync_if_supported

if TYPE_CHECKING:
    from castore.state.paths import MachinePaths
    from castore.storage import Storage


def next_of(path: str) -> str:
    """Return the path of the key that is about to take the place of that at `path`."""
    return f"{path}.next"


def keep_writer_key(path: str, writer: WriterKey, storage: Storage) -> None:
    """Write a writer key's file, durably, over another. Raises StorageError."""
    note = (
        f"# The writer key of the castore store {writer.store_id.hex()},\n"
        f"# {_noted(storage.location)}. It adds to the store and lists it; it\n"
        "# does not open contents. Keep it secret.\n"
    )
    write_private(path, (note + writer.text() + "\n").encode())


def has_kept_key_of(places: MachinePaths, location: str) -> bool:
    """Whether this machine keeps a writer key of a store that was at that place."""
    for path in places.writer_keys():
        with contextlib.suppress(StorageError):
            if _noted(location) in (read_private(path) or ""):
                return True
    return False


def _noted(location: str) -> str:
    return f"at {location!r} when this was written"


def drop_next(path: str) -> None:
    """Remove the key that was about to take the place of that at `path`, if there is one."""
    try:
        os.unlink(next_of(path))
        sync_if_supported(os.path.dirname(path))
    except FileNotFoundError:
        pass
    except OSError as error:
        raise refusal("remove", next_of(path), error) from error


def local_writer_keys(path: str, store_id: bytes, storage: Storage) -> list[WriterKey]:
    """Return the writer keys that this machine keeps of a store, the present one first.

    The second is of a replacement that was cut off. Raises UsageError, and StorageError where a file cannot
    be read.
    """
    text = read_private(path)
    if text is None:
        return []
    found = [_parse(path, text, store_id, storage)]
    with contextlib.suppress(UsageError):
        if (text := read_private(next_of(path))) is not None:
            found.append(_parse(path, text, store_id, storage))
    return found


def keep_accepted(path: str, kept: WriterKey, accepted: WriterKey, storage: Storage) -> None:
    """Keep the key that opens the accepted configuration, and the admins that it names."""
    if accepted.text() == kept.text():
        return
    with contextlib.suppress(StorageError):  # a full disk: the next command tries again
        keep_writer_key(path, accepted, storage)
        drop_next(path)


def _parse(path: str, text: str, store_id: bytes, storage: Storage) -> WriterKey:
    again = f"with an identity, 'castore key adopt --store {storage.location}' writes it again"
    try:
        writer = WriterKey.parse(text)
    except UsageError:
        raise UsageError(f"the file {path} holds no writer key; {again}") from None
    if writer.store_id != store_id:
        raise UsageError(
            f"the writer key in {path} is of the store {writer.store_id.hex()}, and the store at "
            f"{storage.location} is {store_id.hex()}; {again}"
        )
    return writer
