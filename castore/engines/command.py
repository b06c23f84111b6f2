"""A dump that one program writes and another restores."""

from __future__ import annotations

import contextlib
import shlex
import shutil
from typing import TYPE_CHECKING, ClassVar

import msgspec

from castore.engines.dump_stream import DumpStream
from castore.engines.unstaged import UnstagedEngine
from castore.errors import UsageError
from castore.process.runners import feed, run_dump

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from castore.engines.dump_stream import Bytes


class Command(UnstagedEngine, frozen=True):
    """A dump that a program writes, and that another program loads into the live service."""

    program: tuple[str, ...] = msgspec.field(name="dump")
    """The program that writes the dump to its standard output."""
    restore: tuple[str, ...] = ()
    """The program that restores the dump from its standard input; empty: no rollback is possible."""

    runs_programs: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ("program", "restore")

    def label(self) -> str:
        """Return the program that writes the dump."""
        return shlex.join(self.program)

    @contextlib.contextmanager
    def dump(self) -> Iterator[DumpStream]:
        """Yield a stream of the program's output."""
        with run_dump(self.program, timeout=self.timeout, account=self.account) as readinto:
            yield DumpStream(readinto)

    def refusal(self) -> str:
        """Return why this part cannot be rolled back."""
        if self.restore:
            return ""
        return "cannot restore this dump: no restore program is set (set 'restore' in castore.toml)"

    def preflight(self) -> None:
        """Check that the program exists, and that its database can take the dump."""
        if reason := self.refusal():
            raise UsageError(reason)
        program = self.restore[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"cannot find the restore program {program!r} (install it, or fix 'restore' in "
                "castore.toml); nothing was changed"
            )
        from castore.engines.clients import refusal_of_tables

        if reason := refusal_of_tables(self.program, self.restore, self.timeout, self.account):
            raise UsageError(reason)

    def load(self, dump: Iterable[Bytes]) -> None:
        """Feed a dump to its program; a known database client is kept from running commands in the dump."""
        account = self.account
        from castore.engines.clients import guarded_client

        argv, safe = guarded_client(self.restore, dump, self.timeout, account)
        feed(argv, safe, timeout=self.timeout, account=account)
