"""A lock on the tables whose engine has no transactions, while the dump program reads them.

Another session than the dump program's holds it. A statement that waits for the lock may itself hold up the
dump program. To avoid a deadlock castore then releases the lock, and reports that.
"""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Final, Self

from castore.engines.mariadb.sql import quoted
from castore.errors import ProgramError

if TYPE_CHECKING:
    from collections.abc import Collection
    from types import TracebackType

    from castore.engines.dump_stream import Readinto
    from castore.engines.mariadb.client import Client
    from castore.engines.mariadb.inventory import Table
    from castore.engines.mariadb.script import Observed

STUCK_SECONDS: Final = 10.0
"""Seconds without output of the dump program after which castore assumes that the lock holds it up."""
_MEMORY: Final = "MEMORY"
"""The only engine without transactions whose writers ignore the lock of a backup."""
_BACKUP: Final = "BACKUP STAGE START; BACKUP STAGE FLUSH; BACKUP STAGE BLOCK_DDL;"
"""Writers of tables without transactions wait before they hold anything; all other writers continue."""


class OtherTables:
    """The tables without transactions, locked from the beginning of the block. A context manager.

    Call `watched` with the function that reads the dump, and `passed` as the dump proceeds.
    """

    def __init__(self, client: Client, database: str, tables: Collection[Table]) -> None:
        sql = "SELECT ENGINE FROM information_schema.ENGINES WHERE TRANSACTIONS = 'YES'"
        safe = {row[0] for row in client.ask(sql)}
        others = [table for table in tables if table.engine and table.engine not in safe]
        # If there is only one table, one statement reads all of it.
        self.names = {other.name for other in others} if len(tables) > 1 else set()
        self.unlocked: dict[str, str] = {}
        """Names of tables whose rows may be of another moment, each with the reason."""
        self._client = client
        self._lock = _BACKUP
        memory = {other.name for other in others if other.engine == _MEMORY} & self.names
        if memory == self.names:
            where = ", ".join(f"{quoted(database)}.{quoted(name)}" for name in sorted(memory))
            self._lock = f"FLUSH TABLES {where} WITH READ LOCK;"
        else:
            self.unlocked = dict.fromkeys(memory, "writers of the engine MEMORY wait for no lock")
        self._held: contextlib.ExitStack | None = None
        self._guard = threading.Lock()
        self._reading = 0.0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="castore-lock", daemon=True)

    def __enter__(self) -> Self:
        if self.names:
            held = contextlib.ExitStack()
            try:
                held.enter_context(self._client.holding(self._lock))
            except ProgramError as error:
                self._give_up(f"the lock could not be taken ({error}); GRANT RELOAD ON *.* to the account")
            else:
                self._held = held
                self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._release()
        if self._watcher.ident is not None:
            self._watcher.join()

    def watched(self, readinto: Readinto) -> Readinto:
        """Return a function that reads a dump, and shows while it waits for the dump program."""

        def read(view: memoryview) -> int:
            self._reading = time.monotonic()
            try:
                return readinto(view)
            finally:
                self._reading = 0.0

        return read

    def passed(self, observed: Observed) -> None:
        """Release the lock once the dump is past the last table that needs it."""
        created = observed.script.created
        if self._held is None or not self.names <= created.keys():
            return
        if next(reversed(created)) not in self.names:
            self._release()

    def _watch(self) -> None:
        while not self._over.wait(0.5):
            began = self._reading
            if self._held is not None and began and time.monotonic() - began > STUCK_SECONDS:
                self._give_up("a statement that waited for the lock held up the dump; the lock was released")
                self._release()

    def _give_up(self, reason: str) -> None:
        self.unlocked |= dict.fromkeys(self.names, reason)

    def _release(self) -> None:
        with self._guard:
            held, self._held = self._held, None
            if held is not None:
                try:
                    held.close()
                except ProgramError as error:
                    self._give_up(f"the lock was lost ({error})")
