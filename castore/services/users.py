"""The users that programs are run as: `run-as` of castore.toml."""

from __future__ import annotations

import os
import pwd

from castore.errors import ConfigError


def account_of(name: str | None) -> pwd.struct_passwd | None:
    """Return the account to run a program as; None: castore's own.

    Raises ConfigError for an unknown user, and where castore may not run programs as another user.
    """
    if name is None:
        return None
    try:
        account = pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise ConfigError(
            f"cannot run programs as {name!r}: there is no such user on this machine; create the user, or "
            "change run-as in castore.toml"
        ) from None
    own = os.geteuid()
    if account.pw_uid == own:
        return None
    if own != 0:
        raise ConfigError(
            f"cannot run programs as {name!r}: castore runs as {_own_name(own)}, and only root may do that; "
            f"run castore as root, or as that user (sudo -u {name} castore ...), or remove run-as from "
            "castore.toml"
        )
    return account


def user_of(path: str) -> str | None:
    """Return the name of the user that a file belongs to; None for root, and where that is not known."""
    try:
        uid = os.stat(path).st_uid
        return pwd.getpwuid(uid).pw_name if uid else None
    except (OSError, KeyError):
        return None


def _own_name(uid: int) -> str:
    try:
        return repr(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"the user id {uid}"
