"""One database of an OpenLDAP server, as LDIF: restored into a directory that replaces the live one."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import itertools
import os
import re
import shutil
import stat
import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

from castore.engines.base import Contents, Engine
from castore.engines.dump_stream import DumpStream
from castore.engines.state import EngineState, PathSwap
from castore.errors import CastoreError, ProgramError, UsageError
from castore.fs.beneath import OPEN_DIRECTORY, OPEN_FILE, locate, real_path
from castore.fs.durable import sync_if_supported
from castore.fs.regular import temporary_names
from castore.model import counting
from castore.process.environment import client_environment
from castore.process.runners import feed, output_of, run_dump
from castore.process.servers import give, unprivileged
from castore.process.users import owner_account

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator

_BEGINNING: Final = 4096
"""Bytes of a line that are checked: more than the name of an attribute with its options."""
_READS_FILE: Final = re.compile(rb"[^:]*:[ \t\r]*<|include:", re.IGNORECASE)
_END_SECONDS: Final = 5.0
"""Seconds that slapd may take to end after `stop` has ended."""


class LDAP(Engine[PathSwap], frozen=True):
    """The entries below one suffix. A rollback needs `stop` and `start`."""

    suffix: str
    """For example "dc=example,dc=org"."""
    config: str = "/etc/ldap/slapd.d"
    """The directory of slapd's configuration."""
    program_path: str | None = None
    """The directory of slapcat and slapadd."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("config", "program_path")
    state_type: ClassVar[type[EngineState]] = PathSwap

    def label(self) -> str:
        """Return the suffix."""
        return self.suffix

    def _program(self, name: str) -> str:
        path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"])
        found = shutil.which(f"{self.program_path}/{name}" if self.program_path else name, path=path)
        if found is None:
            raise ProgramError(
                f"there is no program {name!r}, which the engine ldap needs: install it, or set "
                "`program-path`"
            )
        return found

    def check(self) -> None:
        """Check that the configuration has the database."""
        self._directory()

    def version(self) -> str:
        """Return the name of what makes the dump."""
        return "ldap slapcat"

    @property
    def _own(self) -> pwd.struct_passwd | None:
        """The user that slapcat and slapadd run as: `run-as`, else the owner of the configuration.

        They open the files of slapd's user, who may have put anything there. None: castore's own user.
        """
        if self.run_as is not None:
            return self.account
        with contextlib.suppress(OSError):
            return owner_account(self.config)
        return None

    def _process(self) -> dict[str, Any]:
        """Return how slapcat is run. Raises UsageError if slapd has no configuration directory there."""
        if not os.path.isdir(self.config):
            raise UsageError(
                f"there is no directory {self.config}, the configuration of slapd: correct `config` in "
                "castore.toml"
            )
        return {"env": client_environment(), "timeout": self.timeout, "account": self._own}

    def _configuration(self) -> bytes:
        process = self._process()
        return output_of([self._program("slapcat"), "-F", self.config, "-n", "0"], **process)

    def _directory(self) -> str:
        """Return the directory of the database. Raises ProgramError if the configuration has none."""
        for entry in _unfolded(self._configuration()).split("\n\n"):
            lines = entry.split("\n")
            if any(line.lower() == f"olcsuffix: {self.suffix}".lower() for line in lines):
                for line in lines:
                    if line.startswith("olcDbDirectory: "):
                        return line.partition(": ")[2]
        raise ProgramError(
            f"slapd's configuration in {self.config} has no database of {self.suffix!r}: correct `suffix` in "
            "castore.toml"
        )

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of slapcat's output."""
        process = self._process()
        argv = [self._program("slapcat"), "-F", self.config, "-b", self.suffix]
        with run_dump(argv, **process) as readinto:
            some = False

            def read(view: memoryview) -> int:
                nonlocal some
                count = readinto(view)
                some = some or count > 0
                if not some:
                    raise ProgramError(f"slapcat exited with 0, but wrote nothing of {self.suffix!r}")
                return count

            yield DumpStream(read)

    def prepare(self) -> PathSwap:
        """Return the names of the directories that the rollback creates."""
        try:
            live = os.fsdecode(real_path(self._directory()))
        except OSError as error:
            raise CastoreError(f"cannot replace {self._directory()}: {error.strerror}") from error
        new, old = temporary_names(live)
        return PathSwap(live=live, existed=os.path.isdir(live), new=new, old=old)

    def stage(self, state: PathSwap, contents: Contents) -> list[str]:
        """Load the entries into a directory next to the live one."""
        self._load(state.new, f"{state.new}.conf", contents, self._own)
        if state.existed:
            try:
                _give(state.new, os.stat(state.live, follow_symlinks=False))
            except OSError as error:
                raise CastoreError(f"cannot set the owner of {state.new}: {error.strerror}") from error
        return []

    def _load(
        self, data: str, config: str, contents: Contents, account: pwd.struct_passwd | None = None
    ) -> None:
        """Load entries into the new directory `data`, using a copy of the configuration that names it.

        account: the user that slapadd runs as; None: castore's own.
        """
        try:
            for folder in (data, config):
                _make(folder, account)
        except OSError as error:
            raise CastoreError(f"cannot create {data}: {error.strerror}") from error
        try:
            entries = []
            known = False
            for entry in _unfolded(self._configuration()).split("\n\n"):
                here = re.search(f"(?im)^olcSuffix: {re.escape(self.suffix)}$", entry)
                known = known or here is not None
                entries.append(
                    re.sub("(?m)^olcDbDirectory: .*$", f"olcDbDirectory: {data}", entry) if here else entry
                )
            if not known:
                # With another spelling of the suffix slapadd would find the live database.
                raise CastoreError(
                    f"slapd's configuration has no database with the suffix {self.suffix!r}: correct "
                    "`suffix` in castore.toml"
                )
            program = self._program("slapadd")
            load = partial(feed, env=client_environment(), timeout=self.timeout, account=account)
            load([program, "-F", config, "-n", "0"], ["\n\n".join(entries).encode()])
            argv = [program, "-q", "-F", config, "-b", self.suffix]
            load(argv, without_files(contents.restore_dump()), only=_plain)
        finally:
            with contextlib.suppress(OSError), locate(config) as found:
                shutil.rmtree(found.name, ignore_errors=True, dir_fd=found.folder)

    def swap(self, state: PathSwap, contents: Contents) -> list[str]:
        """Swap the directories."""
        del contents
        _refuse_held(state.live)
        try:
            with _Siblings(state) as here:
                if not here.has("new"):
                    raise CastoreError(
                        f"cannot replace {state.live}: another process removed {state.new}, which was to "
                        "replace it; repeat the rollback"
                    )
                if here.has("live"):
                    here.rename("live", "old")
                here.rename("new", "live")
                here.sync()
        except OSError as error:
            raise CastoreError(f"cannot replace {state.live}: {error.strerror}") from error
        return []

    def revert(self, state: PathSwap, contents: Contents, *, swapped: bool) -> None:
        """Swap the directories again, and delete what was staged."""
        del contents
        live, old = state.live, state.old
        try:
            with _Siblings(state) as here:
                if here.has("old"):
                    if here.has("live"):
                        here.rename("live", "new")
                    here.rename("old", "live")
                elif not state.existed and swapped and here.has("live") and not here.has("new"):
                    here.rename("live", "new")
                here.remove("new")
                here.remove("new", ".conf")
                here.sync()
        except OSError as error:
            raise CastoreError(
                f"{live} could not be restored ({error.strerror}): its previous content is in {old}"
            ) from error

    def cleanup(self, state: PathSwap) -> None:
        """Delete the replaced directory."""
        with _Siblings(state) as here:
            here.remove("old")

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the entries into a scratch directory, and count them."""
        count = 0

        def counted() -> Iterator[bytes | memoryview]:
            nonlocal count
            rest = b"\n"
            for piece in contents.restore_dump():
                text = rest + bytes(piece)
                count += text.count(b"\ndn: ") + text.count(b"\ndn:: ")
                rest = text[-5:]
                count -= rest.count(b"\ndn: ") + rest.count(b"\ndn:: ")
                yield piece

        data = os.path.join(folder, "data")
        # Not as root: any user may have written the entries.
        account = unprivileged("openldap")
        if account is not None:
            os.chmod(folder, 0o711)  # noqa: S103 - only that user can enter the directories in it
        self._load(data, os.path.join(folder, "conf"), contents._replace(restore_dump=counted), account)
        yield f"{counting.count(count, 'entry', 'entries')} loaded by slapadd", {"PATH": data}


def without_files(chunks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Yield LDIF line by line. Raises CastoreError for a line that makes slapadd read another file.

    Such lines are `attribute:< URL` and `include: URL`; both may be folded. slapcat writes neither.
    """
    pieces: list[bytes] = []  # joined once: a line may be long
    began = b""
    for chunk in itertools.chain(chunks, [None]):
        pieces.append(b"" if chunk is None else bytes(chunk))
        if chunk is not None and b"\n" not in pieces[-1]:
            continue
        lines = b"".join(pieces).split(b"\n")
        # What follows the last line end is checked with the next piece.
        rest = lines.pop()
        pieces = [rest]
        if chunk is None and rest:
            lines.append(rest)
        for line in lines:
            folded = line.startswith(b" ")
            began = (began + line[1:] if folded else line)[:_BEGINNING]
            # No attribute name is as long as the part that is checked.
            odd = b"\0" in line or (folded and len(began) == _BEGINNING and b":" not in began)
            if odd or _READS_FILE.match(began) or _READS_FILE.match(line):
                shown = line[:40].decode(errors="backslashreplace")
                raise CastoreError(
                    f"the LDIF has the line {shown!r}, which makes slapadd read another file, or stop "
                    "reading: such a dump is not loaded; restore another generation"
                )
        if lines:
            yield b"\n".join(lines) + (b"" if chunk is None else b"\n")


def _unfolded(ldif: bytes) -> str:
    return ldif.decode().replace("\n ", "")


_Name = Literal["live", "new", "old"]


class _Siblings:
    """The directory that contains the directories of a rollback: links there are not followed."""

    def __init__(self, state: PathSwap) -> None:
        self._folder = os.path.dirname(state.live)
        paths: dict[_Name, str] = {"live": state.live, "new": state.new, "old": state.old}
        self._names = {name: os.path.basename(path) for name, path in paths.items()}

    def __enter__(self) -> Self:
        with locate(self._folder) as found:
            self._fd = found.open_directory()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def has(self, key: _Name, ending: str = "") -> bool:
        """Whether it exists."""
        with contextlib.suppress(FileNotFoundError):
            name = self._names[key] + ending
            return stat.S_ISDIR(os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_mode)
        return False

    def rename(self, key: _Name, to: _Name) -> None:
        """Rename a directory. Raises OSError."""
        os.rename(self._names[key], self._names[to], src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, key: _Name, ending: str = "") -> None:
        """Delete a directory with its content, if it exists. Raises OSError."""
        if self.has(key, ending):
            shutil.rmtree(self._names[key] + ending, dir_fd=self._fd)

    def sync(self) -> None:
        """Make the names in the directory durable. Raises OSError."""
        sync_if_supported(self._fd)


def _make(path: str, account: pwd.struct_passwd | None) -> None:
    """Create a directory for a user; None: castore's own. Raises OSError."""
    with locate(os.path.dirname(path)) as found:
        above = found.open_directory()
    try:
        name = os.path.basename(path)
        os.mkdir(name, 0o700, dir_fd=above)
        made = os.open(name, OPEN_DIRECTORY, dir_fd=above)
        try:
            give(made, account)
        finally:
            os.close(made)
    finally:
        os.close(above)


def _give(top: str, info: os.stat_result) -> None:
    """Give a directory and the files in it to the owner of the live one. Raises OSError.

    The user that loaded it may have put links to files of others there, so each file is opened first.
    """
    with locate(top) as found:
        folder = found.open_directory()
    try:
        if os.geteuid() == 0:
            for name in os.listdir(folder):
                _give_file(folder, name, info)
            os.fchown(folder, info.st_uid, info.st_gid)
        os.fchmod(folder, stat.S_IMODE(info.st_mode) & 0o777)
    finally:
        os.close(folder)


def _give_file(folder: int, name: str, info: os.stat_result) -> None:
    file = os.open(name, OPEN_FILE, dir_fd=folder)
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            raise OSError(errno.EBUSY, f"{name} in it is not a regular file that slapadd made")
        os.fchown(file, info.st_uid, info.st_gid)
    finally:
        os.close(file)


def _plain(line: bytes) -> bytes:
    """Return what may be shown of slapadd's messages: what failed and in which line, but not whose entry."""
    return re.sub(rb'"[^"]*"?', b'"..."', line)


def _refuse_held(data: str) -> None:
    """Raise CastoreError while a process has a database open: it would keep using the replaced files."""
    end = time.monotonic() + _END_SECONDS
    while held := _is_locked(data) or _is_open(data):
        if time.monotonic() > end:
            raise CastoreError(
                f"slapd still has {data} open (process {held}): the `stop` program in castore.toml has to "
                "stop it, and `start` to start it again"
            )
        time.sleep(0.05)


def _is_locked(data: str) -> int:
    """Return a process that has an LMDB environment open; 0: none. Each locks the environment's lock file."""
    lock = os.path.join(data, "lock.mdb")
    with contextlib.suppress(OSError), locate(lock) as found, open(found.open_regular(), "rb") as file:
        asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0)
        kind, _, _, _, holder = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
        if kind != fcntl.F_UNLCK:
            # A process of another PID namespace is reported as 0.
            return int(holder) or -1
    return 0


def _is_open(data: str) -> int:
    """Return a process that has a file in a directory open; 0: none that can be seen."""
    for path in glob.glob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.path.dirname(os.readlink(path)) == data:
                return int(path.split("/")[2])
    return 0
