"""One file, whose bytes are the dump: what another program dumped, or a database that is one file."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, ClassVar

from castore.content.copying import check_overwritable, copy, overwrite
from castore.content.sparse import write_sparse
from castore.errors import CastoreError, UsageError
from castore.services.engines.contract import SWITCHING, Contents, Engine, Memo
from castore.services.regular import descriptor_of, kind_of, refuse_irregular, temporary_names
from castore.storage.files import sync_if_supported

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.services.engines.contract import Readinto


class File(Engine, frozen=True):
    """A file as it is. A roll-back writes it anew, beside the live one, and exchanges the two."""

    path: str

    paths: ClassVar[tuple[str, ...]] = ("path",)

    def there(self) -> bool:
        """Whether there is such a file."""
        return os.path.exists(self.path)

    def check(self) -> None:
        """See whether it can be read."""
        with self.dump():
            pass

    @contextlib.contextmanager
    def dump(self) -> Iterator[Readinto]:
        """Give a function that reads the file."""
        try:
            # Without waiting for another process, should it be a pipe.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"cannot read the dump {self.path}: {error.strerror}") from None
        try:
            self._refuse_other(os.fstat(descriptor).st_mode)
            yield _Reading(descriptor)
        finally:
            os.close(descriptor)

    def _refuse_other(self, mode: int) -> None:
        """Raise UsageError where what is to be dumped could not be restored."""
        kind = "an open file of a process" if descriptor_of(self.path) is not None else kind_of(mode)
        if kind == "a directory":
            raise UsageError(f"{self.path} is a directory: take it with --tree")
        if kind:
            raise UsageError(
                f"{self.path} is {kind}, which a rollback cannot restore: take what it gives with --dump "
                "NAME=-, or with a program (--exec)"
            )

    def ready(self) -> None:
        """See whether there is a folder to write it in, and what is replaced is a regular file."""
        refuse_irregular(self.path)
        folder, name = os.path.split(os.path.realpath(self.path))
        if not os.path.isdir(folder):
            raise CastoreError(
                f"there is no folder {folder} to restore {name} into: make it, with the owner and mode "
                "that it had"
            )

    def begin(self) -> Memo:
        """Return the names of the files that are made."""
        refuse_irregular(self.path)
        # Of a symbolic link, what it leads to is written: that is what was taken.
        path = os.path.realpath(self.path)
        new, old = temporary_names(path)
        return {"path": path, "existed": "yes" if os.path.lexists(path) else "", "new": new, "old": old}

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Write it beside the live one, durably."""
        new, live = memo["new"], memo["path"]
        try:
            with open(new, "xb") as file:
                os.fchmod(file.fileno(), 0o600)
                write_sparse(file.fileno(), contents.target())
                # It belongs to whom the live one does, or, where there is none, its folder.
                info = os.stat(live if memo["existed"] else os.path.dirname(live))
                if os.geteuid() == 0:
                    os.fchown(file.fileno(), info.st_uid, info.st_gid)
                if memo["existed"]:
                    os.fchmod(file.fileno(), stat.S_IMODE(info.st_mode))
                    _copy_attributes(live, file.fileno())
                os.fsync(file.fileno())
        except OSError as error:
            raise CastoreError(f"cannot write {new}: {error.strerror}") from error

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Move the live file aside, and the new one into its place."""
        del contents
        live, new = memo["path"], memo["new"]
        if not os.path.lexists(new):
            raise CastoreError(f"what was to take the place of {live} is gone: somebody has removed {new}")
        try:
            try:
                self._move_aside(memo)
                os.rename(new, live)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                self._exchange_mounted(memo)
            sync_if_supported(os.path.dirname(live))
        except OSError as error:
            raise CastoreError(f"cannot exchange {live}: {error.strerror}") from error

    @staticmethod
    def _exchange_mounted(memo: Memo) -> None:
        """Copy a mount point aside, which cannot be moved, and overwrite it with the new file."""
        folder, name = os.path.split(os.fsencode(memo["path"]))
        new, old = (os.path.basename(os.fsencode(memo[one])) for one in ("new", "old"))
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            check_overwritable(fd, name)
            part = old + b"-part"
            try:
                copy(fd, name, fd, part)
                # From here on the live file may be touched.
                os.rename(part, old, src_dir_fd=fd, dst_dir_fd=fd)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(part, dir_fd=fd)
                raise
            overwrite(fd, new, fd, name)
            os.unlink(new, dir_fd=fd)
        finally:
            os.close(fd)

    @staticmethod
    def _return(old: str, live: str) -> None:
        """Move a file back; overwrite a mount point with it."""
        try:
            _rename(old, live)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            folder, name = os.path.split(os.fsencode(live))
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                overwrite(fd, os.path.basename(os.fsencode(old)), fd, name)
            finally:
                os.close(fd)
            os.unlink(old)

    def remove(self, memo: Memo) -> None:
        """Move the live file aside."""
        try:
            self._move_aside(memo)
            sync_if_supported(os.path.dirname(memo["path"]))
        except OSError as error:
            raise CastoreError(f"cannot move {memo['path']} aside: {error.strerror}") from error

    def _move_aside(self, memo: Memo) -> None:
        refuse_irregular(memo["path"])
        # What lies beside the live one belongs to it, and goes first: so whoever undoes this can
        # tell from where the file itself is what is whose.
        for ending in (*self.beside, ""):
            _rename(memo["path"] + ending, memo["old"] + ending)

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Move the live file back."""
        del contents
        live, new, old = memo["path"], memo["new"], memo["old"]
        try:
            if os.path.lexists(old):
                self._remove(live, self.beside)
                self._return(old, live)
            elif not memo["existed"] and SWITCHING in memo and not os.path.lexists(new):
                self._remove(live, ("", *self.beside))
            for ending in self.beside:
                if not os.path.lexists(live + ending):
                    _rename(old + ending, live + ending)
            self._remove(new, ("", *self.beside))
            sync_if_supported(os.path.dirname(live))
        except OSError as error:
            raise CastoreError(
                f"{live} could not be put back ({error.strerror}): what it was is in {old}"
            ) from error

    def finish(self, memo: Memo) -> None:
        """Remove what was moved aside."""
        self._remove(memo["old"], ("", *self.beside))

    @staticmethod
    def _remove(path: str, endings: tuple[str, ...]) -> None:
        for ending in endings:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path + ending)


class _Reading:
    """What reads a file, and notices when it is changed meanwhile."""

    def __init__(self, descriptor: int) -> None:
        self.warnings: list[tuple[bytes, str]] = []
        self._descriptor = descriptor
        self._before = self._state()

    def __call__(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes that were, 0 at the end."""
        count = os.readv(self._descriptor, [view])
        if not count and not self.warnings and self._state() != self._before:
            self.warnings.append((b".", "changed while being read; what was read is kept"))
        return count

    def _state(self) -> tuple[int, int, int]:
        info = os.fstat(self._descriptor)
        return info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _copy_attributes(path: str, descriptor: int) -> None:
    """Give a file the extended attributes of another, its access control list among them; none else."""
    wanted = _attributes(path)
    for name in _attributes(descriptor):
        # Its folder may hand an access control list down to what is made in it.
        if name not in wanted:
            with contextlib.suppress(PermissionError):
                os.removexattr(descriptor, name)
    for name in wanted:
        # Some are the system's own, and nobody's to set.
        with contextlib.suppress(PermissionError):
            os.setxattr(descriptor, name, os.getxattr(path, name))


def _attributes(file: str | int) -> list[str]:
    try:
        return os.listxattr(file)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return []  # the file system has none
        raise


def _rename(path: str, to: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.rename(path, to)
