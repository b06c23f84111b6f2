"""Engines: how one kind of state is dumped, and how a dump is restored next to the live state.

An engine is a struct whose fields are the keys of its part in castore.toml, with the methods of `Engine`.
castore's own engines are listed here. Another package adds one by the entry point group `castore.engines`:
the entry point's name is the value of `engine` in castore.toml, its object is the class.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from castore.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint

_OWN: Final = {
    "file": "castore.engines.file:File",
    "command": "castore.engines.command:Command",
    "postgresql": "castore.engines.postgresql.engine:PostgreSQL",
    "postgresql-roles": "castore.engines.postgresql.roles:PostgreSQLRoles",
    "mariadb": "castore.engines.mariadb.engine:MariaDB",
    "mysql": "castore.engines.mariadb.engine:MySQL",
    "redis": "castore.engines.redis:Redis",
    "ldap": "castore.engines.ldap:LDAP",
    "sqlite": "castore.engines.sqlite:SQLite",
}
"""The classes of castore's own engines, by name: written as an entry point is, so that none is imported."""
_GROUP: Final = "castore.engines"


def names() -> list[str]:
    """Return the names of the installed engines."""
    return [name for name in (*_OWN, *(entry.name for entry in _added())) if name != "postgresql-roles"]


def find(name: str) -> Any:
    """Return the class of an engine. Raises UsageError if there is none, or if it cannot be loaded."""
    if name in _OWN:
        module, _, attribute = _OWN[name].partition(":")
        return getattr(import_module(module), attribute)
    for entry in _added():
        if entry.name == name:
            return _load(entry)
    raise UsageError(f"there is no engine {name!r}; known are tree, {', '.join(names())}")


def name_of(kind: type) -> str:
    """Return the name of an engine in castore.toml, by its class. Raises UsageError."""
    written = f"{kind.__module__}:{kind.__qualname__}"
    for name, value in _OWN.items():
        if value == written:
            return name
    package = kind.__module__.partition(".")[0]
    for entry in _added():
        # The entry point may name the class where its package re-exports it.
        if entry.value.partition(":")[0].partition(".")[0] == package and _load(entry) is kind:
            return entry.name
    raise UsageError(f"{kind.__qualname__} is not an installed engine; known are {', '.join(names())}")


def _added() -> Iterable[EntryPoint]:
    """Return the engines that other packages add."""
    from importlib.metadata import entry_points  # noqa: PLC0415 - 10 ms, and it is seldom needed

    return entry_points(group=_GROUP)


def _load(engine: EntryPoint) -> Any:
    try:
        return engine.load()
    except Exception as error:
        raise UsageError(
            f"the engine {engine.name!r} of {engine.value} cannot be loaded: {error}; "
            "repair or reinstall its package"
        ) from error
