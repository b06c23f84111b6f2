"""Run the programs of MariaDB and MySQL, independent of the option files and settings of the machine.

A program reads only one option file: a file in memory that castore writes. Each session sets all variables
that change what a statement does or what the client prints. So neither a server's defaults nor its
`init_connect` matter.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.engines.connecting import Chunks, dump_when_free, open_when_free, when_free
from castore.engines.mariadb.script import plain, unescaped
from castore.engines.password import read_setting
from castore.engines.query_session import QuerySession
from castore.errors import ProgramError
from castore.process.environment import client_environment
from castore.process.program import Command, Program
from castore.process.runners import feed, output_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator, Sequence

    from castore.engines.dump_stream import Readinto
    from castore.engines.password import Secret
    from castore.process.standard_error import Filter

MOST: Final = 1 << 30
"""The most bytes that a query may print."""
PACKET: Final = 1 << 30
"""The largest packet in bytes that the protocol allows."""
LOCK_SECONDS: Final = 30
"""Seconds to wait for a table that an idle transaction of another client holds; the default is a day."""
DUMP, CLIENT = 0, 1
_SESSION: Final = (
    "SET SESSION sql_mode = '', autocommit = 1, sql_safe_updates = 0, sql_big_selects = 1, "
    "sql_select_limit = 18446744073709551615, sql_quote_show_create = 1, time_zone = '+00:00', "
    "lc_messages = 'en_US', wait_timeout = 2147483, net_read_timeout = 3600, net_write_timeout = 3600, "
    "lock_wait_timeout = {seconds}"
    " /*M!100100 , max_statement_time = 0 */"
)
LENIENT: Final = (
    b"/*M!100201 SET SESSION check_constraint_checks = 0, innodb_strict_mode = 0 */;\n"
    b"/*M!100703 SET SESSION system_versioning_alter_history = KEEP */;\n"
)
"""The beginning of a load: rows and tables may be older than the rules that they violate."""


_REFUSAL: Final = re.compile(rb"\b(?:1203|1226)\b.*max_user_connections")


def _nothing(_line: bytes) -> None:
    return None


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach a server."""

    names: tuple[tuple[str, ...], tuple[str, ...]]
    """The possible names of the dump program and of the client."""
    host: str | None = None
    port: int | None = None
    socket: str | None = None
    user: str | None = None
    password: Secret | None = None
    defaults_file: str | None = None
    program_path: str | None = None
    timeout: float | None = None
    account: pwd.struct_passwd | None = None
    """The user that programs run as; None: castore's own."""
    session: QuerySession | None = None
    """A session that runs statements that may be repeated; None: there is none."""

    def program(self, which: int) -> str:
        """Return the path of the dump program or the client. Raises ProgramError."""
        for name in self.names[which]:
            path = f"{self.program_path}/{name}" if self.program_path else name
            if shutil.which(path) is not None:
                return path
        raise ProgramError(
            f"there is no program {self.names[which][0]!r}, which this engine needs: install it, or set "
            "`program-path`"
        )

    @contextlib.contextmanager
    def argv(self, which: int, *, charset: str = "utf8mb4") -> Iterator[tuple[list[str], list[int]]]:
        """Yield the beginning of an argument list, and the descriptors that the program inherits.

        The password is in a file in memory, which is the only option file that is read.
        """
        argv = [self.program(which)]
        with self._option_file(self._options()) as (first, fds):
            argv.append(first)
            for option, value in (
                *(("host", self.host), ("port", self.port), ("socket", self.socket), ("user", self.user)),
                *(("default-character-set", charset), ("max-allowed-packet", PACKET)),
            ):
                if value is not None:
                    argv.append(f"--{option}={value}")
            if which == CLIENT:
                argv += [*_refusing(argv[0], self.account), "--skip-safe-updates"]
                argv.append(f"--init-command={_SESSION.format(seconds=LOCK_SECONDS)}")
            yield argv, fds

    @contextlib.contextmanager
    def _option_file(self, options: str) -> Iterator[tuple[str, list[int]]]:
        """Yield the option that names a file in memory with this text, and the descriptors that it needs."""
        if not options:
            yield "--no-defaults", []
            return
        fd = os.memfd_create("castore", 0)
        try:
            os.fchmod(fd, 0o600)
            if self.account is not None:
                # The client opens it by its name in /proc.
                os.fchown(fd, self.account.pw_uid, self.account.pw_gid)
            with open(fd, "wb", closefd=False) as file:
                file.write(os.fsencode(options))
            yield f"--defaults-file=/proc/self/fd/{fd}", [fd]
        finally:
            os.close(fd)

    def _defaults(self) -> str:
        """Return the content of the configured defaults-file, so that no unchecked file is read."""
        if self.defaults_file is None:
            return ""
        return os.fsdecode(read_setting("defaults-file", self.defaults_file, self.account))

    def _options(self) -> str:
        """Return the text of the option file; empty if none is needed."""
        lines = [self._defaults()]
        if self.password is not None:
            secret = self.password.get(self.account).replace("\\", "\\\\").replace('"', '\\"')
            lines += ["[client]", f'password="{secret}"']
        return "".join(f"{line}\n" for line in lines if line)

    def file_options(self) -> list[str]:
        """Return the options that the dump program reads from the configured defaults-file."""
        if self.defaults_file is None:
            return []
        with self._option_file(self._defaults() or "\n") as (option, fds):
            printed = output_of([self.program(DUMP), option, "--print-defaults"], **self.process(fds))
        return printed.decode(errors="replace").partition("\n")[2].split()

    def process(self, fds: Sequence[int] = ()) -> dict[str, Any]:
        """Return the environment, time limit and user of a program. fds: descriptors that it needs."""
        return {"env": environment(), "timeout": self.timeout, "account": self.account, "kept": fds}

    def raw(
        self,
        sql: str,
        database: str | None = None,
        only: Filter = plain,
        *,
        force: bool = False,
        shown: bool = True,
    ) -> list[list[bytes]]:
        """Run SQL; return the rows that it prints, as bytes. only: which of its messages are kept.

        force: continue after a statement that fails. shown: whether the messages are also shown.
        """
        with self.argv(CLIENT) as (argv, fds):
            run = [*argv, "--batch", "--skip-column-names", "--silent", *(["--force"] if force else [])]
            run += [f"--database={database}"] if database else []
            own = {**self.process(fds), "given": os.fsencode(sql), "limit": MOST, "shown": shown}
            return _rows(when_free(lambda only: output_of(run, **own, only=only), only, _REFUSAL))

    def query(self, sql: str, database: str | None = None, only: Filter = plain) -> list[list[str]]:
        """Run SQL; return the rows that it prints. only: which of its messages are shown."""
        return _decoded(self.raw(sql, database, only))

    def quietly(self, sql: str, database: str | None = None) -> list[list[str]]:
        """Run SQL whose failure is expected: its message appears only in the error."""
        return _decoded(self.raw(sql, database, shown=False))

    def ask(self, sql: str, *, quiet: bool = False) -> list[list[str]]:
        """Run SQL that may be repeated, in the open session if there is one; return the rows that it prints.

        quiet: its failure is expected.
        """
        return _decoded(self.ask_raw(sql, shown=not quiet))

    def ask_raw(
        self, sql: str, only: Filter = plain, *, force: bool = False, shown: bool = True
    ) -> list[list[bytes]]:
        """Run SQL that may be repeated, in the open session if there is one; return the rows as bytes.

        Without an answer it is run by `raw`, with these options.
        """
        out = self.session.answer(sql) if self.session is not None else None
        if out is None:
            return self.raw(sql, only=only, force=force, shown=shown)
        return _rows(out)

    @contextlib.contextmanager
    def connected(self) -> Iterator[Client]:
        """Yield a client that queries in one session during the block."""
        # The limit of the account, else that of the server.
        allowed = "SELECT @@max_user_connections"
        session = QuerySession(self._start, most=MOST, allowed=allowed, separator=b"\n")
        try:
            yield msgspec.structs.replace(self, session=session)
        finally:
            session.close()

    @contextlib.contextmanager
    def _start(self, stdin: int, stdout: int, only: Filter = _nothing) -> Iterator[Program]:
        """Yield a running client that prints each result at once. only: which of its messages are kept."""
        with self.argv(CLIENT) as (argv, fds):
            run = [*argv, "--batch", "--skip-column-names", "--silent", "--unbuffered"]
            with Program(Command(run, **self.process(fds), only=only), stdin, stdout) as program:
                yield program

    def works(self, sql: str, database: str | None = None) -> bool:
        """Run SQL; return whether it succeeded, and show no message."""
        try:
            self.raw(sql, database, _nothing)
        except ProgramError:
            return False
        return True

    def feed(
        self,
        database: str,
        chunks: Iterable[bytes | memoryview],
        *,
        charset: str = "utf8mb4",
        force: bool = False,
    ) -> None:
        """Run a script in a database. charset: how the client finds where strings end. Raises ProgramError.

        force: continue after a statement that fails, and show no message.
        """
        with self.argv(CLIENT, charset=charset) as (argv, fds):
            # Without --comments the client removes comments from the bodies of routines.
            run = [*argv, "--batch", "--comments", f"--database={database}"]
            run += ["--force"] if force else []
            own, chunks = self.process(fds), Chunks(chunks)
            only = _nothing if force else plain
            when_free(lambda only: feed(run, chunks, **own, only=only), only, _REFUSAL)

    @contextlib.contextmanager
    def dumping(self, arguments: Sequence[str]) -> Iterator[Readinto]:
        """Yield a function that reads what the dump program prints. arguments: more of the program.

        The program starts at the first call. Raises ProgramError.
        """
        with (
            self.argv(DUMP) as (argv, fds),
            dump_when_free([*argv, *arguments], self.process(fds), _REFUSAL) as readinto,
        ):
            yield readinto

    @contextlib.contextmanager
    def holding(self, sql: str) -> Iterator[None]:
        """Run SQL in a session that stays open for the block. Raises ProgramError, also if it ended early."""
        with open_when_free(lambda only: self._asked(sql, only), _nothing, _REFUSAL) as program:
            yield
            _ask(program, "")
            program.close_input()
            program.wait()

    @contextlib.contextmanager
    def _asked(self, sql: str, only: Filter) -> Iterator[Program]:
        """Yield a client that stays, and has run SQL. Raises ProgramError."""
        with self._start(subprocess.PIPE, subprocess.PIPE, only) as program:
            _ask(program, sql)
            yield program


def _rows(out: bytes) -> list[list[bytes]]:
    return [[unescaped(value) for value in line.split(b"\t")] for line in out.split(b"\n") if line]


def _decoded(rows: list[list[bytes]]) -> list[list[str]]:
    return [[os.fsdecode(value) for value in row] for row in rows]


def _ask(program: Program, sql: str) -> None:
    """Run SQL in an open session, and wait until it is done. Raises ProgramError."""
    program.write([f"{sql}\nSELECT 'castore';\n".encode("utf-8", "surrogateescape")])
    answer, room = b"", memoryview(bytearray(64))
    while b"castore\n" not in answer:
        count = program.read(room)
        if not count:
            program.wait()
            raise ProgramError("the client ended too early: see the server's log")
        answer += room[:count]


def environment() -> dict[str, str | None]:
    """Return how the environment of the programs differs from castore's."""
    # MySQL's programs read ~/.mylogin.cnf even if they read no option file.
    return client_environment(MYSQL_TEST_LOGIN_FILE="/dev/null")


@lru_cache(maxsize=16)
def _refusing(client: str, account: pwd.struct_passwd | None) -> tuple[str, ...]:
    return tuple(refusing_commands(client, account=account, exact=True))


def refusing_commands(
    *client: str, account: pwd.struct_passwd | None = None, exact: bool = False
) -> list[str]:
    """Return the options with which the client runs no command of a dump, and reads no local file for it.

    client: the arguments up to the client's name. account: the user that it runs as; None: castore's own.
    exact: include the options that prevent changes of line ends. Raises ProgramError for a client without
    them.
    """
    try:
        usage = output_of([*client, "--help"], env=environment(), account=account)
    except ProgramError:  # an option file of the machine is not valid
        usage = output_of([*client, "--no-defaults", "--help"], env=environment(), account=account)
    # Older clients and MySQL's have only the second option. It allows DELIMITER, which routines need.
    options = [
        option
        for option in ("--sandbox", "--binary-mode")
        if re.search(rf"(?m)^ *(?:-\w, )?{option}\b".encode(), usage)
    ]
    if not options:
        raise ProgramError(
            f"{client[-1]} has neither --sandbox nor --binary-mode: a dump could start programs; "
            "use a newer one"
        )
    return [*(options if exact else options[:1]), "--local-infile=0"]
