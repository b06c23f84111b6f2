"""The users and roles with rights on one MariaDB or MySQL database, which its dump does not contain.

A dump may be hostile. So an account from it is created only if none of that name exists, with a password
hash of a known form or else locked, and gets rights on the one database only. It joins no role that existed
before, because such a role may have rights elsewhere.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore.engines.mariadb.sql import literal, quoted
from castore.errors import CastoreError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    Query = Callable[[str], list[list[str]]]

_RIGHTS: Final = frozenset(
    (
        *("SELECT", "INSERT", "UPDATE", "DELETE", "CREATE", "DROP", "REFERENCES", "INDEX", "ALTER"),
        *("CREATE TEMPORARY TABLES", "LOCK TABLES", "CREATE VIEW", "SHOW VIEW", "CREATE ROUTINE", "TRIGGER"),
        *("ALTER ROUTINE", "EVENT", "DELETE HISTORY", "SHOW CREATE ROUTINE", "EXECUTE"),
    )
)
_ROUTINES: Final = frozenset({"FUNCTION", "PROCEDURE", "PACKAGE", "PACKAGE BODY"})
_SECRETS: Final = {
    "mysql_native_password": re.compile(rb"\*[0-9A-F]{40}"),
    "ed25519": re.compile(rb"[A-Za-z0-9+/]{43}"),
    "unix_socket": re.compile(rb""),
    "auth_socket": re.compile(rb""),
    "caching_sha2_password": re.compile(rb"\$A\$[0-9A-F]{3}\$[\x01-\x7f]{63}"),
}
"""The authentication plugins, and what the server stores for each."""
_REQUIRE: Final = {"ANY": "SSL", "X509": "X509", "SPECIFIED": "X509"}


class Account(msgspec.Struct, frozen=True):
    """A user, or a role."""

    user: str
    host: str
    """Empty for a role."""
    plugin: str = ""
    secret: str = ""
    """The authentication string, in hexadecimal digits."""
    require: str = ""
    locked: bool = False
    roles: tuple[str, ...] = ()
    default_role: str = ""

    @property
    def is_role(self) -> bool:
        """Whether it is a role: nobody can log in as a role."""
        return not self.host

    @property
    def sql(self) -> str:
        """The name as SQL has it."""
        return quoted(self.user) + ("" if self.is_role else f"@{quoted(self.host)}")

    @property
    def shown(self) -> str:
        """The kind and name for messages."""
        return f"the role {self.user}" if self.is_role else f"the user {self.user}@{self.host}"


class Right(msgspec.Struct, frozen=True, array_like=True):
    """One right on the database or on an object in it."""

    user: str
    host: str
    right: str
    grantable: bool
    kind: str = ""
    """Empty for the database; TABLE, or the kind of a routine."""
    name: str = ""
    column: str = ""


class Accounts(msgspec.Struct, frozen=True):
    """The accounts with rights on a database, and these rights."""

    accounts: tuple[Account, ...] = ()
    rights: tuple[Right, ...] = ()


def read_accounts(query: Query, database: str) -> Accounts:
    """Return the accounts with rights on a database. Raises ProgramError if they may not be read."""
    wanted = literal(database)
    mariadb = "MariaDB" in query("SELECT VERSION()")[0][0]
    more = "is_role, default_role" if mariadb else "'N', ''"
    columns = f"User, Host, plugin, HEX(authentication_string), ssl_type, {more}"
    users = query(f"SELECT {columns} FROM mysql.user")
    members = query("SELECT User, Host, Role FROM mysql.roles_mapping") if mariadb else []
    rights = set(_rights(query, wanted))
    named = {(right.user, right.host) for right in rights}
    while True:
        # A user has the rights of the roles that it is a member of.
        more_named = {(user, host) for user, host, role in members if (role, "") in named} - named
        if not more_named:
            break
        named |= more_named
    accounts_found = []
    for user, host, plugin, secret, require, is_role, default in sorted(users):
        if (user, host) not in named or (is_role != "Y" and not host):
            continue
        given = {role for name, at, role in members if (name, at) == (user, host) and (role, "") in named}
        kept = default if default in given else ""
        roles = tuple(sorted(given))
        accounts_found.append(
            Account(user, host, plugin, secret, require=require, roles=roles, default_role=kept)
        )
    people = [account for account in accounts_found if not account.is_role]
    shown = query(";".join(f"SHOW CREATE USER {account.sql}" for account in people)) if people else []
    locked = {
        account
        for account, row in zip(people, shown, strict=True)
        if row[0].rstrip().endswith("ACCOUNT LOCK")
    }
    accounts = (msgspec.structs.replace(account, locked=account in locked) for account in accounts_found)
    return Accounts(tuple(accounts), tuple(sorted(rights, key=msgspec.structs.astuple)))


def _rights(query: Query, wanted: str) -> Iterator[Right]:
    schema = "information_schema"
    columns = "GRANTEE, PRIVILEGE_TYPE, IS_GRANTABLE"
    # Rights on a database are on a pattern, in which _ and % are wildcards.
    where = f"WHERE {wanted} LIKE TABLE_SCHEMA"
    for grantee, right, grantable in query(f"SELECT {columns} FROM {schema}.SCHEMA_PRIVILEGES {where}"):
        yield Right(*_grantee(grantee), right, grantable == "YES")
    where = f"WHERE TABLE_SCHEMA = {wanted}"
    for kind, column in (("TABLE", "''"), ("COLUMN", "COLUMN_NAME")):
        rows = query(f"SELECT {columns}, TABLE_NAME, {column} FROM {schema}.{kind}_PRIVILEGES {where}")
        for grantee, right, grantable, name, one in rows:
            yield Right(*_grantee(grantee), right, grantable == "YES", "TABLE", name, one)
    columns = "User, Host, Routine_type, Routine_name, Proc_priv"
    for user, host, kind, name, given in query(f"SELECT {columns} FROM mysql.procs_priv WHERE Db = {wanted}"):
        words = given.upper().split(",")
        for word in words:
            if word and word != "GRANT":
                yield Right(user, host, word, "GRANT" in words, kind, name)


def _grantee(text: str) -> tuple[str, str]:
    """Split 'USER'@'HOST', which the server does not escape: a host contains no quotes."""
    user, _, host = text.rpartition("'@'")
    return user[1:], host[:-1]


def decode(preamble: dict[str, Any]) -> Accounts | None:
    """Return the accounts that a dump's first line records; None if it records none. Raises CastoreError."""
    if "accounts" not in preamble:
        return None
    try:
        return msgspec.convert(preamble["accounts"], Accounts)
    except msgspec.ValidationError as error:
        raise CastoreError(f"the recorded accounts of the dump are not valid: {error}") from None


def missing(query: Query, recorded: Accounts) -> list[Account]:
    """Return the recorded accounts that do not exist, roles first."""
    existing = {(user, host) for user, host in query("SELECT User, Host FROM mysql.user")}
    missing_accounts = [
        account for account in recorded.accounts if (account.user, account.host) not in existing
    ]
    return sorted(missing_accounts, key=lambda one: not one.is_role)


def create(query: Query, accounts: list[Account]) -> tuple[list[Account], list[str]]:
    """Create accounts; return those that were created, and a line about the result of each."""
    created, lines = [], []
    for account in accounts:
        sql, note = _creation(account)
        try:
            query(sql)
        except ProgramError as error:
            lines.append(f"cannot create {account.shown}: {error}; create it by hand")
        else:
            created.append(account)
            lines.append(f"created {account.shown}{note}")
    return created, lines


def _creation(account: Account) -> tuple[str, str]:
    if account.is_role:
        return f"CREATE ROLE {account.sql}", ""
    sql = f"CREATE USER {account.sql}"
    pattern = _SECRETS.get(account.plugin)
    try:
        secret = bytes.fromhex(account.secret)
    except ValueError:
        pattern = None
    note = ", with the recorded password hash"
    if pattern is not None and pattern.fullmatch(secret):
        sql += f" IDENTIFIED WITH {account.plugin}"
        if account.plugin == "caching_sha2_password":
            sql += f" AS 0x{secret.hex()}"
        elif secret:
            sql += f" AS '{secret.decode('ascii')}'"
        else:
            note = f", who logs in by {account.plugin}"
    else:
        note = ", locked: set its password and unlock it"
    if account.require in _REQUIRE:
        sql += f" REQUIRE {_REQUIRE[account.require]}"
    if account.locked and "locked" not in note:
        note = ", locked as it was"
    if "locked" in note:
        sql += " ACCOUNT LOCK"
    return sql, note


def grant(query: Query, database: str, recorded: Accounts, created: Sequence[Account]) -> list[str]:
    """Grant the recorded rights on the database, and memberships in created roles; return what failed."""
    lines = []
    roles = {role.user for role in created if role.is_role}
    for account in sorted(recorded.accounts, key=lambda one: not one.is_role):
        script = [_granting(database, account, right) for right in recorded.rights if _of(right, account)]
        given = [role for role in account.roles if role in roles]
        script += [f"GRANT {quoted(role)} TO {account.sql}" for role in given]
        if account.default_role in given and account in created:
            script.append(f"SET DEFAULT ROLE {quoted(account.default_role)} FOR {account.sql}")
        try:
            if script := list(filter(None, script)):
                query(";\n".join(script))
        except ProgramError as error:
            lines.append(
                f"cannot grant {account.shown} its rights on {database}: {error}; grant them by hand"
            )
        if other_roles := [role for role in account.roles if role not in roles]:
            lines.append(
                f"{account.shown} was not made a member of {', '.join(other_roles)}, which existed before"
            )
    return lines


def _of(right: Right, account: Account) -> bool:
    return (right.user, right.host) == (account.user, account.host)


def _granting(database: str, account: Account, right: Right) -> str:
    """Return the statement that grants a right; empty for a right that castore does not know."""
    if right.right not in _RIGHTS:
        return ""
    if right.kind in _ROUTINES:
        on = f"{right.kind} {quoted(database)}.{quoted(right.name)}"
    elif right.kind == "TABLE":
        on = f"TABLE {quoted(database)}.{quoted(right.name)}"
    elif not right.kind:
        # In a right on a database the name is a pattern.
        on = quoted(re.sub(r"([\\_%])", r"\\\1", database)) + ".*"
    else:
        return ""
    column = f" ({quoted(right.column)})" if right.column else ""
    option = " WITH GRANT OPTION" if right.grantable else ""
    return f"GRANT {right.right}{column} ON {on} TO {account.sql}{option}"


def drop(query: Query, accounts: Iterable[Account]) -> None:
    """Drop accounts that this rollback created."""
    for account in accounts:
        query(f"DROP {'ROLE' if account.is_role else 'USER'} IF EXISTS {account.sql}")
