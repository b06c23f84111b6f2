"""The environment of castore: its variables, the user's home, where configuration, store and state are."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from castore.state.directories import NoHomeError, absolute, base_directory

_FILE: Final = "castore.toml"
_SYSTEM_FILE: Final = "/etc/castore/castore.toml"
_IDENTITY_TEXTS: Final = ("castore-identity-", "castore-locked-")
_PROGRAM_FOLDERS: Final = (
    *("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"),
    *("/run/wrappers/bin", "/run/current-system/sw/bin", "/run/current-system/sw/sbin"),
    *("/run/current-system/profile/bin", "/run/current-system/profile/sbin"),
)
"""Where systems keep programs; the last five are of NixOS and Guix."""
_taken: Final[dict[str, str]] = {}
"""Variables that were taken out of the environment at the start."""


def debugging() -> bool:
    """Whether errors are to be shown with where they come from."""
    return value_of("CASTORE_DEBUG") is not None


def find_config(option: str | None) -> str | None:
    """Return the castore.toml to read, or None if there is none. Raises ConfigError.

    option: what --config says. One that is asked for is returned though it may not be there.
    """
    if asked := option or value_of("CASTORE_CONFIG"):
        return absolute(asked)
    with contextlib.suppress(FileNotFoundError):  # the working directory may have been deleted
        here = os.path.abspath(_FILE)
        if os.path.exists(here):
            return here
    with contextlib.suppress(NoHomeError):
        own = os.path.join(_own_config(), _FILE)
        if os.path.exists(own):
            return own
    # The machine's may be for root only; who has a store of his own does not need it.
    return _SYSTEM_FILE if os.access(_SYSTEM_FILE, os.R_OK) else None


def config_to_write(option: str | None) -> str:
    """Return where a new castore.toml belongs; option: what --config says. Raises UsageError."""
    if asked := option or value_of("CASTORE_CONFIG"):
        return absolute(asked)
    return _SYSTEM_FILE if os.geteuid() == 0 else os.path.join(_own_config(), _FILE)


def complete_path() -> None:
    """Append the usual directories of programs to PATH, which cron and systemd keep short."""
    import glob
    import re

    servers = glob.glob("/usr/lib/postgresql/*/bin")
    servers.sort(key=lambda path: [int(number) for number in re.findall("[0-9]+", path)])
    own = [one for one in os.environ.get("PATH", "").split(os.pathsep) if one]
    usual = [one for one in (*_PROGRAM_FOLDERS, *reversed(servers)) if one not in own and os.path.isdir(one)]
    os.environ["PATH"] = os.pathsep.join([*own, *usual])


def store_from_environment() -> str | None:
    """Return the store that CASTORE_STORE names, if it does."""
    return value_of("CASTORE_STORE")


def default_store() -> str:
    """Return where the store is when nothing says otherwise."""
    return os.path.join(base_directory("XDG_DATA_HOME", ".local/share"), "castore")


def identity_path(store_id: bytes) -> str:
    """Return where the identity of a store is when nothing says otherwise."""
    return os.path.join(_own_config(), f"{store_id.hex()}.identity")


def take_secrets() -> None:
    """Take what is secret out of the environment, which every program that castore runs would get.

    That is CASTORE_IDENTITY, where it holds an identity itself. Names of files and programs are passed
    on: they are no secrets, and a hook may well run castore. What the kernel shows of a process's first
    environment stays, for root and, since castore's memory is closed to other processes, for nobody else.
    """
    if (given := value_of("CASTORE_IDENTITY")) and is_identity_text(given):
        _taken["CASTORE_IDENTITY"] = given
        del os.environ["CASTORE_IDENTITY"]


def is_identity_text(text: str) -> bool:
    """Return whether a text is an identity itself, not the name of a file."""
    return text.removeprefix("\ufeff").strip().lower().startswith(_IDENTITY_TEXTS)


def value_of(name: str) -> str | None:
    """Return a variable of the environment; None if it is not set, or empty."""
    return _taken.get(name) or os.environ.get(name) or None


def _own_config() -> str:
    return os.path.join(base_directory("XDG_CONFIG_HOME", ".config"), "castore")
