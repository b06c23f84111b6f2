"""Identities: files of them, and the ways in which a caller gives one."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from castore.crypto import identity as keys
from castore.errors import IdentityError
from castore.state.directories import absolute
from castore.state.identity_file import read_identity, read_text, write_identity

if TYPE_CHECKING:
    from collections.abc import Callable

    AnyIdentity = str | os.PathLike[str] | keys.Identity | Callable[[], keys.Identity]


class Identity(keys.Identity):
    """A secret key that can read what is encrypted to it, and administer the stores that name it."""

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> Self:
        """Return the identity in a file. Raises IdentityError, also for a wrong or missing passphrase."""
        name = os.fspath(path)
        text = read_text(name)
        try:
            return cls.parse(text, _asked(passphrase))
        except IdentityError as error:
            raise IdentityError(f"{name}: {error}") from error

    def save(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        """Write a new file that only this user can read, durably. Raises UsageError if the path exists."""
        write_identity(os.fspath(path), self, passphrase)


def provider_of(
    identity: AnyIdentity | None, passphrase: str | None
) -> Callable[[], keys.Identity] | None:
    """Return a function that returns the identity of the arguments of `open`; None if there is none."""
    if identity is None:
        return None
    if isinstance(identity, keys.Identity):
        return lambda: identity
    if callable(identity):
        return identity
    path = absolute(os.fspath(identity))  # now: the working directory may change until it is read
    return lambda: read_identity(path, _asked(passphrase))


def files_of(identity: AnyIdentity | None) -> tuple[str, ...]:
    """Return the file of an identity, which a restore never removes."""
    return (absolute(os.fspath(identity)),) if isinstance(identity, str | os.PathLike) else ()


def _asked(passphrase: str | None) -> Callable[[], str] | None:
    return None if passphrase is None else lambda: passphrase
