"""The settings of castore's sessions with PostgreSQL, independent of roles, databases and the server.

Settings of roles, databases and postgresql.conf change what a dump contains and how it is read: a money value
in the format of lc_monetary, an interval in IntervalStyle, 'NULL' in an array, `x = NULL` in a view.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from typing import TYPE_CHECKING, Final

from castore.engines.postgresql.sql import plain, quoted_text
from castore.errors import CastoreError
from castore.process.program import Command, Program

if TYPE_CHECKING:
    import pwd
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from castore.engines.dump_stream import Bytes
    from castore.process.standard_error import Filter

_SETTINGS: Final = {
    "role": "none",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "default_transaction_read_only": "off",
    "default_transaction_isolation": "read\\ committed",
    "default_transaction_deferrable": "off",
    "DateStyle": "ISO,MDY",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "lc_monetary": "C",
    "bytea_output": "hex",
    "array_nulls": "on",
    "transform_null_equals": "off",
    "quote_all_identifiers": "off",
    "standard_conforming_strings": "on",
    "row_security": "off",
    "search_path": "pg_catalog",
    "client_min_messages": "warning",
    "jit": "off",
}
OPTIONS: Final = " ".join(f"-c {name}={value}" for name, value in _SETTINGS.items())
"""The value of PGOPTIONS. With row_security off, a query fails if a policy would hide rows from it."""
PREAMBLE: Final = """
SELECT pg_catalog.set_config(name, CASE vartype WHEN 'enum' THEN 'origin' ELSE '0' END, false)
FROM pg_catalog.pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')
OR name = 'session_replication_role' AND setting <> 'origin';"""
"""For longer sessions: settings that only newer servers have, and one that only a superuser may set."""

_ALLOWED: Final = (
    *("--verbose", "-v", "--no-sync", "--quote-all-identifiers", "--inserts", "--column-inserts"),
    *("--attribute-inserts", "--on-conflict-do-nothing", "--disable-dollar-quoting", "--if-exists"),
    *("--large-objects", "--blobs", "-b", "--load-via-partition-root", "--clean", "-c", "--no-statistics"),
    *("--serializable-deferrable",),
)
_ALLOWED_VALUES: Final = (
    *("--lock-wait-timeout", "--rows-per-insert", "--role", "--extra-float-digits", "--encoding", "-E"),
    *("--include-foreign-data",),
)
_DIRECTS: Final = ("-C", "--create")
DEFERRABLE: Final = "--serializable-deferrable"
_POLICIES_OFF: Final = b"\nSET row_security = off;\n"
_POLICIES_ON: Final = b"\nSET row_security = on;\n"
_LAST_SETTING: Final = _POLICIES_OFF
_NO_PATH: Final = b"'search_path', ''"
_HEAD_BYTES: Final = 1 << 25
"""More bytes than castore's line and the settings at the beginning of a dump."""
_END: Final = b"castore:end\0\0"


def refuse_options(options: Sequence[str]) -> None:
    """Raise CastoreError for options of pg_dump that are not known to keep the dump complete."""
    words = iter(options)
    for word in words:
        if word in _DIRECTS:
            raise CastoreError(
                f"with the option {word} the dump names its database itself and would go into the live "
                "database; remove it from `options`"
            )
        if word in _ALLOWED or word.partition("=")[0] in _ALLOWED_VALUES:
            if word in _ALLOWED_VALUES:
                next(words, None)
            continue
        raise CastoreError(
            f"the option {word} of pg_dump leaves something out, or is not known to keep the dump complete, "
            "and a rollback replaces the whole database: remove it from `options`, or use the engine command"
        )


def prepared(chunks: Iterable[Bytes], path: str = "") -> Iterator[Bytes]:
    """Yield a dump, with other settings in its first statements than pg_dump writes.

    `row_security` is on: with it off, a materialized view whose owner is subject to a policy cannot be filled
    again; no policy exists yet when rows are loaded. path: the search path; empty: none.
    """
    source = iter(chunks)
    head = b""
    for chunk in source:
        head += bytes(chunk)
        if _LAST_SETTING in head or len(head) > _HEAD_BYTES:
            break
    setting = quoted_text(path).encode()
    head = head.replace(_POLICIES_OFF, _POLICIES_ON, 1).replace(_NO_PATH, b"'search_path', " + setting, 1)
    yield head
    yield from source


@contextlib.contextmanager
def reading(
    argv: Sequence[str],
    script: str,
    *,
    env: Mapping[str, str | None],
    timeout: float | None,
    account: pwd.struct_passwd | None = None,
    only: Filter = plain,
) -> Iterator[list[tuple[str, str]]]:
    """Run a script in a psql that stays connected, and yield the rows of two columns that it prints.

    A transaction that the script has begun stays open during the block. account: the user that psql runs as;
    None: castore's own. only: which of its messages are shown. Raises ProgramError.
    """
    separated = ["--tuples-only", "--no-align", "--field-separator-zero", "--record-separator-zero"]
    command = Command([*argv, *separated], env=env, timeout=timeout, account=account, only=only)
    with Program(command, subprocess.PIPE, subprocess.PIPE) as program:
        program.write([os.fsencode(script) + b"\nSELECT 'castore:end', '';\n"])
        output = bytearray()
        room = memoryview(bytearray(1 << 16))
        while not output.endswith(_END):
            count = program.read(room)
            if not count:
                program.wait()
                raise CastoreError(f"{argv[0]} ended before it had answered: see the server's log")
            output += room[:count]
        # Names of a database in SQL_ASCII may have any encoding.
        words = output.decode("utf-8", "backslashreplace").split("\0")
        yield list(zip(words[0:-3:2], words[1:-2:2], strict=True))
        program.close_input()
        program.wait()
