"""A file system in memory that can lose its power, to lie below a local store (castore/storage/os_files.py).

Each file and directory is an inode that has, in addition to what a process sees, what would be found after a
loss of power. What a file system may do in between is modelled after ALICE (Pillai et al., OSDI 2014),
as weak as POSIX permits and file systems in use have been seen to be:

- A file's bytes are durable by `fsync` of the file. Of bytes not synced, nothing may be left, or all, or
  some of the writes, the last of them torn at any byte; or the file has its length, and zeros where
  data should be. The name is not made durable with it.
- A directory's entries are durable by `sync_directory`. Each entry of its own is after the loss what it
  was at some moment since then: one step (create, link, unlink, mkdir) is there or is not, in one
  directory and across directories in any order.
- A rename is two steps, a name that comes and one that goes, which are kept or lost apart, as ALICE's
  weakest model has it: both names, or neither, may be left. Journals keep it whole; nothing of ours
  may need that.
- What a failed `fsync` did not write is never written: the next one says that all is well, and it is
  not (Linux; Rebello et al., ATC 2020).

Out of scope: directories that lose synced entries, bits that rot (tests/damage), another disk.

One run of a scenario is logged. `Log.cuts` goes through the log again and gives, after each of its steps,
what the disk may hold if the power is lost just then; marks in the log say what had been
acknowledged. A file with two names is two files in these.
"""

from __future__ import annotations

import errno
import itertools
import os
import threading
import time
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from castore.storage.os_files import Files

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator

    from castore.fs.durable import Data

ROOT = 0


@dataclass
class FileNode:
    """A regular file."""

    live: bytearray = field(default_factory=bytearray)
    durable: bytes = b""
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """Since the last sync."""
    forsaken: bool = False
    """A sync of it has failed."""


@dataclass
class DirectoryNode:
    """A directory: names, each with an inode or None."""

    live: dict[str, int] = field(default_factory=dict)
    durable: dict[str, int] = field(default_factory=dict)
    pending: dict[str, list[int | None]] = field(default_factory=dict)
    """What each entry became, step by step, since the last sync."""


@dataclass(frozen=True)
class State:
    """What is found on a disk: the contents of files, and the directories."""

    files: dict[str, bytes]
    folders: frozenset[str]

    @cached_property
    def whole(self) -> tuple[frozenset[tuple[str, bytes]], frozenset[str]]:
        """All of it, to be compared."""
        return frozenset(self.files.items()), self.folders

    def but(self, folder: str) -> tuple[frozenset[tuple[str, bytes]], frozenset[str]]:
        """All but the files in a folder, to be compared."""
        return frozenset(item for item in self.files.items() if not item[0].startswith(folder)), self.folders


Step = tuple[Any, ...]
"""A step of the file system: its name and its arguments."""


class Mark(NamedTuple):
    """Not a step of the file system: what was known at this place of the log."""

    known: Any


class Disk:
    """The inodes, and the log of every step that changed them. For one thread at a time."""

    def __init__(self, state: State | None = None) -> None:
        self.nodes: dict[int, FileNode | DirectoryNode] = {ROOT: DirectoryNode()}
        self._next = itertools.count(1)
        self.log: list[Step | Mark] = []
        if state is not None:
            for path in sorted(state.folders):
                self.do("mkdir", *self.place(path), next(self._next))
            for path, data in state.files.items():
                number = next(self._next)
                self.do("create", *self.place(path), number)
                self.do("write", number, 0, data)
            self.settle()

    def settle(self) -> None:
        """Make everything durable, and begin a new log."""
        for number, node in self.nodes.items():
            self.do("fsync" if isinstance(node, FileNode) else "sync", number)
        self.log = []

    def new(self) -> int:
        """Return a number for an inode."""
        return next(self._next)

    # Paths

    def find(self, path: str) -> int | None:
        """Return the inode at a path, or None."""
        number: int | None = ROOT
        for step in path.split("/"):
            if step:
                node = self.nodes[number] if number is not None else None
                if isinstance(node, FileNode):
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                number = node.live.get(step) if node is not None else None
        return number

    def place(self, path: str) -> tuple[int, str]:
        """Return the directory that a path is in, and its name there."""
        above, name = os.path.split(path)
        return self.directory(above), name

    def directory(self, path: str) -> int:
        """Return a directory's inode."""
        number = self.find(path)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(self.nodes[number], FileNode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        return number

    def file(self, path: str) -> int:
        """Return a file's inode."""
        number = self.find(path)
        if number is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if isinstance(self.nodes[number], DirectoryNode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        return number

    def file_node(self, number: int) -> FileNode:
        """Return the file of an inode's number."""
        node = self.nodes[number]
        assert isinstance(node, FileNode)
        return node

    def directory_node(self, number: int) -> DirectoryNode:
        """Return the directory of an inode's number."""
        node = self.nodes[number]
        assert isinstance(node, DirectoryNode)
        return node

    # Steps

    def do(self, step: str, *arguments: Any) -> None:
        """Take a step, and log it."""
        self.log.append((step, *arguments))
        getattr(self, f"_{step}")(*arguments)

    def mark(self, known: Any) -> None:
        """Note in the log what is known from here on."""
        self.log.append(Mark(known))

    def _entry(self, folder: int, name: str, number: int | None) -> None:
        node = self.directory_node(folder)
        node.pending.setdefault(name, []).append(number)
        if number is None:
            del node.live[name]
        else:
            node.live[name] = number

    def _create(self, folder: int, name: str, number: int) -> None:
        self.nodes[number] = FileNode()
        self._entry(folder, name, number)

    def _mkdir(self, folder: int, name: str, number: int) -> None:
        self.nodes[number] = DirectoryNode()
        self._entry(folder, name, number)

    def _link(self, folder: int, name: str, number: int) -> None:
        self._entry(folder, name, number)

    def _unlink(self, folder: int, name: str) -> None:
        self._entry(folder, name, None)

    def _rename(self, folder: int, name: str, to: int, new: str) -> None:
        self._entry(to, new, self.directory_node(folder).live[name])
        self._entry(folder, name, None)

    def _write(self, number: int, offset: int, data: bytes) -> None:
        node = self.file_node(number)
        node.live[offset : offset + len(data)] = data
        node.writes.append((offset, data))

    def _fsync(self, number: int) -> None:
        node = self.file_node(number)
        if not node.forsaken:
            node.durable = bytes(node.live)
            node.writes = []

    def _forsake(self, number: int) -> None:
        self.file_node(number).forsaken = True

    def _sync(self, number: int) -> None:
        node = self.directory_node(number)
        node.durable = dict(node.live)
        node.pending = {}

    # What may be found

    def worst(self) -> State:
        """Return what is found if nothing survives that was not synced."""
        return self._found(lambda history: history[0], lambda node: node.durable)

    def live(self) -> State:
        """Return what is found if everything survives."""
        return self._found(lambda history: history[-1], lambda node: bytes(node.live))

    def losses(self, chance: random.Random, more: int) -> Iterator[tuple[str, State]]:
        """Give what may be found if the power is lost now, named; `more` of them drawn by chance."""
        yield "nothing that was not synced", self.worst()
        yield "everything", self.live()
        yield "names without contents", self._found(lambda history: history[-1], lambda node: node.durable)
        yield "names, and zeros", self._found(lambda history: history[-1], _zeros)
        for number in range(more):
            yield f"chance {number}", self._found(chance.choice, lambda node: _torn(node, chance))

    def _found(self, entry: Any, content: Any) -> State:
        files: dict[str, bytes] = {}
        folders = set()
        contents: dict[int, bytes] = {}
        stack = [("", self.directory_node(ROOT))]
        while stack:
            above, node = stack.pop()
            entries = dict(node.durable)
            for name, steps in node.pending.items():
                kept = entry([node.durable.get(name), *steps])
                if kept is None:
                    entries.pop(name, None)
                else:
                    entries[name] = kept
            for name, number in entries.items():
                path, found = f"{above}/{name}", self.nodes[number]
                if isinstance(found, DirectoryNode):
                    folders.add(path)
                    stack.append((path, found))
                else:
                    if number not in contents:
                        contents[number] = content(found) if found.writes else found.durable
                    files[path] = contents[number]
        return State(files, frozenset(folders))


def _over(data: bytearray, offset: int, written: bytes) -> None:
    if offset > len(data):
        data += bytes(offset - len(data))
    data[offset : offset + len(written)] = written


def _zeros(node: FileNode) -> bytes:
    return node.durable + bytes(len(node.live) - len(node.durable))


def _torn(node: FileNode, chance: random.Random) -> bytes:
    """Return what a file holds of which some of the writes were lost."""
    kind = chance.randrange(6)
    if kind == 0:
        return node.durable
    if kind == 1:
        return bytes(node.live)
    if kind == 2:
        return _zeros(node)
    data = bytearray(node.durable)
    if kind == 3:  # in any order
        for offset, written in node.writes:
            if chance.random() < 0.5:
                _over(data, offset, written)
        return bytes(data)
    # In order, up to one that is torn; after it there is nothing, or zeros.
    last = chance.randrange(len(node.writes))
    for offset, written in node.writes[:last]:
        _over(data, offset, written)
    offset, written = node.writes[last]
    _over(data, offset, written[: chance.randint(0, len(written))])
    return bytes(data) + (bytes(len(node.live) - len(data)) if kind == 4 else b"")


class Cut(NamedTuple):
    """A place in a log, and what may be found there."""

    step: int
    known: Any
    """Of the last mark before it."""
    losses: list[tuple[str, State]]


def cuts(log: list[Step | Mark], chance: random.Random, more: int, begin: int = 0) -> Iterator[Cut]:
    """Give each place at which the power may have been lost: before the log, and after each step.

    begin: the first of them to give.
    """
    disk = Disk()
    known = None
    for step, taken in enumerate([None, *log]):
        if isinstance(taken, Mark):
            known = taken.known
        elif taken is not None:
            disk.do(*taken)
        if step >= begin:
            yield Cut(step, known, list(disk.losses(chance, more)))


ONCE, ON, AFTER = "once", "from then on", "once, and yet it was done"


CHANGES: Final = frozenset({"create", "write", "fsync", "link", "rename", "unlink", "mkdir", "sync_directory"})
"""The operations that change something: killed before others, a process leaves the same."""


class Killed(BaseException):
    """The process was killed. Not an Exception: nothing may clean up after it."""


class Fault:
    """Lets the operation of a number fail (from 0): once, or with all after it, or though it was done.

    error: an errno, or Killed, which is for ON. only: which operations count; all, if none are named.
    """

    def __init__(
        self, number: int, error: int | type[Killed], mode: str = ONCE, only: frozenset[str] = frozenset()
    ) -> None:
        self.number, self.error, self.mode, self.only = number, error, mode, only
        self.taken: list[tuple[str, tuple[str, ...], bool]] = []
        """Every operation that counts: its name, its paths, whether it was let fail."""

    @property
    def fired(self) -> bool:
        """Whether anything was let fail."""
        return any(failed for _, _, failed in self.taken)

    def before(self, operation: str, paths: tuple[str, ...]) -> None:
        """Count an operation; let it fail if it is its turn."""
        if self.only and operation not in self.only:
            return
        number = len(self.taken)
        hit = self.mode != AFTER and (number == self.number or (self.mode == ON and number > self.number))
        self.taken.append((operation, paths, hit))
        if hit:
            self._raise(paths[0])

    def after(self, operation: str, path: str) -> None:
        """Let the operation that was just done seem to have failed, if it is its turn."""
        if self.mode == AFTER and len(self.taken) - 1 == self.number and self.taken[-1][0] == operation:
            self.taken[-1] = (*self.taken[-1][:2], True)
            self._raise(path)

    def _raise(self, path: str) -> None:
        if isinstance(self.error, int):
            raise OSError(self.error, os.strerror(self.error), path)
        raise self.error


class DiskFiles(Files):
    """The file operations of a store, on a Disk. Safe to share between threads, as the real ones are.

    fault: what refuses operations.
    """

    links = True
    """Whether there are hard links."""

    def __init__(self, disk: Disk, fault: Fault | None = None) -> None:
        self.disk = disk
        self.fault = fault
        self.mutex = threading.RLock()
        self._open: dict[int, tuple[int, str]] = {}
        self._numbers = itertools.count(1 << 20)

    def before(self, operation: str, *paths: str) -> None:
        """Let an operation fail, if it shall."""
        if self.fault is not None:
            self.fault.before(operation, paths)

    def after(self, operation: str, path: str) -> None:
        """Let an operation seem to fail, if it shall."""
        if self.fault is not None:
            self.fault.after(operation, path)

    def taken(self, data: bytes) -> int:
        """Say how many bytes a write takes."""
        return len(data)

    def left_open(self) -> list[str]:
        """Return the paths of descriptors that were not closed."""
        return [path for _, path in self._open.values()]

    def forget(self) -> None:
        """The process that had files open was killed."""
        self._open.clear()

    def _descriptor(self, number: int, path: str) -> int:
        descriptor = next(self._numbers)
        self._open[descriptor] = (number, path)
        return descriptor

    def _of(self, descriptor: int) -> tuple[int, str]:
        if descriptor not in self._open:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return self._open[descriptor]

    def create(self, path: str) -> int:
        with self.mutex:
            self.before("create", path)
            folder, name = self._free(path)
            number = self.disk.new()
            self.disk.do("create", folder, name, number)
            return self._descriptor(number, path)

    def open(self, path: str) -> int:
        with self.mutex:
            self.before("open", path)
            return self._descriptor(self.disk.file(path), path)

    def write(self, descriptor: int, data: Data) -> int:
        with self.mutex:
            number, path = self._of(descriptor)
            self.before("write", path)
            data = bytes(data)
            data = data[: self.taken(data)]
            self.disk.do("write", number, len(self.disk.nodes[number].live), data)
            return len(data)

    def pread(self, descriptor: int, length: int, offset: int) -> bytes:
        with self.mutex:
            number, path = self._of(descriptor)
            self.before("pread", path)
            return bytes(self.disk.file_node(number).live[offset : offset + length])

    def fsync(self, descriptor: int) -> None:
        with self.mutex:
            number, path = self._of(descriptor)
            try:
                self.before("fsync", path)
            except OSError:
                self.disk.do("forsake", number)
                raise
            self.disk.do("fsync", number)

    def close(self, descriptor: int) -> None:
        with self.mutex:
            _, path = self._of(descriptor)
            del self._open[descriptor]  # even where it fails, as Linux does
            self.before("close", path)

    def link(self, old: str, new: str) -> None:
        with self.mutex:
            self.before("link", new, old)
            number = self.disk.find(old)
            if number is None:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), old)
            folder, name = self._free(new)
            if not self.links or isinstance(self.disk.nodes[number], DirectoryNode):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM), old)
            self.disk.do("link", folder, name, number)
            self.after("link", new)

    def rename(self, old: str, new: str) -> None:
        with self.mutex:
            self.before("rename", new, old)
            self.disk.file(old)
            self.disk.do("rename", *self.disk.place(old), *self.disk.place(new))
            self.after("rename", new)

    def unlink(self, path: str) -> None:
        with self.mutex:
            self.before("unlink", path)
            self.disk.file(path)
            self.disk.do("unlink", *self.disk.place(path))
            self.after("unlink", path)

    def mkdir(self, path: str) -> None:
        with self.mutex:
            self.before("mkdir", path)
            self.disk.do("mkdir", *self._free(path), self.disk.new())
            self.after("mkdir", path)

    def sync_directory(self, path: str) -> None:
        with self.mutex:
            self.before("sync_directory", path)
            self.disk.do("sync", self.disk.directory(path))
            self.after("sync_directory", path)

    def lock(self, path: str, *, exclusive: bool) -> int:
        with self.mutex:
            self.before("lock", path)
            return self._descriptor(self.disk.directory(path), path)

    def listdir(self, path: str) -> list[str]:
        with self.mutex:
            self.before("listdir", path)
            return list(self.disk.directory_node(self.disk.directory(path)).live)

    def exists(self, path: str) -> bool:
        with self.mutex:
            return self._found(path) is not None

    def is_directory(self, path: str) -> bool:
        with self.mutex:
            number = self._found(path)
            return number is not None and isinstance(self.disk.nodes[number], DirectoryNode)

    def length(self, descriptor: int) -> int:
        with self.mutex:
            number, path = self._of(descriptor)
            self.before("length", path)
            return len(self.disk.nodes[number].live)

    def stat(self, path: str) -> tuple[int, float]:
        with self.mutex:
            self.before("stat", path)
            return len(self.disk.nodes[self.disk.file(path)].live), time.time()

    def _found(self, path: str) -> int | None:
        try:
            return self.disk.find(path)
        except NotADirectoryError:
            return None

    def _free(self, path: str) -> tuple[int, str]:
        folder, name = self.disk.place(path)
        if name in self.disk.nodes[folder].live or not name:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        return folder, name
