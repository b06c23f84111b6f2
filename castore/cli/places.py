"""Where things are on this machine, by the environment: configuration, store, state, identity."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from typing import TYPE_CHECKING, Final

from castore.errors import (
    CastoreError,
    IdentityError,
    NotFoundError,
    ProgramError,
    UntrustedPathError,
    UsageError,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from castore.crypto.identity import Identity
    from castore.state.paths import MachinePaths

_FILE: Final = "castore.toml"
_SYSTEM_FILE: Final = "/etc/castore/castore.toml"
_IDENTITY_TEXTS: Final = ("castore-identity-", "castore-locked-")
_MAX_IDENTITY_BYTES: Final = 1 << 16
_PROGRAM_FOLDERS: Final = (
    *("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"),
    *("/run/wrappers/bin", "/run/current-system/sw/bin", "/run/current-system/sw/sbin"),
    *("/run/current-system/profile/bin", "/run/current-system/profile/sbin"),
)
"""Where systems keep programs; the last five are of NixOS and Guix."""
_taken: Final[dict[str, str]] = {}
"""Variables that were taken out of the environment at the start."""

_WAYS: Final = (
    "an identity is needed to read what is stored: give --identity FILE, or set CASTORE_IDENTITY "
    "to a file or to the identity itself, or CASTORE_IDENTITY_COMMAND to a program that prints it"
)


def debugging() -> bool:
    """Whether errors are to be shown with where they come from."""
    return _variable("CASTORE_DEBUG") is not None


def find_config(option: str | None) -> str | None:
    """Return the castore.toml to read, or None if there is none. Raises ConfigError.

    option: what --config says. One that is asked for is returned though it may not be there.
    """
    if asked := option or _variable("CASTORE_CONFIG"):
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
    if asked := option or _variable("CASTORE_CONFIG"):
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


class NoHomeError(UsageError):
    """A home directory is needed, and neither HOME nor the user database has one."""


def home() -> str | None:
    """Return the user's home directory; None where neither HOME nor the user database has one."""
    import pwd

    path = os.environ.get("HOME", "")
    if not os.path.isabs(path):
        try:
            path = pwd.getpwuid(os.getuid()).pw_dir
        except KeyError:
            return None
    return path if os.path.isabs(path) else None


def expanded(path: str) -> str:
    """Return a path with a leading `~` replaced by the home directory. Raises NoHomeError.

    Shells replace it only at the beginning of a word: not in --store=~/backup, NAME=~/dir, or a crontab.
    """
    if path != "~" and not path.startswith("~/"):
        return path
    own = home()
    if own is None:
        raise NoHomeError(f"{path!r}: no home directory is known: set HOME, or name an absolute path")
    return own.rstrip("/") + path[1:] or "/"


def absolute(path: str) -> str:
    """Return an absolute path, with a leading `~` replaced. Raises UsageError."""
    try:
        return os.path.abspath(expanded(path))
    except FileNotFoundError:
        raise UsageError(
            f"{path!r} is relative to the working directory, which was deleted: change to one that exists, "
            "or name an absolute path"
        ) from None


def store_from_environment() -> str | None:
    """Return the store that CASTORE_STORE names, if it does."""
    return _variable("CASTORE_STORE")


def default_store() -> str:
    """Return where the store is when nothing says otherwise."""
    return os.path.join(_base("XDG_DATA_HOME", ".local/share"), "castore")


def places() -> MachinePaths:
    """Return the folders that hold something for each store."""
    from castore.state.paths import MachinePaths

    state = _base("XDG_STATE_HOME", ".local/state", root="/var/lib")
    cache = _base("XDG_CACHE_HOME", ".cache", root="/var/cache")
    return MachinePaths(os.path.join(state, "castore"), os.path.join(cache, "castore"))


def identity_path(store_id: bytes) -> str:
    """Return where the identity of a store is when nothing says otherwise."""
    return os.path.join(_own_config(), f"{store_id.hex()}.identity")


def identity_provider(
    option: str | None, default: Callable[[], str]
) -> Callable[[], Identity]:
    """Return a function that gets the identity, when one is needed, from the first that is there.

    option: what --identity says. default: returns the path of `identity_path`. What the function
    returns raises is IdentityError, or ProgramError where a program was to print the identity.
    """
    return lambda: _parse(*identity_text(option, default))


def identity_text(option: str | None, default: Callable[[], str]) -> tuple[str, str]:
    """Return the identity's text, which may be locked, and what it is from. Raises as the above."""
    if option is not None:
        return _file_text(option), option
    if given := _variable("CASTORE_IDENTITY"):
        if _is_identity_text(given):
            return given, "CASTORE_IDENTITY"
        return _file_text(given), given
    if (printed := _printed("CASTORE_IDENTITY_COMMAND")) is not None:
        return printed, "what CASTORE_IDENTITY_COMMAND prints"
    path = None
    with contextlib.suppress(NotFoundError, NoHomeError):
        path = default()
    if path is not None and os.path.exists(path):
        return _file_text(path), path
    if _on_terminal():
        return _ask("Identity (castore-identity-... or castore-locked-...)"), "it"
    raise IdentityError(_WAYS + (f"; {path} is not there either" if path else ""))


def identity_of_new_store(option: str | None) -> tuple[Identity | None, str | None]:
    """Return the identity that a new store is to be sealed to; None, and where to write a new one.

    It is looked for as by `identity_provider`, so that the next command finds it. A place of None is the
    default one. Raises as that.
    """
    given = _variable("CASTORE_IDENTITY") if option is None else option
    if given and (option is not None or not _is_identity_text(given)):
        path = expanded(given)
        return (read_identity(given), None) if os.path.exists(path) else (None, path)
    if given or _variable("CASTORE_IDENTITY_COMMAND"):
        return _parse(*identity_text(None, lambda: "")), None
    return None, None


def runs_identity_program(option: str | None) -> bool:
    """Whether a program prints the identity or its passphrase. option: what --identity says."""
    if _variable("CASTORE_PASSPHRASE_COMMAND"):
        return True
    return not option and not _variable("CASTORE_IDENTITY") and bool(_variable("CASTORE_IDENTITY_COMMAND"))


def identity_files(option: str | None, default: Callable[[], str]) -> list[str]:
    """Return the files that the identity is read from, or would be. The arguments are those of the above."""
    given = option or _variable("CASTORE_IDENTITY")
    found = [expanded(given)] if given and not _is_identity_text(given) else []
    with contextlib.suppress(CastoreError):
        found.append(default())
    return found


def take_secrets() -> None:
    """Take what is secret out of the environment, which every program that castore runs would get.

    That is CASTORE_IDENTITY, where it holds an identity itself. Names of files and programs are passed
    on: they are no secrets, and a hook may well run castore. What the kernel shows of a process's first
    environment stays, for root and, since castore's memory is closed to other processes, for nobody else.
    """
    if (given := _variable("CASTORE_IDENTITY")) and _is_identity_text(given):
        _taken["CASTORE_IDENTITY"] = given
        del os.environ["CASTORE_IDENTITY"]


def _is_identity_text(text: str) -> bool:
    return text.removeprefix("\ufeff").strip().lower().startswith(_IDENTITY_TEXTS)


def read_identity(path: str) -> Identity:
    """Return the identity in a file. Raises IdentityError."""
    return _parse(_file_text(path), path)


def _file_text(path: str) -> str:
    from castore.fs.trusted import read_trusted

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
    """Write an identity file, 0600, durably, never over another. Raises UsageError, StorageError."""
    import datetime as dt


    locked = identity.text() if passphrase is None else identity.locked_text(passphrase)
    today = dt.datetime.now().astimezone().date()
    write_secret(
        path,
        f"# castore identity, made {today}: opens all state sealed to\n"
        f"# {identity.recipient.text}\n"
        "# Whoever has this file can read that state; without it nobody can.\n"
        f"{locked}\n",
    )


def refuse_others(path: str) -> None:
    """Refuse to make a store where there is something else. Raises UsageError."""
    own = {"config", "eras", "generations", "packs", "pins", "sessions", "condemned", "removals"}
    own |= {"shared", "tmp"}
    with contextlib.suppress(OSError):
        if others := sorted({*os.listdir(path)} - own - {"lost+found"}):
            raise UsageError(f"{path} holds {others[0]!r} already: give the store a directory of its own")


def has_been_used(path: str) -> bool:
    """Whether this machine has used a store at a path, which may be missing now."""
    from castore.state.writer_key_file import has_kept_key_of

    own = places()
    return has_kept_key_of(own, path) or any(map(own.has_used, {path, os.path.realpath(path)}))


def refuse_lost(path: str) -> None:
    """Refuse to create a store without being asked where this machine has had one. Raises UsageError."""
    if has_been_used(path):
        raise UsageError(f"the store at {path} is missing: {_MISSING}")


def refuse_replacement(path: str) -> None:
    """Refuse to create a store where this machine has used one that is missing now. Raises UsageError."""
    own = places()
    if os.path.isdir(os.path.join(path, "config")):
        return  # it exists, which is said otherwise, or its creation was interrupted
    if any(map(own.has_used, {path, os.path.realpath(path)})):
        raise UsageError(
            f"the store at {path} is missing: {_MISSING}; if it is lost and a new one is to replace it, use "
            f"castore init --replace-lost {shlex.quote(path)}"
        )


_MISSING: Final = (
    "this machine has used a store there; mount its file system, restore it from a copy, or name the "
    "right directory with --store"
)


def instead_of(path: str) -> str:
    """Return what to do where there is no store at a path.

    Creating one is suggested only where no store can have been: a new store in an empty mount point would
    hide the one on the file system that is not mounted. A new user has no directory above the default store.
    """
    if has_been_used(path):
        return _MISSING
    above = os.path.dirname(path)
    with contextlib.suppress(OSError):
        if not os.path.lexists(path) and (path == default_store() or os.listdir(above)):
            return f"if there has never been one, create it with: castore init {shlex.quote(path)}"
    return "mount the file system that it is on, or name the right directory with --store"


def write_secret(path: str, body: str) -> None:
    """Write a file that holds an identity, 0600, never over another, durably.

    Raises UsageError, StorageError.
    """
    from castore.state.paths import make_private_directory
    from castore.storage.os_files import sync_directory

    path = absolute(path)
    part = f"{path}.{os.urandom(8).hex()}"
    try:
        make_private_directory(os.path.dirname(path))
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(fd, "w") as file:
                file.write(body)
                file.flush()
                os.fsync(file.fileno())
            # Whole or not at all: half an identity would stand in the way of the next try.
            _name_new(part, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
    except FileExistsError:
        raise UsageError(f"{path} exists already; an identity is never written over") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from None
    with contextlib.suppress(OSError):  # not every file system that a stick has can do it
        sync_directory(os.path.dirname(path))


def _name_new(part: str, path: str) -> None:
    """Give a file its name, unless that is taken. Raises OSError."""
    try:
        os.link(part, path)
    except FileExistsError:
        raise
    except OSError:
        # No links on this file system: a stick's FAT.
        if os.path.lexists(path):
            raise FileExistsError(path) from None
        os.rename(part, path)


def change_passphrase(path: str, new: Callable[[], str | None]) -> Identity:
    """Put the identity in a file under another passphrase, or none, in one step.

    new: asked for it once the identity is open. At every moment the file is the old one or the new one,
    whole, and the new one was seen to open before. Raises IdentityError, StorageError.
    """
    from castore.crypto.identity import Identity, check_identity
    from castore.state.paths import write_private

    path = os.path.realpath(expanded(path))  # a link stays one
    text = _file_text(path)
    identity = _parse(text, path)
    passphrase = new()
    line = identity.text() if passphrase is None else identity.locked_text(passphrase)
    if Identity.parse(line, lambda: passphrase or "").recipient != identity.recipient:
        raise IdentityError(f"{path}: the new form does not open; the file is as it was")
    notes = [one for one in text.removeprefix("\ufeff").splitlines() if one.lstrip().startswith("#")]
    owner = os.stat(path)
    write_private(path, "".join(f"{one}\n" for one in [*notes, check_identity(line)]).encode())
    if owner.st_uid != os.geteuid():
        os.chown(path, owner.st_uid, owner.st_gid)
    return identity


def passphrase_from_command(variable: str = "CASTORE_PASSPHRASE_COMMAND") -> str | None:
    """Return what that command prints, without the line's end; None if it is not set.

    Raises ProgramError, IdentityError.
    """
    printed = _printed(variable)
    if printed is None:
        return None
    passphrase = printed.removesuffix("\n").removesuffix("\r")
    if not passphrase:
        raise IdentityError(f"{variable} printed no passphrase")
    return passphrase


def _passphrase() -> str:
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


def _parse(text: str, source: str) -> Identity:
    from castore.crypto.identity import Identity

    try:
        return Identity.parse(text, _passphrase)
    except IdentityError as error:
        raise IdentityError(f"{source}: {error}") from error


def _printed(variable: str) -> str | None:
    """Return what the program that a variable names prints; None if it names none."""
    command = _variable(variable)
    if command is None:
        return None
    from castore.cli.progress import hushed
    from castore.process.runners import output_of

    try:
        argv = shlex.split(command)
    except ValueError as error:
        raise UsageError(f"{variable} cannot be split into arguments: {error}") from error
    try:
        with hushed():  # it may ask for a passphrase of its own
            return output_of(argv, interactive=_on_terminal()).decode()
    except ProgramError as error:
        raise IdentityError(f"{variable}: {error}") from error
    except UnicodeDecodeError as error:
        raise IdentityError(f"{variable}: what it prints is not text") from error


def _ask(what: str) -> str:
    import click

    from castore.cli.progress import hushed

    with hushed():
        answer: str = click.prompt(what, hide_input=True, err=True)
    return answer


_may_ask = True
"""Whether a person may be asked for a passphrase or an identity."""


@contextlib.contextmanager
def unasked() -> Iterator[None]:
    """Ask nobody for a passphrase or an identity during the block, also on a terminal."""
    global _may_ask  # noqa: PLW0603 - of the process, like its terminal
    _may_ask = False
    try:
        yield
    finally:
        _may_ask = True


def _on_terminal() -> bool:
    return _may_ask and sys.stdin.isatty() and sys.stderr.isatty()


def _variable(name: str) -> str | None:
    """Return a variable of the environment; None if it is not set, or empty."""
    return _taken.get(name) or os.environ.get(name) or None


def _own_config() -> str:
    return os.path.join(_base("XDG_CONFIG_HOME", ".config"), "castore")


def _base(variable: str, below_home: str, *, root: str | None = None) -> str:
    """Return a base directory; by the XDG specification a relative one is to be ignored.

    root: the one of root. Raises NoHomeError.
    """
    path = os.environ.get(variable, "")
    if os.path.isabs(path):
        return path
    if root is not None and os.geteuid() == 0:
        return root
    own = home()
    if own is None:
        raise NoHomeError(
            f"no home directory is known for the user id {os.getuid()}: set HOME, or {variable}, to an "
            "absolute path"
        )
    return os.path.join(own, below_home)
