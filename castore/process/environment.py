"""The environment variables of programs: those of another user, and those of database clients."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pwd
    from collections.abc import Mapping

_OF_A_USER: Final = (
    *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"),
    "DBUS_SESSION_BUS_ADDRESS",
)
"""Environment variables that name directories and sockets of castore's own user."""
_CLIENT_SETTINGS: Final = ("PG", "PSQL", "MYSQL", "MARIADB", "LIBMYSQL", "LDAP", "REDISCLI", "SQLITE", "LC_")
"""Prefixes of environment variables that change what database clients do."""
_LOCALE: Final = ("LANG", "LANGUAGE", "TZ", "OUTPUT_CHARSET", "POSIXLY_CORRECT")


def client_environment(**own: str) -> dict[str, str | None]:
    """Return the environment changes for database clients, and for the servers of drills.

    The administrator's settings (variables of the client, locale, language of messages, time zone) must not
    change a dump or how it is loaded. A value of None removes a variable. own: variables to set.
    """
    removed = (name for name in os.environ if name.startswith(_CLIENT_SETTINGS) or name in _LOCALE)
    return {**dict.fromkeys(removed), "LC_ALL": "C", **own}


def environment(
    changes: Mapping[str, str | None], account: pwd.struct_passwd | None = None
) -> dict[str, str]:
    """Return the environment of a program with changes; None removes a variable.

    account: the user that the program is run as; None: castore's own.
    """
    changed = {**environment_of(account), **changes}
    return {name: value for name, value in changed.items() if value is not None}


def environment_of(account: pwd.struct_passwd | None) -> dict[str, str]:
    """Return the environment of a program that `account` runs; None: castore's own."""
    variables = dict(os.environ)
    if account is None:
        return variables
    for name in _OF_A_USER:
        variables.pop(name, None)
    return {**variables, "HOME": account.pw_dir, "USER": account.pw_name, "LOGNAME": account.pw_name}
