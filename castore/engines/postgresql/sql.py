"""SQL for PostgreSQL and its messages: names, the properties of a database apart from its content."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from castore.errors import CastoreError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROPERTIES: Final = """
SELECT json_build_object('row', row_to_json(d), 'owner', pg_get_userbyid(d.datdba),
  'encoding', pg_encoding_to_char(d.encoding), 'tablespace', t.spcname,
  'comment', shobj_description(d.oid, 'pg_database'), 'restricted', d.datacl IS NOT NULL,
  'settings', (SELECT json_agg(json_build_array(r.rolname, c.one) ORDER BY r.rolname NULLS FIRST, c.at)
    FROM pg_db_role_setting s CROSS JOIN unnest(s.setconfig) WITH ORDINALITY c (one, at)
    LEFT JOIN pg_roles r ON r.oid = s.setrole WHERE s.setdatabase = d.oid),
  'rights', (SELECT json_agg(json_build_array(g.rolname, a.privilege_type, a.is_grantable)
      ORDER BY g.rolname NULLS FIRST, a.privilege_type, a.is_grantable)
    FROM aclexplode(d.datacl) a LEFT JOIN pg_roles g ON g.oid = a.grantee
    WHERE a.grantee = 0 OR g.rolname IS NOT NULL),
  'roles', (WITH RECURSIVE need (oid) AS (
      SELECT r.oid FROM pg_roles r WHERE r.oid = d.datdba OR r.oid IN (SELECT refobjid
        FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND dbid = d.oid)
      UNION SELECT m.member FROM need JOIN pg_auth_members m ON m.roleid = need.oid
        JOIN pg_roles g ON g.oid = m.roleid WHERE NOT g.rolsuper)
    SELECT json_agg(json_build_object('name', r.rolname, 'login', r.rolcanlogin,
      'inherit', r.rolinherit, 'createdb', r.rolcreatedb, 'limit', r.rolconnlimit, 'until', r.rolvaliduntil,
      'groups', (SELECT json_agg(g.rolname ORDER BY g.rolname) FROM pg_auth_members m
        JOIN pg_roles g ON g.oid = m.roleid WHERE m.member = r.oid AND g.oid IN (SELECT oid FROM need)))
      ORDER BY r.rolname) FROM pg_roles r WHERE r.rolname !~ '^pg_' AND r.oid IN (SELECT oid FROM need)))
FROM pg_database d JOIN pg_tablespace t ON t.oid = d.dattablespace WHERE d.datname = :'live';
"""
"""The properties of a database apart from its content, which pg_dump does not write."""
PASSWORDS: Final = """
SELECT json_object_agg(rolname, rolpassword) FROM pg_authid WHERE rolpassword IS NOT NULL;
"""
"""The password hashes of all roles; only superusers may read them."""
COLUMNS: Final = ("datcollate", "datctype", "datconnlimit", "datistemplate", "datlocprovider", "daticurules")
_HASH: Final = re.compile(
    r"md5[0-9a-f]{32}|SCRAM-SHA-256\$[1-9][0-9]{0,6}:[A-Za-z0-9+/]{1,64}={0,2}"
    r"\$[A-Za-z0-9+/]{43}=:[A-Za-z0-9+/]{43}="
)
"""The forms in which the server stores a password: it would take any other text for the password itself."""
_PROVIDERS: Final = {"c": "libc", "i": "icu", "b": "builtin"}
_REST: Final = ("NOTICE", "DETAIL", "CONTEXT", "HINT", "QUERY", "STATEMENT", "LOCATION", "LINE")
_LISTS: Final = ("search_path", "temp_tablespaces", "unix_socket_directories")
"""Settings that are lists, as are all whose names end in _libraries."""


_RIGHTS: Final = {"CREATE", "CONNECT", "TEMPORARY"}
"""Privileges on a database."""


def quoted_name(name: str) -> str:
    """Return a name quoted for SQL. Raises CastoreError for an impossible name."""
    _refuse_zero(name)
    return '"' + name.replace('"', '""') + '"'


def quoted_text(text: str) -> str:
    """Return a text quoted for SQL. Raises CastoreError for an impossible text."""
    _refuse_zero(text)
    quoted = text.replace("'", "''").replace("\\", "\\\\")
    return f"E'{quoted}'" if "\\" in text else f"'{quoted}'"


def _refuse_zero(text: str) -> None:
    """Raise CastoreError for a zero byte: psql reads a line up to it, and the next with a quote open."""
    if "\0" in text:
        raise CastoreError(
            f"the first line of the dump has a zero byte in {text!r}: it is damaged; restore another "
            "generation"
        )


def dbname_argument(database: str) -> str:
    """Return the argument that names a database, and nothing else.

    libpq takes a bare name that contains =, or begins as a URI, for a connection string: it could send the
    password anywhere.
    """
    quoted = database.replace("\\", "\\\\").replace("'", "\\'")
    return f"--dbname=dbname='{quoted}'"


def creation(new: str, was: dict[str, Any] | None, version: int) -> str:
    """Return the SQL that creates a database with recorded properties. version: of the creating server.

    The locale provider is always named, because a cluster has a default of its own.
    """
    sql = f"CREATE DATABASE {quoted_name(new)} TEMPLATE template0"
    if was is None:
        return sql
    sql += f" OWNER {quoted_name(was['owner'])} ENCODING {quoted_text(was['encoding'])}"
    sql += f" LC_COLLATE {quoted_text(was['datcollate'])} LC_CTYPE {quoted_text(was['datctype'])}"
    provider = _PROVIDERS.get(was.get("datlocprovider", "c"), "libc")
    if version >= 150000:
        sql += f" LOCALE_PROVIDER {provider}"
    if provider != "libc":
        sql += f" {provider.upper()}_LOCALE {quoted_text(was['locale'])}"
    if was.get("daticurules"):
        sql += f" ICU_RULES {quoted_text(was['daticurules'])}"
    if was["tablespace"] != "pg_default":
        sql += f" TABLESPACE {quoted_name(was['tablespace'])}"
    return sql


def missing_roles(was: dict[str, Any], roles: set[str]) -> list[str]:
    """Return the names of the recorded roles that do not exist."""
    return [role["name"] for role in was.get("roles") or () if role["name"] not in roles]


def role_creation(was: dict[str, Any], name: str, *, password: bool) -> tuple[str, bool]:
    """Return the SQL that creates a recorded role, and whether it gets the recorded password hash.

    The content of a dump may be hostile: no role becomes a superuser or may create roles.
    """
    (role,) = [record for record in was["roles"] if record["name"] == name][:1]
    words = [
        "LOGIN" if role["login"] else "NOLOGIN",
        "INHERIT" if role["inherit"] else "NOINHERIT",
        "CREATEDB" if role["createdb"] else "NOCREATEDB",
        f"CONNECTION LIMIT {int(role['limit'])}",
    ]
    hashed = password and _HASH.fullmatch(role.get("password") or "") is not None
    if hashed:
        words.append(f"PASSWORD {quoted_text(role['password'])}")
    if role.get("until"):
        words.append(f"VALID UNTIL {quoted_text(role['until'])}")
    return f"CREATE ROLE {quoted_name(name)} {' '.join(words)}", hashed


def memberships(was: dict[str, Any], made: set[str]) -> tuple[list[str], list[str]]:
    """Return the SQL that adds recorded roles to roles just created, and what remains to be done by hand.

    No role becomes a member of a role that existed before, which may have rights elsewhere.
    """
    script, skipped = [], []
    for role in was.get("roles") or ():
        for group in role.get("groups") or ():
            if group in made:
                script.append(f"GRANT {quoted_name(group)} TO {quoted_name(role['name'])}")
            elif role["name"] in made:
                skipped.append(f"{role['name']} was not made a member of {group}, which existed before")
    return script, skipped


def adornments(new: str, was: dict[str, Any], roles: set[str]) -> Iterator[str]:
    """Yield SQL for the settings, rights and comment of a database, without roles that no longer exist."""
    database = f"DATABASE {quoted_name(new)}"
    for role, setting in was["settings"] or ():
        name, _, value = setting.partition("=")
        if name in _LISTS or name.endswith("_libraries"):
            value = ", ".join(map(quoted_text, _items(value)))
        else:
            value = quoted_text(value)
        if role is None:
            yield f"ALTER {database} SET {_dotted(name)} TO {value}"
        elif role in roles:
            yield f"ALTER ROLE {quoted_name(role)} IN {database} SET {_dotted(name)} TO {value}"
    yield f"ALTER {database} CONNECTION LIMIT {int(was['datconnlimit'])}"
    if was["comment"] is not None:
        yield f"COMMENT ON {database} IS {quoted_text(was['comment'])}"
    if was["restricted"]:
        yield f"REVOKE ALL ON {database} FROM PUBLIC"
        yield f"REVOKE ALL ON {database} FROM {quoted_name(was['owner'])}"
    for role, right, grantable in was["rights"] or ():
        if right not in _RIGHTS:
            raise CastoreError(
                f"the first line of the dump grants {right!r}, not a right to a database: it is damaged"
            )
        if role is None or role in roles:
            option = " WITH GRANT OPTION" if grantable else ""
            yield f"GRANT {right} ON {database} TO {'PUBLIC' if role is None else quoted_name(role)}{option}"
    if was.get("datistemplate"):
        yield f"ALTER {database} IS_TEMPLATE true"


def search_path(was: dict[str, Any]) -> str:
    """Return the search path that the database sets for its sessions, or PostgreSQL's default."""
    for role, setting in was.get("settings") or ():
        name, _, value = setting.partition("=")
        if role is None and name == "search_path":
            return str(value)
    return '"$user", public'


def _dotted(name: str) -> str:
    return ".".join(map(quoted_name, name.split(".")))


def _items(value: str) -> list[str]:
    """Return the items of a list of names, as a setting has it: some of them quoted."""
    items = re.findall(r'"((?:[^"]|"")*)"|([^",\s]+)', value)
    return [plain or quoted.replace('""', '"') for quoted, plain in items] or [""]


def plain(line: bytes) -> bytes | None:
    """Return the part of a psql message that may be shown: what failed and why, but no value of a row."""
    text = line.decode(errors="backslashreplace")
    severity, colon, _ = text.partition(":  ")
    severity = severity.split(": ")[-1]
    if not text.startswith("psql: ") and (not colon or not severity.isupper() or severity in _REST):
        return None
    if "for parameter " not in text:
        text = re.sub('(?<=[^ :]: )["\u00bb\u201e\u00ab\u201c].*', '"..."', text)
    return re.sub('\\bvalue ".*?"', 'value "..."', text).encode()
