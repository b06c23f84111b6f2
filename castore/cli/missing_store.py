"""What castore refuses and suggests if there is no store at a path."""

from __future__ import annotations

import contextlib
import os
import shlex
from typing import Final

from castore.cli.environment import default_store
from castore.errors import UsageError
from castore.state.directories import machine_paths


def has_been_used(path: str) -> bool:
    """Return whether this machine has used a store at a path, which may be missing now."""
    from castore.state.writer_key_file import has_kept_key_of

    own = machine_paths()
    return has_kept_key_of(own, path) or any(map(own.has_used, {path, os.path.realpath(path)}))


def refuse_lost(path: str) -> None:
    """Refuse the automatic creation of a store where this machine has used one. Raises UsageError."""
    if has_been_used(path):
        raise UsageError(f"the store at {path} is missing: {_MISSING}")


def refuse_replacement(path: str) -> None:
    """Refuse to create a store where this machine has used one that is missing now. Raises UsageError."""
    own = machine_paths()
    if os.path.isdir(os.path.join(path, "config")):
        return  # it exists, which another error reports, or its creation was interrupted
    if any(map(own.has_used, {path, os.path.realpath(path)})):
        raise UsageError(
            f"the store at {path} is missing: {_MISSING}; if it is lost and a new one is to replace it, use "
            f"castore init --replace-lost {shlex.quote(path)}"
        )


_MISSING: Final = (
    "this machine has used a store there; mount its file system, restore it from a copy, or name the "
    "right directory with --store"
)


def hint_for(path: str) -> str:
    """Return what the user can do if there is no store at a path.

    Creation is suggested only if no store can have existed: a new store in an empty mount point would hide
    the store on the file system that is not mounted. A new user has no directory above the default store.
    """
    if has_been_used(path):
        return _MISSING
    above = os.path.dirname(path)
    with contextlib.suppress(OSError):
        if not os.path.lexists(path) and (path == default_store() or os.listdir(above)):
            return f"if there has never been one, create it with: castore init {shlex.quote(path)}"
    return "mount the file system that it is on, or name the right directory with --store"
