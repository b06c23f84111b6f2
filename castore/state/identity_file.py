"""The file of an identity: read if only its owner can have written it, written durably, never overwritten."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from typing import TYPE_CHECKING, Final

from castore.crypto.identity import Identity, check_identity
from castore.errors import IdentityError, UntrustedPathError, UsageError
from castore.fs.durable import make_private_directory, sync_directory, write_file, write_private
from castore.fs.trusted import read_trusted
from castore.state.directories import absolute, expanded

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_IDENTITY_BYTES: Final = 1 << 16


def read_identity(path: str, passphrase: Callable[[], str] | None) -> Identity:
    """Return the identity in a file. passphrase: asked for it if it is locked. Raises IdentityError."""
    return parse_identity(read_text(path), path, passphrase)


def parse_identity(text: str, source: str, passphrase: Callable[[], str] | None) -> Identity:
    """Return the identity of a text. source: what the text is from, for messages. Raises IdentityError."""
    try:
        return Identity.parse(text, passphrase)
    except IdentityError as error:
        raise IdentityError(f"{source}: {error}") from error


def read_text(path: str) -> str:
    """Return the text of an identity file that only its owner can have written. Raises IdentityError."""
    try:
        return read_trusted(absolute(path), most=_MAX_IDENTITY_BYTES).decode(errors="replace")
    except (OSError, UntrustedPathError) as error:
        if isinstance(error, UntrustedPathError) or error.errno is None:
            raise IdentityError(
                f"the identity {path} is not read: {error}, or pass it as the standard input: "
                "--identity /dev/stdin"
            ) from error
        raise IdentityError(f"cannot read the identity {path}: {error.strerror}") from error


def write_identity(path: str, identity: Identity, passphrase: str | None) -> None:
    """Write an identity file, durably, with mode 0600. Raises UsageError if it exists, StorageError."""
    locked = identity.text() if passphrase is None else identity.locked_text(passphrase)
    today = dt.datetime.now().astimezone().date()
    write_secret(
        path,
        f"# castore identity, created {today}: decrypts all state encrypted to\n"
        f"# {identity.recipient.text}\n"
        "# Everybody with this file can read that state; without it nobody can.\n"
        f"{locked}\n",
    )


def write_secret(path: str, body: str) -> None:
    """Write a file that contains an identity, durably, with mode 0600.

    Raises UsageError if it exists or cannot be written, StorageError.
    """
    path = absolute(path)
    try:
        make_private_directory(os.path.dirname(path))
        # Complete or not at all: a part of an identity would block the next attempt.
        write_file(path, body.encode(), replace=False)
    except FileExistsError:
        raise UsageError(f"{path} exists already; an identity is never overwritten") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    with contextlib.suppress(OSError):  # not every file system of a USB stick supports it
        sync_directory(os.path.dirname(path))


def change_passphrase(
    path: str, passphrase: Callable[[], str] | None, new: Callable[[], str | None]
) -> Identity:
    """Put the identity in a file under another passphrase, or none, in one step.

    passphrase: asked for the present one. new: asked for the new one once the identity is open. At every
    moment the file is completely the old one or the new one, and the new one was seen to open before.
    Raises IdentityError, StorageError.
    """
    path = os.path.realpath(expanded(path))  # a symbolic link stays one
    text = read_text(path)
    identity = parse_identity(text, path, passphrase)
    chosen = new()
    line = identity.text() if chosen is None else identity.locked_text(chosen)
    if Identity.parse(line, lambda: chosen or "").recipient != identity.recipient:
        raise IdentityError(f"{path}: the new form cannot be decrypted; the file was not changed")
    notes = [row for row in text.removeprefix("\ufeff").splitlines() if row.lstrip().startswith("#")]
    owner = os.stat(path)
    write_private(path, "".join(f"{row}\n" for row in [*notes, check_identity(line)]).encode())
    if owner.st_uid != os.geteuid():
        os.chown(path, owner.st_uid, owner.st_gid)
    return identity
