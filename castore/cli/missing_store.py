"""What castore refuses and suggests if there is no store at an address."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import Final

from castore.cli.environment import default_store
from castore.errors import UsageError
from castore.state.directories import machine_paths
from castore.storage import is_url, open_storage
from castore.store.format.names import CONFIGS


def has_been_used(address: str) -> bool:
    """Return whether this machine has used a store at an address, which may be missing now."""
    from castore.state.writer_key_file import has_kept_key_of

    own = machine_paths()
    return has_kept_key_of(own, address) or any(map(own.has_used, _names_of(address)))


def _names_of(address: str) -> set[str]:
    """Return the names under which this machine may have used a store."""
    return {address} if is_url(address) else {address, os.path.realpath(address)}


def refuse_lost(path: str) -> None:
    """Refuse the automatic creation of a store where this machine has used one. Raises UsageError."""
    if has_been_used(path):
        raise UsageError(f"the store at {path} is missing: {_MISSING}")


def refuse_replacement(address: str) -> None:
    """Refuse to create a store where this machine has used one that is missing now.

    Raises UsageError, StorageError.
    """
    own = machine_paths()
    # If it exists, another error reports that, or its creation was interrupted.
    if any(map(own.has_used, _names_of(address))) and not _has_config(address):
        raise UsageError(
            f"the store at {address} is missing: {_missing_at(address)}; if it is lost and a new one is to "
            f"replace it, use castore init --replace-lost {shlex.quote(address)}"
        )


def _has_config(address: str) -> bool:
    if is_url(address):
        with contextlib.closing(open_storage(address)) as storage:
            return any(True for _ in storage.list(CONFIGS))
    return os.path.isdir(os.path.join(address, CONFIGS))


_MISSING: Final = (
    "this machine has used a store there; mount its file system, restore it from a copy, or name the "
    "right directory with --store"
)
_MISSING_REMOTE: Final = (
    "this machine has used a store there; restore it from a copy, or name the right URL with --store"
)


def _missing_at(address: str) -> str:
    return _MISSING_REMOTE if is_url(address) else _MISSING


def hint_for(address: str) -> str:
    """Return what the user can do if there is no store at an address.

    Creation is suggested only if no store can have existed: a new store in an empty mount point would hide
    the store on the file system that is not mounted. A new user has no directory above the default store.
    """
    if has_been_used(address):
        return _missing_at(address)
    create = f"if there has never been one, create it with: castore init {shlex.quote(address)}"
    if is_url(address):
        return create
    above = os.path.dirname(address)
    with contextlib.suppress(OSError):
        if not os.path.lexists(address) and (address == default_store() or os.listdir(above)):
            return create
    return "mount the file system that it is on, or name the right directory with --store"
