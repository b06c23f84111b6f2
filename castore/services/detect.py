"""Detect services on this machine whose state castore can store, and write a castore.toml for them."""

from __future__ import annotations

import glob
import json
import os
import pwd
import re
import shutil
import stat
from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import CastoreError, UntrustedPathError
from castore.fs.beneath import locate
from castore.model.odd_text import is_valid, message, without_odd
from castore.process.runners import output_of
from castore.process.users import account_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_SECONDS: Final = 10.0
_SQLITE: Final = b"SQLite format 3\0"
_MOST_SQLITE: Final = 20
_STATE_FOLDERS: Final = ("/etc", "/srv", "/var/www")
_NOT_STATE: Final = re.compile(
    "/(apt|dpkg|PackageKit|fwupd|command-not-found|man-db|swcatalog|nix|guix|castore|docker|containers)/"
)
"""Directories below /var/lib that packages rebuild, or that belong to other tools."""
_SYSTEM_DATABASES: Final = {"information_schema", "performance_schema", "sys"}
_STOP: Final = 'A rollback needs the keys stop and start, for example stop = ["systemctl", "stop", "{}"].'
_LINKS: Final = ("/run/current-system",)


class Found(msgspec.Struct):
    """A service that was detected."""

    name: str
    why: str
    """What was detected, for a comment."""
    parts: dict[str, dict[str, str | int | list[str]]] = {}
    notes: tuple[str, ...] = ()
    """What the user has to add, for comments."""
    usable: bool = True
    """False if the server could not be queried: its lines are written as comments."""


def detect() -> Iterator[Found]:
    """Yield the services on this machine. Servers are only queried for the names of their databases."""
    for look in (_postgresql, _mariadb, _redis, _ldap, _sqlite, _folders):
        yield from look()


def document(store: str | None, found: Sequence[Found]) -> str:
    """Return the text of a castore.toml for the detected services."""
    lines = [
        "# The services of this machine that castore takes snapshots of. Check it with: castore config check",
        "# The keys are explained by: castore help configuration",
        "",
        f"store = {_quoted(store)}" if store and is_valid(store) else '# store = "/var/backups/castore"',
        "",
        "[defaults]",
        "keep = { last = 7, daily = 14, weekly = 8, monthly = 12, per-revision = 1 }",
    ]
    if link := next((path for path in _LINKS if os.path.islink(path)), None):
        lines += [f"revision = {{ link = {_quoted(link)} }}   # the system generation of Guix or NixOS"]
    else:
        lines += ["# The configuration that state belongs to, for example:"]
        lines += ['# revision = { command = ["git", "-C", "/etc", "rev-parse", "HEAD"] }']
    lines += ['# exclude = ["*.tmp", "cache/"]   # of every tree, as in .gitignore']
    for server in found:
        lines += ["", *_block(server)]
    if not found:
        lines += ["", "# Nothing was found. A service with a directory:", "#"]
        lines += ["# [service.example.parts.files]", '# engine = "tree"', '# path = "/srv/example"']
    return "\n".join(lines) + "\n"


def _block(one: Found) -> list[str]:
    mark = "" if one.usable else "# "
    lines = [f"# {message(text)}" for text in (one.why, *one.notes)]
    if without_odd(one.parts) != one.parts:
        mark = "# "
        lines.append("# TOML cannot hold its path, which is not UTF-8: use castore snapshot --tree, --dump.")
    for part, keys in one.parts.items():
        lines.append(f"{mark}[service.{one.name}.parts.{_quoted(part) if '.' in part else part}]")
        lines += [f"{mark}{key} = {_quoted(value)}" for key, value in keys.items()]
    return lines


def _quoted(value: str | int | list[str]) -> str:
    """Return a value in TOML, which writes strings and lists as JSON does."""
    return json.dumps(without_odd(value), ensure_ascii=True)


def _asked(*argv: str, run_as: str | None = None) -> list[str]:
    """Return the lines that a client prints. run_as: the user that runs it. Raises CastoreError."""
    account = account_of(run_as)
    printed = output_of(argv, timeout=_SECONDS, account=account, only=lambda _: None)
    return printed.decode(errors="replace").splitlines()


def _name_of(text: str) -> str:
    """Return a valid name of a service or part that resembles a text."""
    return re.sub("[^A-Za-z0-9_-]+", "-", text).strip("-_")[:60] or "part"


def _parts(names: Sequence[str], **keys: str | int) -> dict[str, dict[str, str | int | list[str]]]:
    """Return a part for each database. keys: the other keys of the part."""
    parts: dict[str, dict[str, str | int | list[str]]] = {}
    for name in names:
        if not name or not name.isprintable():
            continue
        part = _name_of(name)
        while part in parts:
            part += "-2"
        parts[part] = {"engine": str(keys["engine"]), "database": name}
        parts[part] |= {key: value for key, value in keys.items() if key != "engine"}
    return parts


def _postgresql() -> Iterator[Found]:
    own = os.environ.get("PGHOST", "")
    directories = [own] if os.path.isabs(own) else ["/run/postgresql", "/tmp"]  # noqa: S108 - where servers listen
    names = [
        path for folder in directories for path in sorted(glob.glob(f"{glob.escape(folder)}/.s.PGSQL.*[0-9]"))
    ]
    sockets = [path for path in names if _is_socket(path)]
    for path in sockets:
        host, port = os.path.dirname(path), int(path.rpartition(".")[2])
        name = "postgresql" if port == 5432 else f"postgresql-{port}"
        why = f"The PostgreSQL server at {path}: a part for each database."
        sql = "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate ORDER BY datname"
        keys: dict[str, str | int] = {"engine": "postgresql", "host": host, "port": port}
        if user := os.environ.get("PGUSER"):
            # Engines do not pass this variable to the clients that they run.
            keys["user"] = user
        ask = ("psql", "-XAtwqh", host, "-p", str(port), "-d", "postgres", "-c", sql)
        try:
            databases = _asked(*ask)
        except CastoreError as error:
            # With peer authentication, the server expects the system user with the name of the role.
            owner = _owner_of(path)
            try:
                databases = _asked(*ask, run_as=owner) if owner else []
            except CastoreError:
                databases = []
            if not databases:
                notes = (f"Its databases could not be listed: {_short(error)}",)
                yield Found(name, why, _parts(["mydatabase"], **keys), notes, usable=False)
                continue
            keys["run-as"] = str(owner)
        # The default database is mostly empty: include it only if there is no other one.
        chosen = [database for database in databases if database != "postgres"] or databases
        yield Found(name, why, _parts(chosen, **keys))
    if not sockets and (glob.glob("/usr/lib/postgresql/*/bin/postgres") or shutil.which("postgres")):
        why = "PostgreSQL is installed, but no server answers on the usual sockets."
        yield Found("postgresql", why, _parts(["mydatabase"], engine="postgresql"), usable=False)


def _mariadb() -> Iterator[Found]:
    own = os.environ.get("MYSQL_UNIX_PORT")
    usual = [own] if own else ["/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock"]
    path = next((socket for socket in usual if _is_socket(socket)), None)
    keys: dict[str, str | int] = {"engine": "mariadb"}
    if path is None:
        if shutil.which("mariadbd") or shutil.which("mysqld"):
            why = "MariaDB is installed, but no server answers on the usual sockets."
            yield Found("mariadb", why, _parts(["mydatabase"], **keys), usable=False)
        return
    keys["socket"] = path
    why = f"The MariaDB server at {path}: a part for each database."
    try:
        client = shutil.which("mariadb") or "mysql"
        databases = _asked(client, f"--socket={path}", "-BN", "-e", "SHOW DATABASES")
    except CastoreError as error:
        notes = (f"Its databases could not be listed: {_short(error)}",)
        yield Found("mariadb", why, _parts(["mydatabase"], **keys), notes, usable=False)
        return
    chosen = [database for database in databases if database not in _SYSTEM_DATABASES]
    yield Found(
        "mariadb", why, _parts([database for database in chosen if database != "mysql"] or chosen, **keys)
    )


def _redis() -> Iterator[Found]:
    notes = (_STOP.format("redis-server"),)
    for path in ("/run/redis/redis-server.sock", "/run/redis/redis.sock", None):
        if path is not None and not _is_socket(path):
            continue
        where: dict[str, str | int | list[str]]
        where = {"socket": path} if path else {"host": "127.0.0.1", "port": 6379}
        options = ["-s", path] if path else ["-h", "127.0.0.1", "-p", "6379"]
        parts = {"data": {"engine": "redis", **where}}
        try:
            answers = _asked("redis-cli", *options, "PING")
        except CastoreError:
            answers = []
        if answers == ["PONG"]:
            yield Found("redis", "The Redis server.", parts, notes)
            return
    if shutil.which("redis-server"):
        why = "Redis is installed, but no server answers on port 6379."
        yield Found("redis", why, {"data": {"engine": "redis", "port": 6379}}, notes, usable=False)


def _ldap() -> Iterator[Found]:
    configs = ("/etc/ldap/slapd.d", "/etc/openldap/slapd.d")
    config = next((path for path in configs if os.path.isdir(path)), None)
    if config is None:
        return
    suffixes = []
    for path in sorted(glob.glob(f"{config}/cn=config/olcDatabase=*.ldif")):
        try:
            with locate(path) as found, open(found.open_regular(), "rb") as file:
                text = file.read().decode(errors="replace").replace("\n ", "")
        except (OSError, UntrustedPathError):
            continue
        if re.search("^olcDbDirectory:", text, re.MULTILINE):
            suffixes += re.findall("^olcSuffix: (.+)$", text, re.MULTILINE)
    notes = (_STOP.format("slapd"),)
    parts: dict[str, dict[str, str | int | list[str]]] = {
        _name_of(suffix): {"engine": "ldap", "suffix": suffix, "config": config} for suffix in suffixes
    }
    usable = bool(suffixes) and shutil.which("slapcat") is not None
    parts = parts or {"directory": {"engine": "ldap", "suffix": "dc=example,dc=org", "config": config}}
    yield Found("ldap", f"The OpenLDAP server configured in {config}.", parts, notes, usable=usable)


def _sqlite() -> Iterator[Found]:
    parts: dict[str, dict[str, str | int | list[str]]] = {}
    for depth in ("*", "*/*", "*/*/*"):
        for path in sorted(glob.iglob(f"/var/lib/{depth}")):
            if not path.endswith((".db", ".sqlite", ".sqlite3")) or _NOT_STATE.search(path):
                continue
            if len(parts) < _MOST_SQLITE and path.isprintable() and _is_sqlite(path):
                parts[_name_of(path.removeprefix("/var/lib/"))] = {"engine": "sqlite", "path": path}
    if parts:
        why = "SQLite databases below /var/lib. Remove those that no service of yours uses."
        yield Found("sqlite", why, parts)


def _folders() -> Iterator[Found]:
    for path in _STATE_FOLDERS:
        try:
            names = os.listdir(path)
        except OSError:
            continue
        if names:
            keys: dict[str, str | int | list[str]] = {"engine": "tree", "path": path}
            yield Found(_name_of(path), f"The directory {path}.", {"files": keys})


def _owner_of(path: str) -> str | None:
    """Return the owner of a server's socket; None if castore cannot run programs as that user."""
    if os.geteuid() != 0:
        return None
    try:
        owner = pwd.getpwuid(os.stat(path).st_uid)
    except (OSError, KeyError):
        return None
    return owner.pw_name if owner.pw_uid else None


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(os.stat(path).st_mode)
    except OSError:
        return False


def _is_sqlite(path: str) -> bool:
    try:
        with locate(path) as found, open(found.open_regular(), "rb") as file:
            return file.read(len(_SQLITE)) == _SQLITE
    except (OSError, UntrustedPathError):
        return False


def _short(error: CastoreError) -> str:
    """Return an error as one line for a comment."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())[:200]
