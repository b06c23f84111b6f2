"""The environment of this process: variables, home directory, paths of configuration, store and state."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from castore.state.directories import NoHomeError, absolute, base_directory, own_config

_FILE: Final = "castore.toml"
_SYSTEM_FILE: Final = "/etc/castore/castore.toml"
_IDENTITY_TEXTS: Final = ("castore-identity-", "castore-locked-")
_PROGRAM_FOLDERS: Final = (
    *("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"),
    *("/run/wrappers/bin", "/run/current-system/sw/bin", "/run/current-system/sw/sbin"),
    *("/run/current-system/profile/bin", "/run/current-system/profile/sbin"),
)
"""Directories of programs; the last five are of NixOS and Guix."""
_taken: Final[dict[str, str]] = {}
"""Variables that castore removed from the environment when it started."""


def debugging() -> bool:
    """Return whether errors are shown with a traceback."""
    return value_of("CASTORE_DEBUG") is not None


def find_config(option: str | None) -> str | None:
    """Return the castore.toml to read, or None if there is none. Raises ConfigError.

    option: the value of --config. A file that the user names is returned even if it does not exist.
    """
    if asked := option or value_of("CASTORE_CONFIG"):
        return absolute(asked)
    with contextlib.suppress(FileNotFoundError):  # the working directory may have been deleted
        here = os.path.abspath(_FILE)
        if os.path.exists(here):
            return here
    with contextlib.suppress(NoHomeError):
        own = os.path.join(own_config(), _FILE)
        if os.path.exists(own):
            return own
    # Only root may be able to read that of the machine; a user with another store does not need it.
    return _SYSTEM_FILE if os.access(_SYSTEM_FILE, os.R_OK) else None


def config_to_write(option: str | None) -> str:
    """Return the path of a new castore.toml. option: the value of --config. Raises UsageError."""
    if asked := option or value_of("CASTORE_CONFIG"):
        return absolute(asked)
    return _SYSTEM_FILE if os.geteuid() == 0 else os.path.join(own_config(), _FILE)


def complete_path() -> None:
    """Append the usual directories of programs to PATH: cron and systemd set a short one."""
    import glob
    import re

    servers = glob.glob("/usr/lib/postgresql/*/bin")
    servers.sort(key=lambda path: [int(number) for number in re.findall("[0-9]+", path)])
    own = [folder for folder in os.environ.get("PATH", "").split(os.pathsep) if folder]
    folders = (*_PROGRAM_FOLDERS, *reversed(servers))
    usual = [folder for folder in folders if folder not in own and os.path.isdir(folder)]
    os.environ["PATH"] = os.pathsep.join([*own, *usual])


def store_from_environment() -> str | None:
    """Return the store that CASTORE_STORE names; None if it is not set."""
    return value_of("CASTORE_STORE")


def default_store() -> str:
    """Return the path of the default store."""
    return os.path.join(base_directory("XDG_DATA_HOME", ".local/share"), "castore")


def take_secrets() -> None:
    """Remove secrets from the environment, which every program that castore runs would inherit.

    The only secret is CASTORE_IDENTITY if it contains the identity itself. Names of files and programs are
    passed on: they are not secret, and a hook may run castore. /proc/PID/environ still has the initial
    environment; castore's memory is closed to other processes, so only root can read it.
    """
    if (given := value_of("CASTORE_IDENTITY")) and is_identity_text(given):
        _taken["CASTORE_IDENTITY"] = given
        del os.environ["CASTORE_IDENTITY"]


def is_identity_text(text: str) -> bool:
    """Return whether a text is an identity itself, not the name of a file."""
    return text.removeprefix("\ufeff").strip().lower().startswith(_IDENTITY_TEXTS)


def value_of(name: str) -> str | None:
    """Return a variable of the environment; None if it is unset or empty."""
    return _taken.get(name) or os.environ.get(name) or None
