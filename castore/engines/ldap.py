"""One database of an OpenLDAP server, as LDIF: restored into a directory that replaces the live one."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from castore.engines.base import Contents, Engine
from castore.engines.dump_stream import DumpStream
from castore.engines.ldap_directory import Siblings, give_like, make_for, refuse_held
from castore.engines.ldif import unfolded, without_files, without_values
from castore.engines.state import EngineState, PathSwap
from castore.errors import CastoreError, ProgramError, UsageError
from castore.fs.beneath import locate, real_path
from castore.fs.regular import temporary_names
from castore.model import counting
from castore.process.environment import client_environment
from castore.process.runners import feed, output_of, run_dump
from castore.process.servers import unprivileged
from castore.process.users import owner_account

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterator


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
        program = shutil.which(f"{self.program_path}/{name}" if self.program_path else name, path=path)
        if program is None:
            raise ProgramError(
                f"there is no program {name!r}, which the engine ldap needs: install it, or set "
                "`program-path`"
            )
        return program

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
        for entry in unfolded(self._configuration()).split("\n\n"):
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
                give_like(state.new, os.stat(state.live, follow_symlinks=False))
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
                make_for(folder, account)
        except OSError as error:
            raise CastoreError(f"cannot create {data}: {error.strerror}") from error
        try:
            entries = []
            known = False
            for entry in unfolded(self._configuration()).split("\n\n"):
                suffix = re.search(f"(?im)^olcSuffix: {re.escape(self.suffix)}$", entry)
                known = known or suffix is not None
                entries.append(
                    re.sub("(?m)^olcDbDirectory: .*$", f"olcDbDirectory: {data}", entry) if suffix else entry
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
            load(argv, without_files(contents.restore_dump()), only=without_values)
        finally:
            with contextlib.suppress(OSError), locate(config) as located:
                shutil.rmtree(located.name, ignore_errors=True, dir_fd=located.folder)

    def swap(self, state: PathSwap, contents: Contents) -> list[str]:
        """Swap the directories."""
        del contents
        refuse_held(state.live)
        try:
            with Siblings(state) as siblings:
                if not siblings.has("new"):
                    raise CastoreError(
                        f"cannot replace {state.live}: another process removed {state.new}, which was to "
                        "replace it; repeat the rollback"
                    )
                if siblings.has("live"):
                    siblings.rename("live", "old")
                siblings.rename("new", "live")
                siblings.sync()
        except OSError as error:
            raise CastoreError(f"cannot replace {state.live}: {error.strerror}") from error
        return []

    def revert(self, state: PathSwap, contents: Contents, *, swapped: bool) -> None:
        """Swap the directories again, and delete what was staged."""
        del contents
        live, old = state.live, state.old
        try:
            with Siblings(state) as siblings:
                if siblings.has("old"):
                    if siblings.has("live"):
                        siblings.rename("live", "new")
                    siblings.rename("old", "live")
                elif not state.existed and swapped and siblings.has("live") and not siblings.has("new"):
                    siblings.rename("live", "new")
                siblings.remove("new")
                siblings.remove("new", ".conf")
                siblings.sync()
        except OSError as error:
            raise CastoreError(
                f"{live} could not be restored ({error.strerror}): its previous content is in {old}"
            ) from error

    def cleanup(self, state: PathSwap) -> None:
        """Delete the replaced directory."""
        with Siblings(state) as siblings:
            siblings.remove("old")

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
