"""Engines: how one kind of state is dumped, and how a dump is restored next to the live state.

An engine is a struct whose fields are the keys of its part in castore.toml, with the methods of `Engine`.
castore's own engines are listed here. Another package adds one by the entry point group `castore.engines`:
the entry point's name is the value of `engine` in castore.toml, its object is the class.
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
    """Return the names of the installed engines."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 10 ms, and it is seldom needed

    others = [found.name for found in entry_points(group=_GROUP)]
    return [name for name in (*_OWN, *others) if name != "postgresql-roles"]


def find(name: str) -> Any:
    """Return the class of an engine. Raises UsageError if there is none, or if it cannot be loaded."""
    if name in _OWN:
        module, attribute = _OWN[name]
        return getattr(import_module(module), attribute)
    from importlib.metadata import entry_points  # noqa: PLC0415

    for found in entry_points(group=_GROUP, name=name):
        try:
            return found.load()
        except Exception as error:
            raise UsageError(
                f"the engine {name!r} of {found.value} cannot be loaded: {error}; "
                "repair or reinstall its package"
            ) from error
    raise UsageError(f"there is no engine {name!r}; known are tree, {', '.join(names())}")


def name_of(kind: type) -> str:
    """Return the name of an engine in castore.toml, by its class. Raises UsageError."""
    for name, (module, attribute) in _OWN.items():
        if (kind.__module__, kind.__name__) == (module, attribute):
            return name
    from importlib.metadata import entry_points  # noqa: PLC0415

    for found in entry_points(group=_GROUP):
        if found.value == f"{kind.__module__}:{kind.__qualname__}":
            return found.name
    raise UsageError(f"{kind.__qualname__} is not an installed engine; known are {', '.join(names())}")
