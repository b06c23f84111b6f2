"""Where a service's revision, the name of its present configuration, comes from."""

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
"""As many symbolic links as the kernel follows."""


def current(revision: Revision | None, timeout: float | None = None) -> str | None:
    """Return a service's present revision; None where castore.toml names no source of it.

    timeout: seconds that its program may take. Raises UsageError if the source has none to give, and
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
    assert revision.value is not None
    return check_revision(revision.value)


def source_of(revision: Revision) -> str:
    """Say where a revision comes from."""
    if revision.command is not None:
        return f"printed by {revision.command[0]}"
    if revision.paths is not None:
        return f"a hash over {', '.join(revision.paths)}"
    if revision.link is not None:
        return f"the target of {revision.link}"
    return "as castore.toml says"


def _target(link: str) -> str:
    """Follow a symbolic link while what it names is one, too; return the last one's text.

    A profile of Guix or Nix names a link that carries a number, which names the system in the
    store. That last name belongs to the configuration; the number changes when it comes back.
    """
    path, target = link, ""
    for _ in range(_MAX_LINKS):
        try:
            target = os.readlink(path)
        except OSError as error:
            if target:
                return target
            reason = "it is no symbolic link" if os.path.lexists(link) else error.strerror
            raise UsageError(f"no revision from the link {link}: {reason}") from error
        path = os.path.join(os.path.dirname(path), target)
    raise UsageError(f"no revision from the link {link}: it leads in a circle")


def _hash_of(paths: tuple[str, ...]) -> str:
    """Return a hash over what is at some paths: names, bytes of files, targets of links."""
    hasher = blake3()

    def add(*pieces: bytes) -> None:
        for piece in pieces:
            hasher.update(len(piece).to_bytes(8, "little") + piece)

    def visit(path: bytes, name: bytes) -> list[tuple[bytes, bytes]]:
        """Add what is at a path; return what is in the directory that it is."""
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            add(b"link", name, os.readlink(path))
        elif stat.S_ISDIR(info.st_mode):
            add(b"directory", name)
            return [(os.path.join(path, below), name + b"/" + below) for below in sorted(os.listdir(path))]
        elif stat.S_ISREG(info.st_mode):
            add(b"file", name, info.st_size.to_bytes(8, "little"))
            # It may have become a pipe or a link.
            with open(os.open(path, OPEN_FILE), "rb") as file:
                while data := file.read(1 << 20):
                    hasher.update(data)
        else:
            add(b"other", name)
        return []

    for path in paths:
        try:
            # Without recursion: directories may be deep.
            left = [(os.fsencode(path), os.fsencode(path))]
            while left:
                left += reversed(visit(*left.pop()))
        except OSError as error:
            raise UsageError(f"no revision from {path}: {error.strerror} ({error.filename!r})") from error
    return hasher.hexdigest(16)


def _printed(command: tuple[str, ...], timeout: float | None) -> str:
    try:
        text = output_of(command, timeout=timeout).decode().strip()
    except UnicodeDecodeError as error:
        raise ProgramError(f"{command[0]} printed a revision that is not UTF-8") from error
    if not text:
        raise ProgramError(f"{command[0]} printed nothing where a revision was expected")
    return _checked(text, f"what {command[0]} printed")


def _checked(text: str, source: str) -> str:
    try:
        return check_revision(os.fsencode(text).decode())
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} cannot be a revision: it is not UTF-8") from error
    except CastoreError as error:
        raise UsageError(f"{source} cannot be a revision: {error}") from error
