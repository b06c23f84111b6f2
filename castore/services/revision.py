"""Determine a service's configured revision: the name of its present configuration."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import CastoreError, ProgramError, UsageError
from castore.fs.beneath import OPEN_FILE
from castore.model.names import check_revision
from castore.process.runners import output_of

if TYPE_CHECKING:
    from castore.services.config import Revision

_MAX_LINKS: Final = 40
"""The number of symbolic links that the kernel follows, too."""


def current(revision: Revision | None, timeout: float | None = None) -> str | None:
    """Return a service's configured revision, or None if castore.toml names no source of it.

    timeout: seconds that its program may take. Raises UsageError if the source has no valid revision, and
    ProgramError if its program fails.
    """
    if revision is None:
        return None
    if revision.command is not None:
        return _printed(revision.command, timeout)
    if revision.paths is not None:
        return _hash_of(revision.paths)
    if revision.link is not None:
        return _checked(_target(revision.link), f"the target of {revision.link}")
    if revision.value is None:
        raise UsageError("the table 'revision' has no key: give value, link, command or paths")
    return check_revision(revision.value)


def source_of(revision: Revision) -> str:
    """Return the source of a revision, for people."""
    if revision.command is not None:
        return f"printed by {revision.command[0]}"
    if revision.paths is not None:
        return f"a hash over {', '.join(revision.paths)}"
    if revision.link is not None:
        return f"the target of {revision.link}"
    return "as castore.toml says"


def _target(link: str) -> str:
    """Follow a chain of symbolic links; return the target of the last one.

    A profile of Guix or Nix is a link to a numbered link, which leads to the system in the store. Only the
    last target identifies the configuration: the number changes when a system is activated again.
    """
    path, target = link, ""
    for _ in range(_MAX_LINKS):
        try:
            target = os.readlink(path)
        except OSError as error:
            if target:
                return target
            reason = "it is not a symbolic link" if os.path.lexists(link) else error.strerror
            raise UsageError(f"cannot read a revision from the link {link}: {reason}") from error
        path = os.path.join(os.path.dirname(path), target)
    raise UsageError(f"cannot read a revision from the link {link}: it leads in a circle")


def _hash_of(paths: tuple[str, ...]) -> str:
    """Return a hash over paths: names, contents of files, targets of links."""
    hasher = blake3()

    def add(*pieces: bytes) -> None:
        for piece in pieces:
            hasher.update(len(piece).to_bytes(8, "little") + piece)

    def visit(path: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        """Hash a path; return the (path, name) pairs of its entries if it is a directory."""
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            add(b"link", name, os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            add(b"directory", name)
            return [(os.path.join(path, below), name + b"/" + below) for below in sorted(os.listdir(path))]
        elif stat.S_ISREG(info.st_mode):
            add(b"file", name, info.st_size.to_bytes(8, "little"))
            # OPEN_FILE: the file may have been replaced by a pipe or a link since.
            with open(os.open(path, OPEN_FILE), "rb") as file:
                while data := file.read(1 << 20):
                    hasher.update(data)
        else:
            add(b"other", name)
        return []

    for path in paths:
        try:
            # Iterative: directories may be nested too deeply for recursion.
            remaining = [(os.fsencode(path), os.fsencode(path))]
            while remaining:
                remaining += reversed(visit(*remaining.pop()))
        except OSError as error:
            reason = f"{error.strerror} ({error.filename!r})"
            raise UsageError(f"cannot compute a revision from {path}: {reason}") from error
    return hasher.hexdigest(16)


def _printed(command: tuple[str, ...], timeout: float | None) -> str:
    try:
        text = output_of(command, timeout=timeout).decode().strip()
    except UnicodeDecodeError as error:
        raise ProgramError(f"{command[0]} printed a revision that is not UTF-8") from error
    if not text:
        raise ProgramError(f"{command[0]} printed nothing, but a revision was expected")
    return _checked(text, f"what {command[0]} printed")


def _checked(text: str, source: str) -> str:
    try:
        return check_revision(os.fsencode(text).decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} cannot be a revision: it is not UTF-8") from error
    except CastoreError as error:
        raise UsageError(f"{source} cannot be a revision: {error}") from error
