"""Database clients that users name to restore a dump: psql, mariadb, sqlite3 and others.

They are also recognised as an argument of another program (sudo, env, docker exec), and in a shell script.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import TYPE_CHECKING, Final

from castore.engines.ldif import without_files
from castore.engines.mariadb.client import refusing_commands
from castore.engines.postgresql.script import without_commands
from castore.errors import ProgramError
from castore.process.runners import output_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Sequence

    from castore.engines.dump_stream import Bytes

_LDIF: Final = {"ldapadd", "ldapmodify", "slapadd", "slapmodify"}
_OPTIONED: Final = {"mariadb", "mysql", "sqlite3"}
"""Clients that an option keeps from running commands; for the others castore filters commands out."""
_CLIENTS: Final = {"psql", *_OPTIONED, *_LDIF}
_SHELLS: Final = {"sh", "bash", "dash", "ksh", "zsh"}
_LAST_PROGRAM: Final = re.compile(
    rf"(?:^|[|;&])\s*(?:exec\s+)?(?:\S*/)?(?P<client>{'|'.join(sorted(_CLIENTS))})(?:\s[^|;&<>()#`]*)?$"
)
_PG_CLEARS: Final = re.compile(r"--clean|--data-only|--create|-[OvxbBacC]*[acC][OvxbBacC]*")
_SCRIPTS: Final = {"-c", "--command", "-f", "--file", "-e", "--execute"}
_MYSQL_KEEPS: Final = {"--skip-add-drop-table", "--skip-opt", "--compact"}
_COUNTS: Final = {
    "psql": "SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')",
    "mariadb": "SELECT count(*) FROM information_schema.tables WHERE table_schema = database()",
    "sqlite3": "SELECT count(*) FROM sqlite_master WHERE type = 'table'",
}
_REASON: Final = {
    "psql": "pg_dump wrote this dump without --clean",
    "mariadb": "this dump deletes no table before it creates it",
    "sqlite3": "sqlite3's .dump deletes no table before it creates it",
}
_ADVICE: Final = {
    "psql": "the engine postgresql, or take it with pg_dump --clean --if-exists and restore it with psql "
    "--single-transaction",
    "mariadb": "the engine mariadb, or take it with --add-drop-table",
    "sqlite3": "the engine sqlite",
}


def guarded_client(
    restore: Sequence[str],
    chunks: Iterable[Bytes],
    timeout: float | None,
    account: pwd.struct_passwd | None = None,
) -> tuple[list[str], Iterable[Bytes]]:
    """Return arguments and dump with which a known client runs no command that is in the dump.

    account: the user that the client runs as; None: castore's own.
    Raises ProgramError if the client cannot be kept from running commands.
    """
    argv = list(restore)
    client, at = _client_of(argv)
    program = argv[: at + 1] if at >= 0 else [client]
    if client == "psql":
        return argv, without_commands(chunks)
    if client in _LDIF:
        return argv, without_files(chunks)
    if client in {"mariadb", "mysql"}:
        return _with(argv, at, client, refusing_commands(*program, account=account)), chunks
    if client == "sqlite3":
        try:
            safely = [*program, "-safe", ":memory:", "SELECT 1"]
            output_of(safely, timeout=timeout, account=account, only=lambda _line: None)
        except ProgramError as error:
            raise ProgramError(
                f"{program[-1]} does not run with -safe, without which a dump could start programs: use "
                "sqlite3 3.37 or later, or the engine sqlite"
            ) from error
        return _with(argv, at, client, ["-safe"], first=True), chunks
    return argv, chunks


def refusal_of_tables(
    dump: Sequence[str],
    restore: Sequence[str],
    timeout: float | None,
    account: pwd.struct_passwd | None = None,
) -> str:
    """Return why the dump cannot be restored into a database that has tables.

    Returns an empty string if it can be restored, or if there are no tables.
    account: the user that the client runs as; None: castore's own.
    These dumps create tables without deleting them first: the client would fail at the first that exists.
    """
    client, at = _client_of(list(restore))
    kind = "mariadb" if client == "mysql" else client
    words = _words(dump)
    names = {os.path.basename(word) for word in words}
    if client not in {"psql", *_OPTIONED} or not _keeps_tables(kind, names, words):
        return ""
    if any(word.partition("=")[0] in _SCRIPTS for word in restore[at + 1 if at >= 0 else len(restore) :]):
        return ""
    options = {
        "psql": ["--tuples-only", "--no-align", f"--command={_COUNTS['psql']}"],
        "mariadb": ["--batch", "--skip-column-names", f"--execute={_COUNTS['mariadb']}"],
        "sqlite3": [_COUNTS["sqlite3"]],
    }[kind]
    try:
        ask = _with(list(restore), at, client, options)
        tables = output_of(ask, timeout=timeout, account=account).strip()
    except ProgramError:
        return ""  # a database that cannot be queried is reported when the dump is restored
    if tables in {b"", b"0"}:
        return ""
    return (
        f"{_REASON[kind]}, and the database has tables: {client} would fail at the first table that exists; "
        f"describe the part in castore.toml with {_ADVICE[kind]}; to restore this generation, empty the "
        "database first; nothing was changed"
    )


def _keeps_tables(client: str, names: set[str], words: list[str]) -> bool:
    """Whether a program writes a dump that deletes no tables before it creates them."""
    if client == "psql":
        return "pg_dump" in names and not any(_PG_CLEARS.fullmatch(word) for word in words)
    if client == "sqlite3":
        return "sqlite3" in names and any(word.split()[:1] == [".dump"] for word in words)
    dumps = not names.isdisjoint({"mysqldump", "mariadb-dump"})
    return dumps and not _MYSQL_KEEPS.isdisjoint(words) and "--add-drop-table" not in words


def _words(argv: Sequence[str]) -> list[str]:
    """Return the words of a command; for a shell, those of its script."""
    if argv and os.path.basename(argv[0]) in _SHELLS:
        try:
            return shlex.split(argv[-1])
        except ValueError:
            return []
    return list(argv)


def _client_of(argv: list[str]) -> tuple[str, int]:
    """Return the client that reads the dump and its position in the arguments; -1: in a shell script.

    Only the last program of a script is recognised, and psql only if no other program feeds it.
    """
    names = [os.path.basename(word) for word in argv]
    for at, name in enumerate(names):
        if name in _CLIENTS:
            return name, at
    if names[0] in _SHELLS and "-c" in argv[1:-1] and (found := _LAST_PROGRAM.search(argv[-1])):
        first = not argv[-1][: found.start()].strip()
        return (found["client"], -1) if first or found["client"] in _OPTIONED else ("", -1)
    return "", -1


def _with(argv: list[str], at: int, client: str, options: list[str], *, first: bool = False) -> list[str]:
    """Return the arguments with options added for a client, after or before its own."""
    if at >= 0:
        end = at + 1 if first else argv.index("--", at) if "--" in argv[at:] else len(argv)
        return [*argv[:end], *options, *argv[end:]]
    given = shlex.join(options)
    if not first:
        return [*argv[:-1], f"{argv[-1].rstrip()} {given}"]
    end = list(re.finditer(rf"\b{client}\b", argv[-1]))[-1 if "|" in argv[-1] else 0].end()
    return [*argv[:-1], f"{argv[-1][:end]} {given}{argv[-1][end:]}"]
