"""A real PostgreSQL server, started for the tests and reached over a Unix socket only."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any, NoReturn, Self

import pytest

from tests.support.data_dir_templates import copied, folder_for_servers

if TYPE_CHECKING:
    from types import TracebackType

_PROGRAMS = "/usr/lib/postgresql/*/bin"
_PATIENCE = 60
_RESTRICT_KEY = os.urandom(16).hex()
_QUIET = (
    "listen_addresses=",
    "fsync=off",
    "full_page_writes=off",
    "synchronous_commit=off",
    "autovacuum=off",
    "max_wal_size=256MB",
)


def missing(reason: str) -> NoReturn:
    """Skip the test, or fail it where servers are required."""
    if os.environ.get("CASTORE_TEST_SERVERS") == "required":
        pytest.fail(f"CASTORE_TEST_SERVERS=required, but {reason}")
    pytest.skip(reason)


def _folder_of_programs() -> str:
    """Return the directory of the server's programs: CASTORE_TEST_POSTGRES, or that of the newest version."""
    if chosen := os.environ.get("CASTORE_TEST_POSTGRES"):
        return chosen
    folders = [path for path in glob.glob(_PROGRAMS) if os.access(f"{path}/initdb", os.X_OK)]
    if folders:
        return max(folders, key=lambda path: [int(x) for x in path.split("/")[-2].split(".")])
    if initdb := shutil.which("initdb"):
        return os.path.dirname(os.path.realpath(initdb))
    missing(f"there is no PostgreSQL server in {_PROGRAMS} or PATH")


def _account() -> pwd.struct_passwd | None:
    """Return whom to run the server as, since it refuses to run as root; None: as oneself."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    missing("there is no user to run PostgreSQL as")


class Postgres:
    """A server in a temporary directory; a context manager.

    Any user of the machine may connect as `postgres` while it runs, through `socket_folder`.
    """

    def __init__(self, *initdb: str) -> None:
        """Initdb: more arguments of it."""
        self._initdb = initdb
        self.programs = _folder_of_programs()
        self._account = _account()
        # Not under pytest's own directory: the server's user may not enter it, and a socket's path
        # has at most 107 bytes.
        self._folder = tempfile.mkdtemp(prefix="castore-pg-", dir=folder_for_servers())
        self.socket_folder = self._folder
        self._process: subprocess.Popen[bytes] | None = None
        self._as_server: dict[str, Any] = {}

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _program(self, name: str) -> str:
        return os.path.join(self.programs, name)

    def _rights(self) -> dict[str, Any]:
        account = self._account
        if account is None:
            return {"cwd": self._folder}
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": [], "cwd": self._folder}

    def _start(self) -> None:
        if self._account is not None:
            os.chown(self._folder, self._account.pw_uid, self._account.pw_gid)
        os.chmod(self._folder, 0o755)
        data = os.path.join(self._folder, "data")
        initdb: tuple[str, ...] = (self._program("initdb"), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C")
        initdb += ("--no-sync", *self._initdb)

        def make(folder: str) -> None:
            argv = [*initdb, "-D", folder]
            made = subprocess.run(argv, capture_output=True, text=True, check=False, **self._rights())
            assert made.returncode == 0, f"initdb failed: {made.stderr}"

        copied(initdb, make, data)
        self._run_server()

    def _run_server(self) -> None:
        data = os.path.join(self._folder, "data")
        settings = [word for each in _QUIET for word in ("-c", each)]
        self.log = os.path.join(self._folder, "log")
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                [self._program("postgres"), "-D", data, "-k", self.socket_folder, *settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Not in the terminal's group: Ctrl-C must not end it before the test that uses it.
                process_group=0,
                **self._rights(),
            )
        self._wait()

    def _wait(self) -> None:
        assert self._process is not None
        end = time.monotonic() + _PATIENCE
        ready = [self._program("pg_isready"), "-q", "-h", self.socket_folder, "-U", "postgres"]
        while subprocess.run(ready, check=False).returncode != 0:
            if self._process.poll() is not None or time.monotonic() > end:
                with open(self.log, encoding="utf-8", errors="replace") as log:
                    raise AssertionError(f"PostgreSQL did not start: {log.read()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.05)

    def require_peer(self) -> None:
        """Let only the user `postgres` of the system connect, as the role of that name; needs root."""
        with open(os.path.join(self._folder, "data", "pg_hba.conf"), "w", encoding="utf-8") as file:
            file.write("local all all peer\n")
        self._as_server = self._rights()
        self.restart()

    def restart(self) -> None:
        """End the server and start it again."""
        self._end()
        self._run_server()

    def stop(self) -> None:
        """End the server and remove its directory."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(signal.SIGINT)  # a "fast" shutdown: clients are cut off
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGQUIT)  # "immediate": its children end too
                process.wait(_PATIENCE)

    def _connection(self) -> list[str]:
        return ["-h", self.socket_folder, "-U", "postgres"]

    def _run(self, argv: list[str], text: str | None = None) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            argv, input=text, capture_output=True, text=True, check=False, **self._as_server
        )
        assert done.returncode == 0, f"{argv}: exit code {done.returncode}: {done.stderr}"
        return done.stdout

    def createdb(self, database: str) -> None:
        """Make an empty database."""
        self._run([self._program("createdb"), *self._connection(), "-T", "template0", database])

    def dropdb(self, database: str) -> None:
        """Remove a database if it is there."""
        self._run([self._program("dropdb"), *self._connection(), "--if-exists", "--force", database])

    def psql(self, sql: str, database: str = "postgres") -> str:
        """Run SQL statements; return what they print, unaligned and without headers."""
        options = ["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"]
        return self._run([self._program("psql"), *options, *self._connection(), "-d", database], sql).strip()

    def pgbench_init(self, scale: int, database: str = "bench") -> None:
        """Fill an existing database with pgbench's tables: about 15 MB a unit of scale."""
        self._run([self._program("pgbench"), *self._connection(), "-i", "-q", "-s", str(scale), database])

    def pgbench_run(self, transactions: int, database: str = "bench") -> None:
        """Run that many of pgbench's transactions, the same ones each time."""
        options = ["-n", "--random-seed=1", "-t", str(transactions)]
        self._run([self._program("pgbench"), *self._connection(), *options, database])

    def fingerprint(self, database: str = "bench") -> str:
        """Return a hash of every row of every table of a database's public schema."""
        tables = self.psql(
            "select quote_ident(tablename) from pg_tables where schemaname = 'public' order by 1", database
        )
        return "\n".join(
            f"{table} "
            + self.psql(
                # A sum needs no order: to sort the rows would take most of the time.
                f"select count(*), sum(hashtextextended(t::text, 1)) from {table} t",
                database,
            )
            for table in tables.split()
        )

    def dump_argv(self, database: str) -> list[str]:
        """Return the program that dumps a database, to standard output, the same each time.

        What it prints replaces the tables that are there when it is restored.
        """
        dump = self._program("pg_dump")
        options = ["--clean", "--if-exists"]
        if "--restrict-key" in self._run([dump, "--help"]):  # else a random one is drawn for each dump
            options.append(f"--restrict-key={_RESTRICT_KEY}")
        return [dump, *self._connection(), *options, database]

    def restore_argv(self, database: str) -> list[str]:
        """Return the program that takes a dump in on standard input, all of it or nothing."""
        options = ["-X", "-q", "-v", "ON_ERROR_STOP=1", "--single-transaction"]
        return [self._program("psql"), *options, *self._connection(), "-d", database]
