"""One file, whose bytes are the dump: another program's dump, or a database that is one file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Self, TypeVar

from castore.content.scan.cache import is_racily_clean
from castore.engines.base import Contents, Engine
from castore.engines.dump_stream import DumpStream
from castore.engines.state import EngineState, FileSwap
from castore.errors import CastoreError, UsageError
from castore.fs.beneath import Located, locate, open_entry, path_of
from castore.fs.durable import create_file
from castore.fs.regular import descriptor_of, exists, refuse_irregular, temporary_names
from castore.fs.sparse import write_sparse
from castore.fs.stamp import stamp_of
from castore.fs.trusted import kind_of

if TYPE_CHECKING:
    from collections.abc import Iterator

Swap = TypeVar("Swap", bound=FileSwap)


class FileEngine(Engine[Swap], Generic[Swap], frozen=True):
    """A part that is one file. A rollback writes a new file next to the live one, then swaps the two."""

    path: str

    paths: ClassVar[tuple[str, ...]] = ("path",)

    def file_path(self) -> str:
        """Return the path of the file, as configured."""
        return self.path

    def exists(self) -> bool:
        """Whether the file exists."""
        return os.path.exists(self.path)

    def check(self) -> None:
        """Check that the file can be read."""
        with self.dump():
            pass

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of the file."""
        if descriptor_of(self.path) is not None:
            self._refuse("an open file of a process")
        try:
            with locate(self.path) as located:
                self._refuse(kind_of(_status(located).st_mode))
                descriptor = located.open_regular()
        except OSError as error:
            raise UsageError(f"cannot read the dump {self.path}: {error.strerror}") from None
        try:
            yield _FileStream(descriptor)
        finally:
            os.close(descriptor)

    def _refuse(self, kind: str) -> None:
        """Raise UsageError if a dump could not be restored. kind: of the file; empty for a regular one."""
        if kind == "a directory":
            raise UsageError(f"{self.path} is a directory: take it with --tree")
        if kind:
            raise UsageError(
                f"{self.path} is {kind}, which a rollback cannot restore: take its output with --dump "
                "NAME=-, or with a program (--exec)"
            )

    def preflight(self) -> None:
        """Check that the directory exists, and that the file to replace is a regular one."""
        self._place()

    def _prepare(self) -> FileSwap:
        """Return the names of the files that the rollback creates."""
        # The file that a symbolic link leads to is replaced, because that is what the snapshot took.
        path, existed = self._place()
        new, old = temporary_names(path)
        return FileSwap(live=path, existed=existed, new=new, old=old)

    def _place(self) -> tuple[str, bool]:
        """Return the path without links, and whether the file exists. Raises CastoreError."""
        if descriptor_of(self.path) is not None:
            raise CastoreError(
                f"{self.path} refers to an open file of a process, and is not replaced: use 'castore "
                "restore' or 'castore cat'; nothing was changed"
            )
        try:
            with locate(self.path) as located:
                refuse_irregular(located)
                return os.fsdecode(located.path), exists(located)
        except (FileNotFoundError, NotADirectoryError):
            folder, name = os.path.split(os.path.realpath(self.path))
            raise UsageError(
                f"cannot restore {name}: the directory {folder} does not exist; make it, with the owner "
                "and mode that it had, and repeat the command"
            ) from None
        except OSError as error:
            raise CastoreError(f"{self.path} cannot be replaced: {error.strerror}") from error

    def stage(self, state: Swap, contents: Contents) -> list[str]:
        """Write the new file next to the live one, durably."""
        try:
            with _Folder(state) as folder, folder.create("new") as file:
                info = os.fstat(file)
                state.inode = info.st_dev, info.st_ino
                write_sparse(file, contents.restore_dump())
                folder.copy_metadata(file)
                os.fsync(file)
        except OSError as error:
            raise CastoreError(f"cannot write {state.new}: {error.strerror}") from error
        return []

    def swap(self, state: Swap, contents: Contents) -> list[str]:
        """Move the live file aside, and the new one into its place."""
        del contents
        live, new = state.live, state.new
        try:
            with _Folder(state) as folder:
                info = folder.status("new")
                if info is None:
                    raise CastoreError(
                        f"cannot replace {live}: another process removed {new}, which was to replace it; "
                        "repeat the rollback"
                    )
                if state.inode not in {None, (info.st_dev, info.st_ino)}:
                    raise CastoreError(
                        f"cannot replace {live}: another process exchanged {new}, which was to replace "
                        "it; repeat the rollback"
                    )
                try:
                    self._move_aside(folder)
                    folder.rename("new", "live")
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    folder.exchange_mounted()
                folder.sync()
        except OSError as error:
            raise CastoreError(f"cannot replace {live}: {error.strerror}") from error
        return []

    def remove(self, state: Swap) -> None:
        """Move the live file aside."""
        try:
            with _Folder(state) as folder:
                self._move_aside(folder)
                folder.sync()
        except OSError as error:
            raise CastoreError(f"cannot move {state.live} aside: {error.strerror}") from error

    def _move_aside(self, folder: _Folder) -> None:
        refuse_irregular(folder.live)
        # The files next to the live one belong to it and are moved first. `revert` can then conclude from
        # the place of the file itself which files belong to it.
        for ending in (*self.sidecar_suffixes, ""):
            folder.rename("live", "old", ending)

    def revert(self, state: Swap, contents: Contents, *, swapped: bool) -> None:
        """Move the live file back."""
        del contents
        live, old = state.live, state.old
        try:
            with _Folder(state) as folder:
                if folder.status("old") is not None:
                    folder.remove("live", self.sidecar_suffixes)
                    folder.move_back()
                elif not state.existed and swapped and folder.status("new") is None:
                    folder.remove("live", ("", *self.sidecar_suffixes))
                for ending in self.sidecar_suffixes:
                    if folder.status("live", ending) is None:
                        folder.rename("old", "live", ending)
                folder.remove("new", ("", *self.sidecar_suffixes))
                folder.sync()
        except OSError as error:
            raise CastoreError(
                f"{live} could not be restored ({error.strerror}): its previous content is in {old}"
            ) from error

    def cleanup(self, state: Swap) -> None:
        """Delete the file that was moved aside."""
        with _Folder(state) as folder:
            folder.remove("old", ("", *self.sidecar_suffixes))


class File(FileEngine[FileSwap], frozen=True):
    """A file as it is."""

    state_type: ClassVar[type[EngineState]] = FileSwap

    def prepare(self) -> FileSwap:
        """Return the names of the files that the rollback creates."""
        return self._prepare()


_Name = Literal["live", "new", "old"]


class _Folder:
    """The directory of the files of a rollback. Another user may own it, so links in it are not followed."""

    def __init__(self, state: FileSwap) -> None:
        self._path = os.fsencode(state.live)
        paths: dict[_Name, str] = {"live": state.live, "new": state.new, "old": state.old}
        self._names = {name: os.fsencode(os.path.basename(path)) for name, path in paths.items()}

    def __enter__(self) -> Self:
        with locate(os.path.dirname(self._path)) as located:
            fd = open_entry(located.folder, located.name)
        self.live = Located(fd, self._names["live"], self._path)
        self._fd = fd
        return self

    def __exit__(self, *_: object) -> None:
        self.live.close()

    def sync(self) -> None:
        """Make its names durable. Raises OSError."""
        self.live.sync()

    def status(self, key: _Name, ending: str = "") -> os.stat_result | None:
        """Return the status of a file, without following links; None if it does not exist."""
        try:
            return os.stat(self._names[key] + ending.encode(), dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def rename(self, key: _Name, to: _Name, ending: str = "") -> None:
        """Rename a file, if it exists. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            source, target = (self._names[which] + ending.encode() for which in (key, to))
            os.rename(source, target, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, key: _Name, endings: tuple[str, ...]) -> None:
        """Delete a file with each of these endings, if it exists. Raises OSError."""
        for ending in endings:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._names[key] + ending.encode(), dir_fd=self._fd)

    @contextlib.contextmanager
    def create(self, key: _Name) -> Iterator[int]:
        """Create a file that only its owner may access, and yield it open for writing. Raises OSError."""
        file = create_file(self._names[key], folder=self._fd)
        try:
            os.fchmod(file, 0o600)
            yield file
        finally:
            os.close(file)

    def copy_metadata(self, file: int) -> None:
        """Copy owner, mode and attributes of the live file to a new one; without one, its directory's owner.

        Bits and capabilities that give a program more rights are left out: the live file may belong to
        another user, or may just have been put there.
        """
        held = None
        with contextlib.suppress(FileNotFoundError):
            held = open_entry(self._fd, self._names["live"])
        try:
            info = os.fstat(self._fd if held is None else held)
            if os.geteuid() == 0:
                os.fchown(file, info.st_uid, info.st_gid)
            if held is not None:
                os.fchmod(file, stat.S_IMODE(info.st_mode) & ~(stat.S_ISUID | stat.S_ISGID))
                _copy_attributes(path_of(held), file)
        finally:
            if held is not None:
                os.close(held)

    def exchange_mounted(self) -> None:
        """Copy a mount point aside, which cannot be moved, and overwrite it with the new file."""
        from castore.content.restore.copying import check_overwritable, copy, overwrite

        fd, name, new, old = self._fd, self._names["live"], self._names["new"], self._names["old"]
        check_overwritable(fd, name)
        part = old + b"-part"
        try:
            copy(fd, name, fd, part)
            # From here on the live file may be changed: `revert` finds the copy.
            os.rename(part, old, src_dir_fd=fd, dst_dir_fd=fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part, dir_fd=fd)
            raise
        overwrite(fd, new, fd, name)
        os.unlink(new, dir_fd=fd)

    def move_back(self) -> None:
        """Move the old file back; overwrite a mount point with it."""
        try:
            self.rename("old", "live")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            from castore.content.restore.copying import overwrite

            overwrite(self._fd, self._names["old"], self._fd, self._names["live"])
            os.unlink(self._names["old"], dir_fd=self._fd)


class _FileStream(DumpStream):
    """Reads a file, and warns if the file changes meanwhile."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(self._read)
        self._descriptor = descriptor
        now = time.time_ns()
        self._before = stamp_of(os.fstat(descriptor))
        self._rest = self._before.size
        if not is_racily_clean(self._before.ctime, now):
            self.stamp = self._before

    def _read(self, view: memoryview) -> int:
        if self._rest == self._before.size:
            self._write_back()
        count = os.readv(self._descriptor, [view])
        self._rest -= count
        if not count:
            changed = stamp_of(os.fstat(self._descriptor)) != self._before
            if changed and not self.warnings:
                self.warnings.append((b".", "changed while being read; what was read is kept"))
            if changed or self._rest:
                self.stamp = None
        return count

    def _write_back(self) -> None:
        """Have the file's changed pages written to the disk, before the first of it is read.

        Of writes through a memory map, only the first to a page changes the times, until the page is written.
        """
        try:
            os.fdatasync(self._descriptor)
        except OSError:
            self.stamp = None


def _status(located: Located) -> os.stat_result:
    return os.stat(located.name, dir_fd=located.folder, follow_symlinks=False)


def _copy_attributes(path: bytes, descriptor: int) -> None:
    """Give a file exactly the extended attributes of another, including its access control list."""
    wanted = _attributes(path)
    for name in _attributes(descriptor):
        # A file may inherit an access control list from its directory.
        if name not in wanted:
            with contextlib.suppress(PermissionError):
                os.removexattr(descriptor, name)
    for name in wanted:
        # Some attributes belong to the system, and no user can set them.
        with contextlib.suppress(PermissionError):
            os.setxattr(descriptor, name, os.getxattr(path, name))


def _attributes(file: bytes | int) -> list[str]:
    try:
        return [name for name in os.listxattr(file) if name != "security.capability"]
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []  # the file system has none
        raise
