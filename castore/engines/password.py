"""The source of an engine's password: never an argument list or a log."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import msgspec

from castore.errors import ConfigError, UntrustedPathError
from castore.fs.trusted import read_trusted
from castore.process.runners import output_of

if TYPE_CHECKING:
    import pwd


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """The source of a password: exactly one field is set. No password is in an argument list or log."""

    file: str | None = None
    env: str | None = None
    """The name of an environment variable."""
    command: tuple[str, ...] | None = None
    """A program that prints the password."""
    credential: str | None = None
    """The name of a systemd credential (LoadCredential=)."""

    def __post_init__(self) -> None:
        given = [self.file, self.env, self.command, self.credential]
        if sum(source is not None for source in given) != 1:
            raise ValueError("exactly one of file, env, command and credential was expected")

    def get(self, account: pwd.struct_passwd | None = None) -> str:
        """Return the password. Raises ConfigError, ProgramError.

        account: the user that the password is for, who may also own its file; None: castore's own user.
        """
        if self.command is not None:
            return os.fsdecode(output_of(self.command)).rstrip("\n")
        if self.env is not None:
            if self.env not in os.environ:
                raise ConfigError(
                    f"the environment variable {self.env}, for a password, is not set: set it for castore"
                )
            return os.environ[self.env]
        path = self.file or ""
        if self.credential is not None:
            folder = os.environ.get("CREDENTIALS_DIRECTORY")
            if folder is None:
                raise ConfigError(
                    f"the credential {self.credential} is given by systemd only: "
                    "LoadCredential= in the unit that runs castore"
                )
            path = os.path.join(folder, self.credential)
        return read_setting("password", path, account).decode("utf-8-sig", "surrogateescape").rstrip("\r\n")

    def __repr__(self) -> str:
        return "Secret()"


def read_setting(what: str, path: str, account: pwd.struct_passwd | None) -> bytes:
    """Return the content of a file that castore.toml names, if no other user could have written it.

    what: what the file holds, for messages. account: a user who may own it besides root and castore's own
    user; None: no other. Raises ConfigError.
    """
    try:
        return read_trusted(path, also=[] if account is None else [account.pw_uid])
    except UntrustedPathError as error:
        raise ConfigError(f"cannot read the {what} in {path}: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot read the {what} in {path}: {reason}") from error
