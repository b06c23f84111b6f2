"""Sources of the identity and its passphrase, and the files of identities."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

import click

from castore.cli.environment import is_identity_text, value_of
from castore.cli.options import answered
from castore.errors import (
    CastoreError,
    IdentityError,
    NotFoundError,
    ProgramError,
    UsageError,
)
from castore.state.directories import NoHomeError, expanded
from castore.state.identity_file import parse_identity, read_identity, read_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.crypto.identity import Identity


_WAYS: Final = (
    "an identity is needed to read stored data: give --identity FILE, or set CASTORE_IDENTITY "
    "to a file or to the identity itself, or CASTORE_IDENTITY_COMMAND to a program that prints it"
)


def identity_provider(
    option: str | None, default: Callable[[], str]
) -> Callable[[], Identity]:
    """Return a function that gets the identity, when it is needed, from the first source that exists.

    option: the value of --identity. default: returns the path of `identity_path`. The returned function
    raises IdentityError, or ProgramError if a program should print the identity and fails.
    """
    return lambda: parse_identity(*identity_text(option, default), stored_passphrase)


def identity_text(option: str | None, default: Callable[[], str]) -> tuple[str, str]:
    """Return the identity's text, which may be locked, and its source. Raises as `identity_provider`."""
    if option is not None:
        return read_text(option), option
    if given := value_of("CASTORE_IDENTITY"):
        if is_identity_text(given):
            return given, "CASTORE_IDENTITY"
        return read_text(given), given
    if (printed := _printed("CASTORE_IDENTITY_COMMAND")) is not None:
        return printed, "what CASTORE_IDENTITY_COMMAND prints"
    path = None
    with contextlib.suppress(NotFoundError, NoHomeError):
        path = default()
    if path is not None and os.path.exists(path):
        return read_text(path), path
    if _on_terminal():
        return _ask("Identity (castore-identity-... or castore-locked-...)"), "it"
    raise IdentityError(_WAYS + (f"; {path} does not exist" if path else ""))


def identity_of_new_store(option: str | None) -> tuple[Identity | None, str | None]:
    """Return the identity to encrypt a new store to; or None, and the path of a new identity.

    The sources are those of `identity_provider`, so the next command finds the identity. A path of None is
    the default path. Raises as `identity_provider`.
    """
    given = value_of("CASTORE_IDENTITY") if option is None else option
    if given and (option is not None or not is_identity_text(given)):
        path = expanded(given)
        return (read_identity(given, stored_passphrase), None) if os.path.exists(path) else (None, path)
    if given or value_of("CASTORE_IDENTITY_COMMAND"):
        return parse_identity(*identity_text(None, lambda: ""), stored_passphrase), None
    return None, None


def runs_identity_program(option: str | None) -> bool:
    """Return whether a program prints the identity or its passphrase. option: the value of --identity."""
    if value_of("CASTORE_PASSPHRASE_COMMAND"):
        return True
    return not option and not value_of("CASTORE_IDENTITY") and bool(value_of("CASTORE_IDENTITY_COMMAND"))


def files_in_use(option: str | None, default: Callable[[], str]) -> list[str]:
    """Return the files that may contain the identity. The arguments are those of `identity_provider`."""
    given = option or value_of("CASTORE_IDENTITY")
    files = [expanded(given)] if given and not is_identity_text(given) else []
    with contextlib.suppress(CastoreError):
        files.append(default())
    return files


def passphrase_from_command(variable: str = "CASTORE_PASSPHRASE_COMMAND") -> str | None:
    """Return the passphrase that a command prints, without the line's end; None if there is no command.

    Raises ProgramError, IdentityError.
    """
    printed = _printed(variable)
    if printed is None:
        return None
    passphrase = printed.removesuffix("\n").removesuffix("\r")
    if not passphrase:
        raise IdentityError(f"{variable} printed no passphrase")
    return passphrase


def stored_passphrase() -> str:
    """Return the passphrase of an identity: what a command prints, or what the user types."""
    printed = passphrase_from_command()
    if printed is not None:
        return printed
    if _on_terminal():
        return _ask("Passphrase of the identity")
    if not _may_ask:
        raise IdentityError("it is locked with a passphrase, which is asked for when it is needed")
    raise IdentityError(
        "it is locked with a passphrase: set CASTORE_PASSPHRASE_COMMAND to a program that prints "
        "it, or run castore on a terminal"
    )


def _printed(variable: str) -> str | None:
    """Return the output of the program that a variable names; None if the variable is not set."""
    command = value_of(variable)
    if command is None:
        return None
    from castore.cli.progress import progress_paused
    from castore.process.runners import output_of

    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{variable} cannot be split into arguments: {error}") from error
    try:
        with progress_paused():  # the program may ask for a passphrase
            return output_of(argv, interactive=_on_terminal()).decode()
    except ProgramError as error:
        raise IdentityError(f"{variable}: {error}") from error
    except UnicodeDecodeError as error:
        raise IdentityError(f"{variable}: what it prints is not text") from error


def _ask(what: str) -> str:
    import click

    from castore.cli.progress import progress_paused

    with progress_paused():
        answer: str = click.prompt(what, hide_input=True, err=True)
    return answer


_may_ask = True
"""Whether castore may ask the user for a passphrase or an identity."""


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Ask for no passphrase or identity during the block, not even on a terminal."""
    global _may_ask  # noqa: PLW0603 - one per process, like its terminal
    _may_ask = False
    try:
        yield
    finally:
        _may_ask = True


def _on_terminal() -> bool:
    return _may_ask and sys.stdin.isatty() and sys.stderr.isatty()


def new_passphrase(variable: str = "CASTORE_PASSPHRASE_COMMAND") -> str:
    """Return the passphrase that the command prints; without one, ask for it twice."""
    from castore.cli.identity_files import passphrase_from_command

    given = passphrase_from_command(variable)
    if given is not None:
        return given
    import getpass
    import warnings

    otherwise = f"no passphrase was given: set {variable} to a program that prints it"
    with answered(otherwise), warnings.catch_warnings():
        # Without a terminal, getpass reads standard input, which is intended here, and warns.
        warnings.simplefilter("ignore", getpass.GetPassWarning)
        text: str = click.prompt("New passphrase", hide_input=True, confirmation_prompt=True, err=True)
    return text
