"""One MariaDB or MySQL database, restored into a new one, whose tables then take the place of the live ones.

These servers cannot rename a database. Tables move between databases in one atomic RENAME TABLE. The programs
of the database (views, triggers, routines, events) do not move: they are recorded as the server shows them,
dropped, and created again under their own names, from their own text. So no SQL text is edited, except that
the default of a column that takes the next value of a sequence is staged without the database's name.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket as sockets
from typing import TYPE_CHECKING, Any, ClassVar, Final

import msgspec

from castore.engines.base import Contents, Engine
from castore.engines.dump_stream import DumpStream, read_preamble
from castore.engines.mariadb import (
    accounts,
    checks,
    inventory,
    programs,
)
from castore.engines.mariadb import dump as dumps
from castore.engines.mariadb.client import CLIENT, DUMP, Client
from castore.engines.mariadb.contents import StoredDump
from castore.engines.mariadb.scratch import scratch_server
from castore.engines.mariadb.sql import literal, quoted
from castore.engines.mariadb.swap import MariaDBSwap, Swap, charset, charset_clause, exists
from castore.engines.options import refuse_elsewhere
from castore.engines.password import Secret
from castore.engines.state import EngineState
from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager


_ELSEWHERE: Final = ("-A", "--all-databases", "-B", "--databases")
_DRILL: Final = "drill"


class MariaDB(Engine[MariaDBSwap], frozen=True):
    """One database of a MariaDB server, as mariadb-dump writes it."""

    database: str
    host: str | None = None
    port: int | None = None
    socket: str | None = None
    user: str | None = None
    password: Secret | None = None
    defaults_file: str | None = None
    """The option file that the programs read; they read no other."""
    options: tuple[str, ...] = ()
    """More arguments of the dump program."""
    program_path: str | None = None
    """The directory of the programs."""

    runs_programs: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...]] = ("program_path", "socket", "defaults_file")
    state_type: ClassVar[type[EngineState]] = MariaDBSwap
    names: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (
        ("mariadb-dump", "mysqldump"),
        ("mariadb", "mysql"),
    )
    """The possible names of the dump program and of the client."""

    @property
    def _client(self) -> Client:
        return Client(
            names=self.names,
            host=self.host,
            port=self.port,
            socket=self.socket,
            user=self.user,
            password=self.password,
            defaults_file=self.defaults_file,
            program_path=self.program_path,
            timeout=self.timeout,
            account=self.account,
        )

    def label(self) -> str:
        """Return the name of the database."""
        return self.database

    def exists(self) -> bool:
        """Whether the server has this database."""
        return exists(self._client, self.database)

    def check(self) -> None:
        """Check that the database can be dumped completely, and rolled back. Raises CastoreError."""
        with self._client.connected() as client:
            client.program(DUMP)
            client.query("SELECT 1", self.database)
            checks.refuse_unseen(client, self.database)
            self._preflight(client)

    def version(self) -> str:
        """Return the server's version."""
        return f"mariadb {self._client.query('SELECT VERSION()')[0][0]}"

    def compatibility_warning(self, version: str) -> str:
        """Return a warning if the server is older than the dumped one, or of another vendor."""
        then, now = version.rsplit(maxsplit=1)[-1], self.version().split()[-1]
        if ("MariaDB" in then) != ("MariaDB" in now):
            return f"it was dumped from {then}, and the server here is {now}: it may fail to load"
        numbers = [tuple(int(n) for n in re.findall("[0-9]+", version)[:2]) for version in (then, now)]
        if numbers[1] >= numbers[0]:
            return ""
        return f"it was dumped from {then}, and the server here is {now}, which is older: it may fail to load"

    def dump(self) -> AbstractContextManager[DumpStream]:
        """Return a context with a stream of a dump of one moment of the database."""
        return self.stable_dump(os.urandom(16).hex())

    def stable_dump(self, secret: str) -> AbstractContextManager[DumpStream]:
        """Do as `dump`, with a mark between the sections that depends only on the secret."""
        mark = hashlib.blake2b(secret.encode(), digest_size=12).hexdigest()
        return self._dump(mark)

    @contextlib.contextmanager
    def _dump(self, mark: str) -> Iterator[DumpStream]:
        with (
            self._client.connected() as client,
            dumps.dump(client, self.database, self.options, mark) as stream,
        ):
            yield stream

    def preflight(self) -> None:
        """Check that the server answers, and that a rollback is possible. Raises CastoreError."""
        with self._client.connected() as client:
            self._preflight(client)

    def _preflight(self, client: Client) -> None:
        dumps.refuse_options(client, self.options)
        refuse_elsewhere(self.options, _ELSEWHERE)
        checks.refuse_unready(client, self.database)

    def prepare(self) -> MariaDBSwap:
        """Return the names of the databases that the rollback creates."""
        return Swap.prepare(self.database, existed=self.exists())

    def stage(self, state: MariaDBSwap, contents: Contents) -> list[str]:
        """Create a database, load the dump, and compare it with what the dump records."""
        with self._client.connected() as client:
            return self._stage(client, state, contents)

    def _stage(self, client: Client, state: MariaDBSwap, contents: Contents) -> list[str]:
        swap, new = Swap(client, state), state.new
        preamble = read_preamble(contents.restore_dump())
        dump = StoredDump(preamble, contents.restore_dump())
        self._refuse_without_space(client, swap.live)
        swap.make(dump.charset)
        dump.load_into(client, new)
        self._refuse_differences(dump.differences(client, new))
        self._refuse_lost(client, dump, swap.live)
        programs.refuse_mixed(dump.programs)
        # Routines and triggers in the staged database would prevent its tables from being moved.
        programs.rehearse(client, new, dump.programs, dump.database, dump.charset[1])
        swap.drop_programs(new)
        swap.keep("programs", dump.programs)
        swap.keep("tables", self._digests(client, new))
        swap.detach("new keys")
        if state.existed:
            return []
        return [f"created the database {self.database}", *self._make_accounts(client, state, preamble)]

    @staticmethod
    def _refuse_differences(lines: list[str]) -> None:
        if lines:
            raise CastoreError(
                f"the staged copy is not what was dumped: {'; '.join(lines[:5])}"
                + (f"; and {len(lines) - 5} more" if len(lines) > 5 else "")
                + "; restore another generation; nothing was changed"
            )

    @staticmethod
    def _refuse_lost(client: Client, dump: StoredDump, live: str) -> None:
        """Raise CastoreError if the rollback would drop programs that the dump could not record."""
        if dump.programs and dump.database != live:
            raise CastoreError(
                f"the dump is of the database {dump.database}, whose views, triggers, routines and events "
                f"belong to that name: they cannot be created in {live}; castore cat gives the text of the "
                "dump; nothing was changed"
            )
        present = programs.names(client, live)
        for unseen in dump.end.unseen:
            if lost := [f"{kind} {name}" for kind, name in present if kind in unseen or f"{kind}s" in unseen]:
                raise CastoreError(
                    f"this generation was taken by an account that could not see {unseen}, and a rollback "
                    f"would drop {', '.join(lost[:5])}; drop them first if they are not wanted, or choose "
                    "another generation; nothing was changed"
                )

    @staticmethod
    def _refuse_without_space(client: Client, live: str) -> None:
        """Raise CastoreError if the server's disk, on this machine, has no room for a second copy."""
        where = f"WHERE TABLE_SCHEMA = {literal(live)}"
        total = f"SELECT COALESCE(SUM(DATA_LENGTH + INDEX_LENGTH), 0) FROM information_schema.TABLES {where}"
        host, folder, size = client.ask(f"SELECT @@hostname, @@datadir, ({total})")[0]
        with contextlib.suppress(OSError):
            if host == sockets.gethostname():
                info = os.statvfs(folder)
                free = info.f_bavail * info.f_frsize
                if free < int(size):
                    raise CastoreError(
                        f"{folder} has {free} bytes free, and a second copy of {live} needs about {size}; "
                        "free space there, and repeat the rollback; nothing was changed"
                    )

    @staticmethod
    def _make_accounts(client: Client, state: MariaDBSwap, preamble: dict[str, Any]) -> list[str]:
        """Create the recorded users that do not exist; return a line for each."""
        recorded = accounts.decode(preamble)
        if recorded is None:
            line = (
                f"the dump does not record the users of the database {state.live}: create those that it "
                "needs (they are recorded where the dumping user may read the schema mysql)"
            )
            return [line]
        try:
            lacking = accounts.missing(client.quietly, recorded)
        except ProgramError as error:
            return [f"cannot see which users exist: {error}; create those that the database needs"]
        created, lines = accounts.create(client.query, lacking)
        state.accounts = tuple(created)
        return lines

    def creates(self, contents: Callable[[], Iterable[bytes | memoryview]]) -> list[str]:
        """Return the database and the users that a rollback would create."""
        if self.exists():
            return []
        recorded = accounts.decode(read_preamble(contents()))
        users = []
        if recorded is not None:
            with contextlib.suppress(ProgramError):  # the account sees no users: `stage` reports it
                users = accounts.missing(self._client.quietly, recorded)
        return [f"the database {self.database}", *(user.shown for user in users)]

    def swap(self, state: MariaDBSwap, contents: Contents) -> list[str]:
        """Move the live tables aside and the new ones in, and create the programs."""
        with self._client.connected() as client:
            return self._swap(client, state, contents)

    def _swap(self, client: Client, state: MariaDBSwap, contents: Contents) -> list[str]:
        swap = Swap(client, state)
        live, new = swap.live, swap.new
        if not state.existed:
            client.query(
                f"CREATE DATABASE IF NOT EXISTS {quoted(live)}{charset_clause(charset(client, new))}"
            )
        if not swap.is_moved:
            swap.lock_all()
            swap.keep_live()
            swap.drop_programs(live)
            swap.detach("old keys")
            swap.move()
        swap.drop_programs(live)
        swap.set_charset(new)
        swap.settle_defaults()
        swap.attach("new keys")
        lines = swap.create_programs(swap.new_programs())
        self._compare_tables(client, swap)
        if not state.existed and (recorded := accounts.decode(read_preamble(contents.restore_dump()))):
            lines += accounts.grant(client.query, live, recorded, state.accounts)
        return lines

    @staticmethod
    def _digests(client: Client, database: str) -> dict[str, str]:
        """Return a digest of each definition, without the name of its database."""
        tables = inventory.tables(client, database).values()
        texts = inventory.definitions(client, database, tables)
        return {name: hashlib.blake2b(text, digest_size=12).hexdigest() for name, text in texts.items()}

    def _compare_tables(self, client: Client, swap: Swap) -> None:
        """Raise CastoreError if the live tables are not those that were staged."""
        staged = msgspec.json.decode(swap.kept("tables") or b"{}", type=dict[str, str])
        digests = self._digests(client, swap.live)
        for name in sorted(staged.keys() | digests.keys()):
            if staged.get(name) != digests.get(name):
                raise CastoreError(
                    f"the table {name} of {swap.live} was changed during the swap: is it in use? Stop what "
                    "uses it, and repeat the rollback"
                )

    def revert(self, state: MariaDBSwap, contents: Contents, *, swapped: bool) -> None:
        """Move the replaced tables to their place again."""
        del contents
        with self._client.connected() as client:
            self._revert(client, state, swapped=swapped)

    def _revert(self, client: Client, state: MariaDBSwap, *, swapped: bool) -> None:
        swap = Swap(client, state)
        live, old = swap.live, swap.old
        if swapped and swap.is_made:
            swap.wait()
            if swap.is_moved:
                swap.drop_programs(live)
                swap.move_back()
            if state.existed:
                swap.set_charset(old)
            swap.attach("old keys")
            if (live_programs := swap.live_programs()) is not None:
                swap.drop_programs(live)
                swap.create_programs(live_programs)
            swap.restore_asides()
            if not state.existed and exists(client, live) and not inventory.tables(client, live):
                client.query(f"DROP DATABASE {quoted(live)}")
        # A remaining account does no damage: the next rollback finds it.
        with contextlib.suppress(ProgramError):
            accounts.drop(client.quietly, state.accounts)
        if not swapped:
            # The live database was not touched. What cannot be removed now, the next rollback removes.
            with contextlib.suppress(ProgramError):
                swap.remove()
            return
        if inventory.tables(client, old):
            raise CastoreError(f"the live tables of {live} are in {old}, and were not moved back")
        swap.remove()

    def cleanup(self, state: MariaDBSwap) -> None:
        """Drop the replaced tables."""
        with self._client.connected() as client:
            Swap(client, state).remove()

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Load the dump into a private server on a private socket, check its tables, and count its rows."""
        with scratch_server(folder, self._client.program(CLIENT)) as socket:
            own = Client(names=self.names, socket=socket, user="root", program_path=self.program_path)
            dump = StoredDump(read_preamble(contents.restore_dump()), contents.restore_dump())
            # Under its own name: a trigger's text may contain it.
            name = dump.database
            own.query(f"CREATE DATABASE {quoted(name)}{charset_clause(dump.charset)}")
            dump.load_into(own, name)
            differences = dump.differences(own, name)
            programs.create(own, name, dump.programs, dump.charset[1])
            lines, _ = programs.differences(dump.programs, programs.read(own, name)[0])
            if differences := [*differences, *lines]:
                raise CastoreError(
                    f"the restored copy differs from the dump: {'; '.join(differences[:5])}; drill another "
                    "generation"
                )
            tables = inventory.tables(own, name)
            for table, *_, said in own.query(
                ";\n".join(f"CHECK TABLE {quoted(table)}" for table in tables), name
            ):
                if said not in {"OK", "Table is already up to date"} and "doesn't support" not in said:
                    raise CastoreError(f"the table {table}: {said}")
            count = inventory.count(
                own, name, (table for table in tables.values() if table.kind != "SEQUENCE")
            )
            self._alias(own, name, count)
            rows = sum(count.values()) + len(tables) - len(count)  # a sequence has one row
            finding = f"{counted(rows, 'row')} in {counted(len(tables), 'table')}"
            finding += ", CHECK TABLE ok, in a private server"
            yield finding, {"SOCKET": socket, "DATABASE": name, "USER": "root"}

    @staticmethod
    def _alias(own: Client, name: str, tables: Iterable[str]) -> None:
        """Let a drill-check also find the tables in the database `drill`, whatever its own name is."""
        if name != _DRILL:
            view = "CREATE VIEW {0}.{2} AS SELECT * FROM {1}.{2}"
            views = (view.format(_DRILL, quoted(name), quoted(table)) for table in tables)
            own.query(";\n".join([f"CREATE DATABASE {_DRILL}", *views]))


class MySQL(MariaDB, frozen=True):
    """One database of a MySQL server, as mysqldump writes it."""

    names: ClassVar[tuple[tuple[str, ...], tuple[str, ...]]] = (("mysqldump",), ("mysql",))
