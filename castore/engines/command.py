"""Any dump that a program makes and another takes in."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, ClassVar

import msgspec

from castore.engines.base import SWITCHING, Contents, Engine, Memo
from castore.engines.clients import guarded_client, refusal_of_tables
from castore.errors import UsageError
from castore.process.runners import feed, run_dump

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import AbstractContextManager

    from castore.engines.base import Bytes, Readinto


class Command(Engine, frozen=True):
    """A dump made by a program.

    It cannot be staged: a roll-back feeds it to the live service, and undoes that by feeding it what
    was there before.
    """

    program: tuple[str, ...] = msgspec.field(name="dump")
    """The program that writes the dump to its standard output."""
    restore: tuple[str, ...] = ()
    """The program that takes it in on its standard input; empty: it cannot be rolled back."""

    runs_programs: ClassVar[bool] = True
    programs: ClassVar[tuple[str, ...]] = ("program", "restore")

    def dump(self) -> AbstractContextManager[Readinto]:
        """Give a function that reads the dump."""
        return run_dump(self.program, timeout=self.timeout, account=self.account)

    def refusal(self) -> str:
        """Return why it cannot be put back."""
        return "" if self.restore else "no program is known that takes it back in: name one as 'restore'"

    def ready(self) -> None:
        """See whether the program is there."""
        program = self.restore[0]
        if shutil.which(program) is None:
            raise UsageError(f"there is no program {program!r} to take the dump in: nothing was touched")
        if reason := refusal_of_tables(self.program, self.restore, self.timeout, self.account):
            raise UsageError(reason)

    def stage(self, memo: Memo, contents: Contents) -> None:
        """Do nothing: it cannot be staged."""

    def switch(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump to its program."""
        del memo
        self._load(contents.target())

    def undo(self, memo: Memo, contents: Contents) -> None:
        """Feed the dump that was taken before to the program."""
        if SWITCHING not in memo:
            return
        self._load(contents.before())

    def _load(self, chunks: Iterable[Bytes]) -> None:
        """Feed a dump to its program; to a client of a database so that it runs no command in it."""
        account = self.account
        argv, safe = guarded_client(self.restore, chunks, self.timeout, account)
        feed(argv, safe, timeout=self.timeout, account=account)
