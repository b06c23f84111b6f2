"""A database that a dump is loaded into, and compared with what was recorded when the dump was taken."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final

from castore.engines.dump_stream import read_preamble
from castore.engines.inventory import INVENTORY, refuse_difference
from castore.engines.postgresql import inventory as catalogue
from castore.engines.postgresql.database import Database, valid_record
from castore.engines.postgresql.sql import (
    adornments,
    creation,
    memberships,
    missing_roles,
    quoted_name,
    quoted_text,
    role_creation,
    search_path,
)
from castore.engines.postgresql.swap import SUBSCRIBED, PostgreSQLSwap, Swap
from castore.errors import CastoreError, ProgramError
from castore.model.counting import count as counted

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.engines.base import Contents
    from castore.engines.inventory import Inventory
    from castore.engines.postgresql.client import Client

_OF_TEMPLATE: Final = {
    "schema public": "DROP SCHEMA IF EXISTS public;",
    "extension plpgsql": "DROP EXTENSION IF EXISTS plpgsql;",
}
_UNFOUND: Final = "(?:function|operator|relation|type|collation|text search [a-z]+) .* does not exist"


def stage(live: Database, state: PostgreSQLSwap, contents: Contents) -> list[str]:
    """Create a database like the dumped one, and load the dump. Raises CastoreError.

    Return remarks for people, as `Engine.stage`.
    """
    client = live.client
    new = Database(client, state.new, live.options, live.compared)
    remarks = []
    # A dump that another engine took does not record the properties: then the live database's are used.
    was = read_preamble(contents.restore_dump()) or live.properties()
    with valid_record():
        if was is not None:
            _refuse_lacking(live, was)
            remarks += _make_roles(client, state, was)
        create = creation(new.name, was, client.version())
    client.query(create + ";")

    def again() -> None:
        Swap(client, state).drop(new.name)
        client.query(create + ";")

    # Not as one transaction: with large objects, pg_dump writes transactions of its own.
    restore(new, contents, was or {}, again)
    with valid_record():
        differing, _ = verify(new, was or {}, live.name)
    disabled = [
        f"the subscription {name} is disabled: ALTER SUBSCRIPTION {quoted_name(name)} ENABLE"
        for name in client.ask(SUBSCRIBED, {"name": new.name})
    ]
    remarks += [*differing, *disabled]
    with contextlib.suppress(ProgramError):
        # The server analyzes later by itself, too.
        path = quoted_text(search_path(was or {}))
        client.query(f"SELECT set_config('search_path', {path}, false); ANALYZE;", database=new.name)
    state.oid = new.oid()
    if was is not None:
        with valid_record():
            lines = list(adornments(new.name, was, client.roles()))
        client.query("".join(f"{line};\n" for line in lines))
    return remarks


def restore(
    database: Database,
    contents: Contents,
    was: dict[str, Any],
    again: Callable[[], None],
    *,
    shown: bool = True,
) -> None:
    """Load a dump into a new database.

    again: recreates the database if the first attempt has failed. shown: whether errors are also printed as
    they occur. pg_dump sets no search path, and a function in an index or a CHECK constraint may need one. If
    a search path changes a definition, the comparison that follows finds it.
    """
    client, name = database.client, database.name
    try:
        client.load(name, contents.restore_dump(), shown=shown)
    except ProgramError as error:
        if not re.search(_UNFOUND, str(error)):
            raise
        again()
        try:
            client.load(name, contents.restore_dump(), path=search_path(was), shown=shown)
        except ProgramError:
            raise error from None


def verify(database: Database, was: dict[str, Any], live: str) -> tuple[list[str], Inventory]:
    """Compare a database that a dump was loaded into with what was recorded of the dumped one.

    live: the name of the dumped database, for the message. Returns differences that are no reason to refuse
    it, and the inventory. Raises CastoreError.
    """
    # An empty inventory is that of a database without any objects.
    recorded = INVENTORY in was and database.compared != "off"
    expected = was.get(INVENTORY) or {}
    is_condensed = "(all " in next(iter(expected), "")
    for name, drop in _OF_TEMPLATE.items():
        # A new database has it from the template, and pg_dump does not write that it was dropped.
        if recorded and name not in expected and not is_condensed:
            database.client.query(drop, database=database.name)
    with database.snapshot(was) as (inventory, rest):
        found = inventory
    if is_condensed:
        found = catalogue.condensed(found, always=True)
    if was.get("server", 0) // 10000 != database.client.version() // 10000:
        expected, found = catalogue.names_only(expected), catalogue.names_only(found)
    if database.compared != "full" or not any(name.startswith("rows ") for name in expected):
        expected, found = catalogue.without_rows(expected), catalogue.without_rows(found)
    if recorded:
        refuse_difference(live, expected, found)
    return _remarks(was, rest), inventory


def _remarks(was: dict[str, Any], rest: dict[str, dict[str, str]]) -> list[str]:
    """Return differences from the dumped database that are no reason to refuse the restored one."""
    versions = was.get("extensions") or {}
    remarks = [
        f"the extension {name} has version {version}, and had {versions[name]}"
        for name, version in rest["extension"].items()
        if versions.get(name, version) != version
    ]
    order = was.get("orders") or {}
    remarks += [
        f"the table {name} inherits, and has its columns in another order: {columns}"
        for name, columns in rest["order"].items()
        if order.get(name, columns) != columns
    ]
    before = was.get("views") or {}
    remarks += [
        f"the materialized view {name} was filled again, and has {counted(int(count), 'row')} instead of "
        f"{before[name]}"
        for name, count in rest["view"].items()
        if before.get(name, count) != count
    ]
    return remarks


def _refuse_lacking(live: Database, was: dict[str, Any]) -> None:
    """Raise CastoreError if the server lacks what the dumped database needs."""
    available = set(live.client.ask("SELECT name FROM pg_available_extensions;"))
    needed = [name for name in was.get("extensions") or () if name not in available]
    lacking = [f"the extension {name}: install its package" for name in needed]
    spaces = live.client.ask("SELECT spcname FROM pg_tablespace;")
    if was["tablespace"] not in spaces:
        name = quoted_name(was["tablespace"])
        lacking.append(f"the tablespace {was['tablespace']}: CREATE TABLESPACE {name} LOCATION '...';")
    if lacking:
        raise CastoreError(f"the server lacks what {live.name} had: {'; '.join(lacking)}")


def _make_roles(client: Client, state: PostgreSQLSwap, was: dict[str, Any]) -> list[str]:
    """Create the recorded roles that do not exist, and note them in the state; return remarks."""
    lines, made = [], set()
    for role in missing_roles(was, client.roles()):
        # If the database exists, a role that does not was removed on purpose: it gets no password, so that
        # it cannot log in until a password is set.
        sql, hashed = role_creation(was, role, password=not state.existed)
        client.query(sql + ";")
        made.add(role)
        state.roles = tuple(sorted(made))
        lacking = "without a password: set one if it logs in with one"
        how = "with the recorded password hash" if hashed else lacking
        lines.append(f"created the role {role}, {how}")
    script, skipped = memberships(was, made)
    if script:
        client.query("".join(line + ";" for line in script))
    return [*lines, *skipped]
