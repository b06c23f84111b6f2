"""The marker file of an unfinished restore, which lets 'castore restore --resume' continue it."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
from typing import TYPE_CHECKING, Final, Self

import msgspec

from castore.content.restore.destination import open_destination
from castore.content.restore.tree_writer import FILE_SYSTEMS_OWN
from castore.content.restore.undo_journal import boot_id
from castore.errors import UsageError
from castore.fs.beneath import OPEN_FILE
from castore.fs.durable import create_file, write_all

if TYPE_CHECKING:
    from castore.services.selectors import Selection
    from castore.store import Store

_PREFIX: Final = ".castore-restore-"
_MOST: Final = 1 << 16


class RestoreMarker(msgspec.Struct, frozen=True):
    """What is restored into the directory that contains this marker file."""

    store: str
    service: str
    number: int
    part: str
    path: str
    boot: str = ""
    """Boot id of the machine when the restore began: after a reboot, files may have lost their content."""

    @classmethod
    def for_selection(cls, store: Store, selection: Selection) -> Self:
        """Return the marker that a restore of a selection writes into its destination."""
        part = selection.part.name if selection.part is not None else ""
        generation = selection.generation
        path = selection.path.strip("/")
        shown = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        return cls(store.store_id.hex(), generation.service, generation.number, part, shown, boot_id())

    @property
    def name(self) -> str:
        """The selection, in the syntax of the command line."""
        part = f":{self.part}" if self.part else ""
        path = f"/{self.path}" if self.path else ""
        return f"{self.service}@{self.number}{part}{path}"

    def command(self, destination: str) -> str:
        """Return the command that continues the restore."""
        return f"castore restore --resume {shlex.quote(self.name)} {shlex.quote(destination)}"

    def matches(self, other: RestoreMarker) -> bool:
        """Whether two restores are of the same selection of the same store."""
        return msgspec.structs.replace(self, boot="") == msgspec.structs.replace(other, boot="")


class Destination:
    """The directory that a restore fills, open as `fd`."""

    def __init__(
        self, path: str, fd: int, marker: str, *, created: bool, resumed: bool, trusted: bool
    ) -> None:
        self.path = path
        self.fd = fd
        self.resumed = resumed
        """Whether an earlier restore began to fill the directory."""
        self.trusted = trusted
        """Whether complete-looking files are complete: the machine has not been rebooted since."""
        self._marker = marker
        self._created = created

    @property
    def own(self) -> frozenset[bytes]:
        """Names in the directory that do not belong to the restored files."""
        return frozenset({os.fsencode(self._marker), FILE_SYSTEMS_OWN})

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been restored yet."""
        return not {os.fsencode(name) for name in os.listdir(self.fd)} - self.own

    def remove_marker(self) -> None:
        """Remove the marker file, at the end of the restore. Raises OSError."""
        mode = stat.S_IMODE(os.fstat(self.fd).st_mode)
        try:
            os.unlink(self._marker, dir_fd=self.fd)
        except PermissionError:
            # The restored mode of the directory may not permit writing.
            os.fchmod(self.fd, mode | stat.S_IRWXU)
            os.unlink(self._marker, dir_fd=self.fd)
            os.fchmod(self.fd, mode)

    def discard(self) -> None:
        """Remove the marker, and the directory if this restore created it, when nothing was restored."""
        with contextlib.suppress(OSError):
            self.remove_marker()
            if self._created:
                os.rmdir(self.path)


def open_marked(path: str, wanted: RestoreMarker, *, resume: bool) -> Destination:
    """Open the directory to restore into, and write the marker file.

    It must be new or empty; with `resume`, it may have the marker of a restore of the same selection. Raises
    UsageError.
    """
    created = not os.path.lexists(path)
    fd = open_destination(path)
    try:
        names = set(os.listdir(fd)) - _file_systems_own(fd)
        markers = {name: _read_marker(fd, name) for name in names if name.startswith(_PREFIX)}
        for name in [name for name, found in markers.items() if found is None]:
            # A restore was killed while it wrote the marker, before anything else.
            if names == {name}:
                os.unlink(name, dir_fd=fd)
                names.discard(name)
        if names:
            return _continue(path, fd, markers, wanted, resume=resume)
        marker = _write_marker(fd, path, wanted)
        return Destination(path, fd, marker, created=created, resumed=False, trusted=True)
    except BaseException:
        os.close(fd)
        raise


def _file_systems_own(fd: int) -> set[str]:
    """Return the names in a directory that belong to its file system, not to a user."""
    try:
        info = os.stat(FILE_SYSTEMS_OWN, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return set()
    return {os.fsdecode(FILE_SYSTEMS_OWN)} if stat.S_ISDIR(info.st_mode) else set()


def _continue(
    path: str, fd: int, markers: dict[str, RestoreMarker | None], wanted: RestoreMarker, *, resume: bool
) -> Destination:
    readable = {name: marker for name, marker in markers.items() if marker is not None}
    matching = [name for name, marker in readable.items() if marker.matches(wanted)]
    if resume and matching:
        trusted = bool(wanted.boot) and readable[matching[0]].boot == wanted.boot
        return Destination(path, fd, matching[0], created=False, resumed=True, trusted=trusted)
    for marker in readable.values():
        again = marker.command(path)
        raise UsageError(
            f"{path} has an unfinished restore of {marker.name}: continue it with: {again}; or restore into "
            "another directory"
        )
    if resume:
        raise UsageError(
            f"cannot resume in {path}: castore began no restore there; omit --resume to begin one in an "
            "empty directory"
        )
    raise UsageError(f"{path} is not empty; restore into a new or an empty directory")


def _write_marker(fd: int, path: str, wanted: RestoreMarker) -> str:
    name = f"{_PREFIX}{os.urandom(8).hex()}"
    try:
        file = create_file(name, folder=fd)
        try:
            write_all(file, msgspec.json.encode(wanted))
        finally:
            os.close(file)
    except OSError as error:
        raise UsageError(f"cannot restore into {path}: {error.strerror}") from None
    return name


def _read_marker(fd: int, name: str) -> RestoreMarker | None:
    """Return a marker, or None if it is incomplete or another user wrote it."""
    try:
        file = os.open(name, OPEN_FILE, dir_fd=fd)
    except OSError:
        return None
    with open(file, "rb") as opened:
        info = os.fstat(file)
        if info.st_uid != os.geteuid() or not stat.S_ISREG(info.st_mode):
            return None
        try:
            return msgspec.json.decode(opened.read(_MOST), type=RestoreMarker)
        except msgspec.MsgspecError:
            return None
