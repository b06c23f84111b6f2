"""Journals of restores in place: the steps of each and how to undo them, in castore's own state directory.

A journal is durable before its restore changes anything, and is deleted when nothing remains to be done. It
is trusted, because no other user can write there; the tree itself may belong to another user. The file of a
journal holds a header, the journal, and a byte that records how the restore ended. Its creator holds a lock
on the file while the restore is running.
"""

from __future__ import annotations

import contextlib
import os
import struct
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec
from blake3 import blake3

from castore.errors import BusyError, CastoreError, NotIntactError
from castore.fs.durable import write_private
from castore.fs.flock import try_lock
from castore.model.tree import Entry  # noqa: TC001 - msgspec needs it

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[bytes, ...]
Action = Literal["remove", "replace", "create", "metadata"]
Ids = tuple[int, int]
"""Device and inode."""

_MAGIC: Final = b"castorej"
_HEADER: Final = struct.Struct("<8sII16s")
"""Magic, version, length of the journal in bytes, its checksum."""
_VERSION: Final = 2
_ENDS: Final = {b"\0": "", b"!": "done", b"~": "reverted"}
_AT_WORK: Final[set[str]] = set()
"""Paths of the journals of restores that this process is carrying out."""


class Journal(msgspec.Struct, frozen=True, array_like=True):
    """The steps of a restore, and what is needed to undo them."""

    steps: tuple[tuple[Action, Path], ...]
    before: tuple[tuple[Path, Entry, Ids], ...]
    """Path, previous metadata, and device and inode of each file that is changed in place."""
    time: int | None
    """The modification time (ns) that the top directory gets in the end; None: it keeps its own."""
    owner: str = ""
    """The service of the rollback that this is a part of; it is recovered with all its parts."""
    path: bytes = b""
    """The path of the top directory, without links."""
    top: Ids = (0, 0)
    undo: bytes = b""
    """The name of the undo directory, in the top directory."""
    undo_ids: Ids = (0, 0)
    token: bytes = b""
    """The beginning of the undo directory's list of steps."""
    boot: str = ""
    """The boot in which the device numbers were taken."""
    created: int = 0
    """In nanoseconds since 1970."""
    owned: bool = True
    """Whether the undo directory belongs to castore's user: some file systems keep no owners."""

    @property
    def shown(self) -> str:
        """The path of the top directory, for messages."""
        return os.fsdecode(self.path)

    @property
    def undo_path(self) -> str:
        """The path of the undo directory, for messages."""
        return os.path.join(self.shown, os.fsdecode(self.undo))


class Record(NamedTuple):
    """A journal that was read."""

    file: str
    journal: Journal
    end: str
    """How the restore ended: "done", "reverted", or empty if it did not."""


class JournalFile:
    """The journal of a running restore, locked until it is closed."""

    def __init__(self, path: str) -> None:
        """Open and lock a journal. Raises BusyError if its restore is running, FileNotFoundError, OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        locked = _lock(self._fd)
        if not locked or not os.fstat(self._fd).st_nlink:
            self.close()
            if locked:
                raise FileNotFoundError(path)
            raise BusyError(f"a restore in place is running ({path}): wait for its end")
        _AT_WORK.add(path)

    @classmethod
    def create(cls, folder: str, journal: Journal) -> JournalFile:
        """Write a journal, durably. Raises StorageError, OSError."""
        path = os.path.join(folder, os.urandom(8).hex())
        data = msgspec.msgpack.encode(journal)
        head = _HEADER.pack(_MAGIC, _VERSION, len(data), blake3(data).digest(16))
        # The last byte is overwritten at the end of the restore, so that a full disk cannot prevent that.
        try:
            write_private(path, head + data + b"\0")
            return cls(path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise

    def end(self, mark: Literal[b"!", b"~"]) -> None:
        """Record durably that all was restored, or that all was reverted."""
        os.pwrite(self._fd, mark, os.fstat(self._fd).st_size - 1)
        os.fsync(self._fd)

    def discard(self) -> None:
        """Delete the journal: nothing remains to be done."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        _AT_WORK.discard(self.path)

    def close(self) -> None:
        """Close the journal, so that another process can take it over."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        _AT_WORK.discard(self.path)


def _lock(fd: int) -> bool:
    try:
        return try_lock(fd)
    except OSError:
        return True  # a file system without locks


def is_at_work(record: Record) -> bool:
    """Whether the restore of a journal is being carried out or recovered now."""
    if record.file in _AT_WORK:
        return True
    try:
        fd = os.open(record.file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _lock(fd)
    finally:
        os.close(fd)


def journals(folder: str) -> list[Record]:
    """Return the journals of all restores in place that have not ended, newest first.

    Raises NotIntactError if a journal is damaged.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    # A journal that was killed while being written leaves only a partial file with a longer name.
    all_journals = [read(os.path.join(folder, name)) for name in names if "." not in name]
    return sorted((one for one in all_journals if one is not None), key=lambda one: -one.journal.created)


def read(path: str) -> Record | None:
    """Return a journal; None if it no longer exists. Raises NotIntactError, CastoreError."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CastoreError(f"cannot read {path}, the journal of a restore: {error.strerror}") from error
    plain, end = data[_HEADER.size : -1], data[-1:]
    if len(data) > _HEADER.size:
        magic, version, length, checksum = _HEADER.unpack_from(data)
        if magic == _MAGIC and version != _VERSION:
            raise NotIntactError(
                f"the journal of a restore in place, {path}, is of version {version}, and this castore knows "
                f"{_VERSION}: recover it with the castore that wrote it; if you have repaired the tree, "
                "delete it"
            )
        if (magic, length, checksum) == (_MAGIC, len(plain), blake3(plain).digest(16)) and end in _ENDS:
            with contextlib.suppress(msgspec.MsgspecError):
                return Record(path, msgspec.msgpack.decode(plain, type=Journal), _ENDS[end])
    raise NotIntactError(
        f"the journal of a restore in place, {path}, is damaged: look for a directory .castore-aside-... in "
        "the tree that was being restored, move back what you need of it, then delete both"
    )


def unfinished(folder: str, path: bytes) -> Iterator[Record]:
    """Yield the journals of restores that have not ended, of a directory, those below it, and those above it.

    path: of the directory, without links. Restores that this process carries out are skipped.
    """
    wanted = os.path.join(path, b"")
    for record in journals(folder):
        found = os.path.join(record.journal.path, b"")
        if (found.startswith(wanted) or wanted.startswith(found)) and record.file not in _AT_WORK:
            if record.end:
                _drop_if_cleared(record)
            else:
                yield record


def interrupted(folder: str) -> list[str]:
    """Return the directories of interrupted restores in place that are not part of a service's rollback."""
    of_trees = [file for file in journals(folder) if not file.journal.owner and not is_at_work(file)]
    return list(dict.fromkeys(file.journal.shown for file in of_trees))


def _drop_if_cleared(record: Record) -> None:
    """Delete the journal of an ended restore, once its undo directory was removed by hand."""
    with contextlib.suppress(OSError):
        if not os.path.lexists(record.journal.undo_path) and not is_at_work(record):
            os.unlink(record.file)


def refuse_unfinished(folder: str, path: bytes) -> None:
    """Raise CastoreError if a restore in place was interrupted at a directory, below it, or above it."""
    for record in unfinished(folder, path):
        journal = record.journal
        if is_at_work(record):
            raise BusyError(f"a restore into {journal.shown} is running: wait for its end")
        if journal.owner:
            raise CastoreError(is_part(journal))
        raise CastoreError(
            f"an earlier restore into {journal.shown} was interrupted: {journal.undo_path} holds what it "
            f"moved aside; revert it with: castore recover {journal.shown}"
        )


def is_part(journal: Journal) -> str:
    """Return a message: which rollback a journal is part of, and how to end it."""
    return (
        f"{journal.undo_path} is part of a rollback of {journal.owner!r} that was interrupted, which is "
        f"recovered with all its parts: castore recover {journal.owner} (if that knows of no rollback: "
        f"castore recover --forget {journal.shown}/)"
    )


def boot_id() -> str:
    """Return the identifier of this boot of the machine; empty if it is not known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def same_file(ids: Ids, info: os.stat_result, boot: str) -> bool:
    """Whether an open file is the one with these ids, which were taken in the boot `boot`.

    After another boot devices may have other numbers, and some file systems number their files differently.
    Then any file is accepted.
    """
    return ids == (info.st_dev, info.st_ino) or boot != boot_id()
