"""Find the accounts of users that run programs, for `run-as` in castore.toml."""

from __future__ import annotations

import os
import pwd

from castore.errors import ConfigError


def account_of(name: str | None) -> pwd.struct_passwd | None:
    """Return the account that runs a program; None: castore's own.

    Raises ConfigError for an unknown user, or if castore may not run programs as another user.
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


def owner_account(path: str) -> pwd.struct_passwd | None:
    """Return the account of a file's owner, if castore is root and can run programs as that user.

    None: castore's own account, also for an owner without an account on this machine. Raises OSError.
    """
    uid = os.stat(path, follow_symlinks=False).st_uid
    if uid == os.geteuid() or os.geteuid() != 0:
        return None
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def owner_hint(path: str, *, becomes_owner: bool) -> str | None:
    """Return a hint for root, which works with files of another user; None: no hint is needed.

    becomes_owner: whether the engine opens the files as that user.
    """
    try:
        uid = os.stat(path).st_uid
    except OSError:
        return None
    if os.geteuid() != 0 or uid == 0:
        return None
    try:
        name = option = pwd.getpwuid(uid).pw_name
    except KeyError:
        name, option = f"the user id {uid}", f"'#{uid}'"
    if becomes_owner:
        return f"{path} belongs to {name}, and is opened as that user, or as the user of `run-as`"
    hint = (
        f"{path} belongs to {name}, and root reads and replaces it: links that {name} could have placed are "
        "not followed"
    )
    # `run-as` needs an account.
    if option == name:
        hint += f'; with run-as = "{name}" the programs of the service do not run as root'
    run = f"sudo -u {option} castore snapshot ..."
    return f'{hint}; castore itself can run as that user: {run} (README: "Trees")'


def _own_name(uid: int) -> str:
    try:
        return repr(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return f"the user id {uid}"
