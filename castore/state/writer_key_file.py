"""The file of the writer key on this machine: how it is read, written and replaced."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from castore.crypto import WriterKey
from castore.crypto.writer_key import how_to_adopt
from castore.errors import StorageError, UsageError
from castore.fs.durable import read_private, remove_private, write_private

if TYPE_CHECKING:
    from castore.state.paths import MachinePaths
    from castore.storage import Storage


def next_of(path: str) -> str:
    """Return the path of the key that is about to replace the one at `path`."""
    return f"{path}.next"


def keep_writer_key(path: str, writer: WriterKey, storage: Storage) -> None:
    """Write the file of a writer key, durably, and replace an existing one. Raises StorageError."""
    note = (
        f"# The writer key of the castore store {writer.store_id.hex()},\n"
        f"# {_noted(storage.location)}. It adds to the store and lists it; it\n"
        "# does not decrypt content. Keep it secret.\n"
    )
    write_private(path, (note + writer.text() + "\n").encode())


def has_kept_key_of(paths: MachinePaths, location: str) -> bool:
    """Return whether this machine keeps a writer key of a store that was at that location."""
    for path in paths.writer_keys():
        with contextlib.suppress(StorageError):
            if _noted(location) in (read_private(path) or ""):
                return True
    return False


def _noted(location: str) -> str:
    return f"at {location!r} when this was written"


def drop_next(path: str) -> None:
    """Delete the key that was about to replace the one at `path`, if there is one. Raises StorageError."""
    remove_private(next_of(path))


def local_writer_keys(path: str, store_id: bytes, storage: Storage) -> list[WriterKey]:
    """Return the writer keys that this machine keeps for a store, the present one first.

    The second one is from an interrupted rotation. Raises UsageError for an invalid file, StorageError for an
    unreadable one.
    """
    text = read_private(path)
    if text is None:
        return []
    keys = [_parse(path, text, store_id, storage)]
    with contextlib.suppress(UsageError):
        if (text := read_private(next_of(path))) is not None:
            keys.append(_parse(path, text, store_id, storage))
    return keys


def keep_accepted(path: str, kept: WriterKey, accepted: WriterKey, storage: Storage) -> None:
    """Keep the key that opens the accepted configuration, together with the admins that it names."""
    if accepted.text() == kept.text():
        return
    with contextlib.suppress(StorageError):  # a full disk: the next command tries again
        keep_writer_key(path, accepted, storage)
        drop_next(path)


def _parse(path: str, text: str, store_id: bytes, storage: Storage) -> WriterKey:
    again = f"to write it again, {how_to_adopt(storage.location)}"
    try:
        writer = WriterKey.parse(text)
    except UsageError:
        raise UsageError(f"the file {path} holds no valid writer key; {again}") from None
    if writer.store_id != store_id:
        raise UsageError(
            f"the writer key in {path} belongs to the store {writer.store_id.hex()}, and the store at "
            f"{storage.location} is {store_id.hex()}; {again}"
        )
    return writer
