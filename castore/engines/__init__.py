"""Engines: how one kind of state is dumped, and put back beside the live one.

An engine is a struct of what its part says in castore.toml, with the methods of `Engine`. castore's own
are named here; another package adds one by the entry point group `castore.engines`: the name that
`engine` has in castore.toml, and the class.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

from castore.errors import UsageError

_OWN: Final = {
    "file": ("castore.engines.file", "File"),
    "command": ("castore.engines.command", "Command"),
    "postgresql": ("castore.engines.postgresql.engine", "PostgreSQL"),
    "postgresql-roles": ("castore.engines.postgresql.roles", "PostgreSQLRoles"),
    "mariadb": ("castore.engines.mariadb.engine", "MariaDB"),
    "mysql": ("castore.engines.mariadb.engine", "MySQL"),
    "redis": ("castore.engines.redis", "Redis"),
    "ldap": ("castore.engines.ldap", "LDAP"),
    "sqlite": ("castore.engines.sqlite", "SQLite"),
}
_GROUP: Final = "castore.engines"


def names() -> list[str]:
    """Return the names of the engines that this castore has."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 10 ms, and it is seldom needed

    others = [found.name for found in entry_points(group=_GROUP)]
    return [name for name in (*_OWN, *others) if name != "postgresql-roles"]


def find(name: str) -> Any:
    """Return the class of an engine. Raises UsageError."""
    if name in _OWN:
        module, attribute = _OWN[name]
        return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points  # noqa: PLC0415

    for found in entry_points(group=_GROUP, name=name):
        try:
            return found.load()
        except Exception as error:
            raise UsageError(f"the engine {name!r} of {found.value} cannot be loaded: {error}") from error
    raise UsageError(f"there is no engine {name!r}; known are tree, {', '.join(names())}")
