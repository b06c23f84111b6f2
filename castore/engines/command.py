"""A dump that one program writes and another restores."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

import msgspec

from castore.engines.base import SWAPPING, Contents, Engine, Memo
from castore.engines.clients import guarded_client, refusal_of_tables
from castore.errors import UsageError
from castore.process.runners import feed, run_dump

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from castore.engines.base import Bytes, Readinto


class Command(Engine, frozen=True):
    """A dump that a program writes.

    It cannot be staged. A rollback feeds the dump to the live service, and reverts by feeding the dump that
    was taken before.
    """

    program: tuple[str, ...] = msgspec.field(name="dump")
    """The program that writes the dump to its standard output."""
    restore: tuple[str, ...] = ()
    """The program that restores the dump from its standard input; empty: no rollback is possible."""

    runs_programs: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ("program", "restore")

    def dump(self) -> AbstractContextManager[Readinto]:
        """Return a context with a function that reads the dump."""
        return run_dump(self.program, timeout=self.timeout, account=self.account)

    def refusal(self) -> str:
        """Return why this part cannot be rolled back."""
        return "" if self.restore else "no program restores its dump: name one as 'restore' in castore.toml"

    def preflight(self) -> None:
        """Check that the program exists, and that its database can take the dump."""
        program = self.restore[0]
        if shutil.which(program) is None:
            raise UsageError(
                f"there is no program {program!r} to restore the dump: nothing was touched; install it, or "
                "correct 'restore' in castore.toml"
            )
        if reason := refusal_of_tables(self.program, self.restore, self.timeout, self.account):
            raise UsageError(reason)

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Do nothing: the dump cannot be staged."""

    def swap(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump to its program."""
        del memo
        self._load(contents.restore_dump())

    def revert(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump that was taken before the rollback to the program."""
        if SWAPPING not in memo:
            return
        self._load(contents.previous_dump())

    def _load(self, chunks: Iterable[Bytes]) -> None:
        """Feed a dump to its program; a known database client is kept from running commands in the dump."""
        account = self.account
        argv, safe = guarded_client(self.restore, chunks, self.timeout, account)
        feed(argv, safe, timeout=self.timeout, account=account)
