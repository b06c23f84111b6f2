"""Reasons why a MariaDB database cannot be rolled back, with the statements that remove them."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Final

from castore.engines.mariadb import dump as dumps
from castore.engines.mariadb import (
    inventory,
    programs,
    rights,
)
from castore.engines.mariadb.client import DUMP
from castore.engines.mariadb.reports import STRANGE, strange_names
from castore.engines.mariadb.sql import literal, quoted
from castore.errors import CastoreError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.engines.mariadb.client import Client

_DIRECTORY: Final = re.compile(
    rb"(?m)^[ (]?\(?(?:\) ENGINE=|\(?PARTITION|\s+SUBPARTITION).*(?:DATA|INDEX) DIRECTORY ?= ?'"
)
"""In those lines of a definition that hold options."""


def refuse_unseen(client: Client, database: str) -> None:
    """Raise CastoreError if the account may not see all that a dump needs."""
    own = rights.Rights(client)
    _, unseen = programs.read(client, database)
    routines = any(kind in programs.ROUTINES for kind, _ in unseen)
    tables = list(inventory.tables(client, database))
    if lacks := own.lacking_to_dump(database, tables, routines=routines):
        what = ", ".join(lack.without for lack in lacks)
        raise CastoreError(
            f"the account {own.account} may not see all {what} of {database}, so a snapshot would "
            f"not be complete: {own.grants(lacks)}"
        )


def refuse_unready(client: Client, database: str) -> None:
    """Raise CastoreError if a rollback would fail, or would lose or change something."""
    questions: tuple[Callable[[Client, str], str], ...] = (
        *(_strange, _keys, _history, _directories, _replica, _cluster, _filters, _creators, _rights),
    )
    for question in questions:
        if answer := question(client, database):
            raise CastoreError(f"{answer}; nothing was changed")


def _strange(client: Client, database: str) -> str:
    strange = strange_names(client, database)
    return f"{database}.{strange[0]!r}: {STRANGE}" if strange else ""


def _keys(client: Client, database: str) -> str:
    live = literal(database)
    keys = client.ask(
        "SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME FROM information_schema.REFERENTIAL_CONSTRAINTS "
        f"WHERE UNIQUE_CONSTRAINT_SCHEMA = {live} AND CONSTRAINT_SCHEMA <> {live}"
    )
    if not keys:
        return ""
    return (
        f"the foreign key {keys[0][1]} of the database {keys[0][0]} references {database}, whose tables can "
        "therefore not be exchanged: drop that key first, and create it again afterwards"
    )


def _history(client: Client, database: str) -> str:
    tables = inventory.tables(client, database).values()
    versioned = [table.name for table in tables if table.kind == "SYSTEM VERSIONED"]
    if not versioned or dumps.history(client):
        return ""
    program = client.program(DUMP)
    return (
        f"{program} cannot dump the history of the table {versioned[0]}: a rollback would lose it; use a "
        "mariadb-dump with --dump-history"
    )


def _directories(client: Client, database: str) -> str:
    """Return a refusal for tables with files in other directories.

    RENAME TABLE leaves InnoDB's link to the file in the old database, which then can no longer be dropped.
    With other engines a second table of the same name would need the same files.
    """
    tables = inventory.tables(client, database).values()
    wanted = [table for table in tables if table.engine and table.kind != "SEQUENCE"]
    for name, text in inventory.definitions(client, database, wanted).items():
        if _DIRECTORY.search(text):
            return (
                f"the table {name} has a DATA DIRECTORY, which RENAME TABLE between databases does not "
                f"support: copy it into a table that CREATE TABLE ... LIKE {quoted(name)} has made without "
                "it, and rename that"
            )
    return ""


def _replica(client: Client, database: str) -> str:
    """Return a refusal for a server that replicates another one: a rollback would make it diverge."""
    del database
    for name, number in client.ask("SHOW GLOBAL STATUS LIKE 'Sl%e\\_running'"):
        if number in {"ON", "1"} or (number.isdecimal() and int(number) > 0):
            return f"the server is a replica ({name} = {number}): roll back on its primary"
    return ""


def _cluster(client: Client, database: str) -> str:
    """Return a refusal for a Galera cluster, where a lock does not stop writers on other nodes."""
    rows = client.ask("SHOW GLOBAL STATUS LIKE 'wsrep\\_cluster\\_size'")
    size = rows[0][1] if rows else "0"
    if not size.isdecimal() or int(size) < 2:
        return ""
    return (
        f"the server is a node of a Galera cluster of {size}, and the locks of a rollback of {database} hold "
        "on one node only: stop the other nodes, roll back, and let them join again"
    )


def _filters(client: Client, database: str) -> str:
    """Return a refusal for filters of the binary log, with which replicas would get a part of a rollback."""
    if client.ask("SELECT @@GLOBAL.log_bin") != [["1"]]:
        return ""
    with contextlib.suppress(ProgramError):
        for _, _, logged, ignored, *_ in client.ask("SHOW MASTER STATUS", quiet=True):
            for option, names in (("binlog-do-db", logged), ("binlog-ignore-db", ignored)):
                if database in names.split(","):
                    return (
                        f"the binary log is filtered ({option}={database}), so "
                        "replicas would get only a part of a rollback, and stop: remove the option from the "
                        "server's configuration, and filter on the replicas with replicate-wild-do-table"
                    )
    return ""


def _creators(client: Client, database: str) -> str:
    """Return a refusal if the binary log lets only some accounts create functions and triggers."""
    log = client.ask("SELECT @@GLOBAL.log_bin, @@GLOBAL.log_bin_trust_function_creators")
    if log != [["1", "0"]]:
        return ""
    own = rights.Rights(client)
    found = programs.names(client, database)
    made = [(kind, name) for kind, name in found if kind in {"function", "trigger"}]
    if not made or any(own.has(right) for right in ("SUPER", "BINLOG ADMIN")):
        return ""
    kind, name = made[0]
    return (
        f"the account {own.account} may not create the {kind} {name} while the server writes a binary log: "
        f"SET GLOBAL log_bin_trust_function_creators = 1, or GRANT BINLOG ADMIN ON *.* TO {own.account}"
    )


def _rights(client: Client, database: str) -> str:
    own = rights.Rights(client)
    routines = any(kind in programs.ROUTINES for kind, _ in programs.names(client, database))
    definers = rights.definers(client, database)
    lacks = own.lacking_to_roll_back(database, definers, routines=routines)
    if not lacks:
        return ""
    return f"the account {own.account} lacks rights that a rollback of {database} needs: {own.grants(lacks)}"
