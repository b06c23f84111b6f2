"""The contract of an engine."""

from __future__ import annotations

import contextlib
import json
import os
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import msgspec

from castore.errors import CastoreError, ConfigError, ProgramError, UntrustedPathError
from castore.fs.trusted import read_trusted
from castore.process.runners import output_of
from castore.process.users import account_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    Bytes = bytes | memoryview
    Readinto = Callable[[memoryview], int]

Memo = dict[str, str]
"""What an engine has to know about a rollback that another process may have begun."""

Inventory = dict[str, str]
"""The content of a database: for "KIND NAME" the fingerprint of a definition, for "rows of NAME" a count."""

INVENTORY: Final = "inventory"
"""The key under which the first line of a dump holds the inventory of the database, where it has one."""

_INTRODUCTION: Final = b"-- castore: "
_MOST_NAMED: Final = 8
"""How many differing objects a message names."""
_MOST_INTRODUCED: Final = 1 << 24

SWAPPING: Final = "swapping"
"""The key that a memo has from just before `swap` is called."""


class Contents(NamedTuple):
    """The dumps that a rollback has for a part; each may be read several times."""

    restore_dump: Callable[[], Iterable[Bytes]]
    """The dump to go back to."""
    previous_dump: Callable[[], Iterable[Bytes]]
    """The dump of the state that is replaced. Raises CastoreError where none was taken."""


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """One part of a service, as castore.toml describes it. Its fields are the keys of castore.toml.

    A rollback calls `prepare`, `stage`, `swap`, and then `cleanup`, or `revert` if anything fails. What
    `prepare` returns is durable before `stage` is called. `swap` is called once, and raises if the staged
    state no longer exists. `revert` and `cleanup` may be called again after a crash, in another process,
    however far an earlier call got. They then do what remains to be done.

    What `stage` and `swap` leave under `made` in a memo is reported, one line each.

    A memo may hold absolute paths under `path` or `live`, `new` and `old`. A tree that contains these paths
    leaves them alone.
    """

    timeout: float | None = None
    """How many seconds a program may take; None: no limit."""
    run_as: str | None = None
    """The user that dump and restore programs run as; None: castore's own."""

    runs_programs: ClassVar[bool] = False
    """Whether the engine runs programs, as `account`."""
    paths: ClassVar[tuple[str, ...]] = ()
    """The fields that are paths."""
    programs: ClassVar[tuple[str, ...]] = ()
    """The fields that are argument lists."""
    sidecar_suffixes: ClassVar[tuple[str, ...]] = ()
    """Endings of the files that are stored next to the paths of a memo and belong to them."""

    @property
    def account(self) -> pwd.struct_passwd | None:
        """The user that programs run as; None: castore's own. Raises ConfigError if there is no such user."""
        return account_of(self.run_as)

    def expand(self, name: str) -> dict[str, tuple[str, Engine]]:
        """Return the parts that the part `name` represents at this time, each with its engine's name.

        Returns {} if it represents only itself.
        """
        del name
        return {}

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine]]:
        """Return the parts that the part `name` represents in a generation; {} if only itself.

        settings: the recorded settings of each part of the generation. No server is queried.
        """
        del name, settings
        return {}

    def exists(self) -> bool:
        """Whether there is anything to dump, as far as that is known without trying."""
        return True

    def check(self) -> None:
        """Raise CastoreError if this part could not be dumped now."""

    def version(self) -> str:
        """Return the name and version of what makes the dump; empty where the version does not matter."""
        return ""

    def compatibility_warning(self, version: str) -> str:
        """Return a reason against restoring, on this machine, what `version` dumped; empty: none."""
        del version
        return ""

    @abstractmethod
    def dump(self) -> AbstractContextManager[Readinto]:
        """Return a context with a function that reads the dump, as castore.process.runners.run_dump does.

        The function may be a `DumpWithPreamble`, which has warnings. Raises ProgramError if the dump fails or
        is incomplete.
        """

    def stable_dump(self, secret: str) -> AbstractContextManager[Readinto]:
        """Return the same as `dump`, for engines whose program puts a random word into each dump.

        secret: replaces the random word, so that equal states give equal dumps; always the same for one part.
        """
        del secret
        return self.dump()

    def when_stopped(self, memo: Memo) -> Engine:
        """Return the engine that dumps this part while its service is stopped. memo: of `prepare`."""
        del memo
        return self

    def refusal(self) -> str:
        """Return why this part cannot be rolled back; empty if it can."""
        return ""

    def preflight(self) -> None:
        """Raise CastoreError if a program or server that a rollback needs is missing."""

    def creates(self, contents: Callable[[], Iterable[Bytes]]) -> list[str]:
        """Return what a rollback to a dump would first create, for messages. contents: gives the dump."""
        del contents
        return []

    def prepare(self) -> Memo:
        """Return what `swap`, `revert` and `cleanup` will need. Nothing is created yet."""
        return {}

    @abstractmethod
    def stage(self, memo: Memo, contents: Contents) -> None:
        """Create the state to return to, next to the live one, which stays in use. Raises CastoreError."""

    @abstractmethod
    def swap(self, memo: Memo, contents: Contents) -> None:
        """Replace the live state by the staged one, and keep the replaced state. Raises CastoreError."""

    def remove(self, memo: Memo) -> None:
        """Move the live state away without a replacement, and keep it; called instead of `swap`.

        This is for engines whose `exists` may return False: a rollback may return to a time when the state
        did not exist. Raises CastoreError.
        """
        what = memo.get("live", "the live state")
        raise CastoreError(
            f"{what} did not exist in that generation, and this engine cannot remove it: remove it by hand"
        )

    @abstractmethod
    def revert(self, memo: Memo, contents: Contents) -> None:
        """Restore the live state, and remove what was staged. Raises CastoreError."""

    def cleanup(self, memo: Memo) -> None:
        """Remove the replaced state. Raises CastoreError."""

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Restore the dump into a scratch place below `folder`, check it, and yield a summary of the result.

        With the summary come variables for the environment of a check: they say how to reach the restored
        state while the block lasts. Yields None if this engine has no drill; the dump is then kept as a
        file. Raises CastoreError if the dump is damaged.
        """
        del folder, contents
        yield None


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
        if sum(one is not None for one in given) != 1:
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


class DumpWithPreamble:
    """Reads a dump that begins with a line of castore's own, which the restoring program ignores.

    warnings: (name, reason) of parts of the state that are not in the dump, or that could not be restored.
    They are complete once the dump has been read to its end.
    """

    def __init__(self, readinto: Readinto, introduction: dict[str, Any]) -> None:
        self.warnings: list[tuple[bytes, str]] = []
        self._readinto = readinto
        # In ASCII, so that the line contains no line end.
        text = json.dumps(introduction, sort_keys=True)
        self._first = memoryview(_INTRODUCTION + text.encode("ascii") + b"\n")

    def __call__(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes were written, 0 at the end."""
        if self._first:
            count = min(len(self._first), len(view))
            view[:count] = self._first[:count]
            self._first = self._first[count:]
            return count
        return self._readinto(view)


def read_preamble(chunks: Iterable[Bytes]) -> dict[str, Any]:
    """Return what the first line of a dump records; {} if a castore without this line took the dump.

    Raises CastoreError if the line is not valid.
    """
    line = b""
    for chunk in chunks:
        line += bytes(chunk[: _MOST_INTRODUCED - len(line)])
        if b"\n" in line or len(line) == _MOST_INTRODUCED or not line.startswith(_INTRODUCTION[: len(line)]):
            break
    text = line.partition(b"\n")[0]
    if not text.startswith(_INTRODUCTION):
        return {}
    try:
        found = json.loads(text[len(_INTRODUCTION) :])
        # JSON may hold lone surrogates, which cannot be passed to a program.
        json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CastoreError(
            "the first line of the dump, which castore wrote, is damaged: restore another generation"
        )
    return found


def differences(expected: Inventory, found: Inventory) -> list[str]:
    """Return how `found` differs from `expected`, each difference as "the view a.b is missing"."""
    return [
        *(f"the {name} is missing" for name in sorted(expected.keys() - found.keys())),
        *(f"the {name} should not exist" for name in sorted(found.keys() - expected.keys())),
        *(
            f"the {name}: {found[name]} instead of {expected[name]}"
            if name.startswith("rows of ")
            else f"the {name} has another definition"
            for name in sorted(expected.keys() & found.keys())
            if expected[name] != found[name]
        ),
    ]


def refuse_difference(what: str, expected: Inventory, found: Inventory) -> None:
    """Raise CastoreError if a staged database differs from what was recorded when its dump was taken.

    what: the database, for the message.
    """
    named = differences(expected, found)
    if named:
        more = f"; and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        raise CastoreError(
            f"the dump of {what} does not restore to what was recorded when it was taken: "
            f"{'; '.join(named[:_MOST_NAMED])}{more}; nothing was replaced (castore restore writes the dump "
            "to a file, to load it by hand)"
        )


def settings_of(engine: Engine) -> dict[str, Any]:
    """Return an engine's fields as plain values, as castore.toml has them."""
    found: dict[str, Any] = msgspec.to_builtins(engine)
    return found


def refuse_filters(options: tuple[str, ...], filters: tuple[str, ...]) -> None:
    """Raise CastoreError if an option of the dump program leaves out what a rollback has to restore."""
    for option in options:
        for one in filters:
            if option == one or (option.startswith(one) and (one.startswith("--") or len(option) > len(one))):
                raise CastoreError(
                    f"the option {option} leaves something out of the dump, and a rollback replaces the "
                    "whole database: nothing was touched; remove the option, or use the engine command"
                )


def refuse_elsewhere(options: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Raise CastoreError if an option has the dump itself name the database that it is loaded into."""
    for option in options:
        if any(option == one or (one.startswith("--") and option.startswith(one)) for one in leading):
            raise CastoreError(
                f"with the option {option} the dump names its database itself and would go into the live "
                "database: nothing was touched; remove the option"
            )


def new_name(mark: str) -> str:
    """Return a name that nothing else has, for what a rollback creates: castore_MARK_0123456789ab."""
    return f"castore_{mark}_{os.urandom(6).hex()}"


def require_trailer(readinto: Readinto, promise: bytes, what: str, within: int = 4096) -> Readinto:
    """Return `readinto` with a check: at the end it raises ProgramError unless the dump has its trailer.

    promise: bytes that occur in the last `within` bytes of a complete dump.
    """
    tail = b""

    def read(view: memoryview) -> int:
        nonlocal tail
        count = readinto(view)
        if count:
            tail = (tail + bytes(view[max(0, count - within) : count]))[-within:]
        elif promise not in tail:
            raise ProgramError(f"{what} exited with 0, but its dump is incomplete: its end is missing")
        return count

    return read


def preceded(first: bytes | memoryview, readinto: Readinto) -> Readinto:
    """Return a function that reads the bytes `first` again, then those that `readinto` reads."""
    left = memoryview(first)

    def read(view: memoryview) -> int:
        nonlocal left
        if left:
            count = min(len(left), len(view))
            view[:count] = left[:count]
            left = left[count:]
            return count
        return readinto(view)

    return read
