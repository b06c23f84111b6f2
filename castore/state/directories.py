"""Directories of the user and of the machine, by the XDG Base Directory Specification."""

from __future__ import annotations

import os
import pwd

from castore.errors import UsageError
from castore.state.paths import MachinePaths
from castore.storage import is_url, normalized_url


class NoHomeError(UsageError):
    """A home directory is needed, but neither HOME nor the user database has one."""


def home() -> str | None:
    """Return the user's home directory; None if neither HOME nor the user database has one."""
    path = os.environ.get("HOME", "")
    if not os.path.isabs(path):
        try:
            path = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return path if os.path.isabs(path) else None


def expanded(path: str) -> str:
    """Return a path with a leading `~` replaced by the home directory. Raises NoHomeError.

    Shells replace it only at the beginning of a word: not in --store=~/backup, NAME=~/dir, or a crontab.
    """
    if path != "~" and not path.startswith("~/"):
        return path
    own = home()
    if own is None:
        raise NoHomeError(f"{path!r}: no home directory is known: set HOME, or name an absolute path")
    return own.rstrip("/") + path[1:] or "/"


def absolute(path: str) -> str:
    """Return an absolute path, with a leading `~` replaced. Raises UsageError."""
    try:
        return os.path.abspath(expanded(path))
    except FileNotFoundError:
        raise UsageError(
            f"{path!r} is relative to the working directory, which was deleted: change to one that exists, "
            "or name an absolute path"
        ) from None


def store_address(text: str) -> str:
    """Return the address of a store: an absolute path, or the one form of its URL. Raises UsageError."""
    return normalized_url(text) if is_url(text) else absolute(text)


def machine_paths() -> MachinePaths:
    """Return the directories of this machine's state and caches of stores."""
    state = base_directory("XDG_STATE_HOME", ".local/state", root="/var/lib")
    cache = base_directory("XDG_CACHE_HOME", ".cache", root="/var/cache")
    return MachinePaths(os.path.join(state, "castore"), os.path.join(cache, "castore"))


def own_config() -> str:
    """Return the directory of this user's castore.toml and identities. Raises NoHomeError."""
    return os.path.join(base_directory("XDG_CONFIG_HOME", ".config"), "castore")


def identity_path(store_id: bytes) -> str:
    """Return the default path of the identity of a store. Raises NoHomeError."""
    return os.path.join(own_config(), f"{store_id.hex()}.identity")


def base_directory(variable: str, below_home: str, *, root: str | None = None) -> str:
    """Return a base directory. As the XDG specification requires, a relative path is ignored.

    root: the directory of root. Raises NoHomeError.
    """
    path = os.environ.get(variable, "")
    if os.path.isabs(path):
        return path
    if root is not None and os.geteuid() == 0:
        return root
    own = home()
    if own is None:
        raise NoHomeError(
            f"no home directory is known for the user id {os.getuid()}: set HOME, or {variable}, to an "
            "absolute path"
        )
    return os.path.join(own, below_home)
