"""What an engine does."""

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
"""What an engine has to know of a roll-back that another process may have begun."""

Inventory = dict[str, str]
"""What a database holds: by "KIND NAME" a fingerprint of a definition; by "rows of NAME" a number."""

INVENTORY: Final = "inventory"
"""The key under which the first line of a dump holds the inventory of the database, where it has one."""

_INTRODUCTION: Final = b"-- castore: "
_MOST_NAMED: Final = 8
"""Of objects that differ, in a message."""
_MOST_INTRODUCED: Final = 1 << 24

SWITCHING: Final = "switching"
"""Is in a memo from the moment on when `switch` is going to be called."""


class Contents(NamedTuple):
    """What a roll-back has for a part; each may be read several times."""

    target: Callable[[], Iterable[Bytes]]
    """The dump to go back to."""
    before: Callable[[], Iterable[Bytes]]
    """The dump of the state that is replaced. Raises CastoreError where none was taken."""


class Engine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", kw_only=True):
    """One part of a service, as castore.toml describes it. Fields are its keys.

    A roll-back calls `begin`, `stage`, `switch`, and then `finish`, or, if anything fails, `undo`. What
    `begin` returns is durable before `stage` is called. `switch` is called once, and raises if what was
    staged is not there any more. `undo` and `finish` may be called again after a crash, in another process,
    however far an earlier call got; they then do what is left.

    What `stage` and `switch` leave under `made` in a memo is reported, a line each.

    What a memo holds under `path` or `live`, `new` and `old` is, where it is an absolute path, what a tree
    around it leaves alone.
    """

    timeout: float | None = None
    """Seconds that a program may take."""
    run_as: str | None = None
    """The user that programs which dump and restore are run as; None: castore's own."""

    runs_programs: ClassVar[bool] = False
    """Whether it runs programs, as `account`."""
    paths: ClassVar[tuple[str, ...]] = ()
    """Fields that are paths."""
    programs: ClassVar[tuple[str, ...]] = ()
    """Fields that are argument lists."""
    beside: ClassVar[tuple[str, ...]] = ()
    """Endings of files that lie beside the paths of a memo, and belong to them."""

    @property
    def account(self) -> pwd.struct_passwd | None:
        """The user that programs are run as; None: castore's own. Raises ConfigError."""
        return account_of(self.run_as)

    def expand(self, name: str) -> dict[str, tuple[str, Engine]]:
        """Return the parts that the part `name` stands for, now, each with its engine's name; {}: itself."""
        del name
        return {}

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine]]:
        """Return the parts that the part `name` represents in a generation; {}: itself.

        settings: of each part of the generation, as recorded. Nothing is asked of a server.
        """
        del name, settings
        return {}

    def there(self) -> bool:
        """Whether there is anything that could be dumped, as far as that is known without trying."""
        return True

    def check(self) -> None:
        """Raise CastoreError where this part could not be dumped now."""

    def version(self) -> str:
        """Return what makes the dump, with its version; empty where that does not matter."""
        return ""

    def warn(self, version: str) -> str:
        """Return what speaks against restoring here what `version` dumped; empty: nothing."""
        del version
        return ""

    @abstractmethod
    def dump(self) -> AbstractContextManager[Readinto]:
        """Give a function that reads the dump, as castore.process.runners.run_dump does.

        It may be a `DumpWithPreamble`, which has warnings. Raises ProgramError where the dump failed or is
        not complete.
        """

    def stable_dump(self, secret: str) -> AbstractContextManager[Readinto]:
        """Give what `dump` gives, for engines whose program puts a random word into each dump.

        secret: what to use instead, so that equal states give equal dumps: the same for this part each time.
        """
        del secret
        return self.dump()

    def stopped(self, memo: Memo) -> Engine:
        """Return what dumps this part where its service has been stopped; memo: of `begin`."""
        del memo
        return self

    def refusal(self) -> str:
        """Return why this part cannot be put back; empty if it can."""
        return ""

    def ready(self) -> None:
        """Raise CastoreError where what a roll-back needs is not there: a program, a server."""

    def creates(self, contents: Callable[[], Iterable[Bytes]]) -> list[str]:
        """Return what a rollback to a dump would create first, for messages. contents: gives the dump."""
        del contents
        return []

    def begin(self) -> Memo:
        """Return what `switch`, `undo` and `finish` will need. Nothing is made yet."""
        return {}

    @abstractmethod
    def stage(self, memo: Memo, contents: Contents) -> None:
        """Make the state to go back to, beside the live one, which goes on. Raises CastoreError."""

    @abstractmethod
    def switch(self, memo: Memo, contents: Contents) -> None:
        """Let the staged state take the place of the live one, which is kept. Raises CastoreError."""

    def remove(self, memo: Memo) -> None:
        """Let there be nothing in the place of the live state, which is kept; called instead of `switch`.

        For engines whose `there` may say no: a state that was not there may be gone back to. Raises
        CastoreError.
        """
        what = memo.get("live", "what is there now")
        raise CastoreError(f"{what} was not there before, and is to be removed by hand")

    @abstractmethod
    def undo(self, memo: Memo, contents: Contents) -> None:
        """Put the live state back, and remove what was staged. Raises CastoreError."""

    def finish(self, memo: Memo) -> None:
        """Remove what was replaced. Raises CastoreError."""

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Restore the dump into a scratch place below `folder`, check it, and give what is told of it.

        With it goes how to get at it while the block lasts: keys and values for the environment of a check.
        None: this engine cannot; the dump is kept as a file. Raises CastoreError if it is not sound.
        """
        del folder, contents
        yield None


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """Where a password is: exactly one of these. It is never in an argument list, nor in a log."""

    file: str | None = None
    env: str | None = None
    """An environment variable."""
    command: tuple[str, ...] | None = None
    """A program that prints it."""
    credential: str | None = None
    """The name of a systemd credential (LoadCredential=)."""

    def __post_init__(self) -> None:
        given = [self.file, self.env, self.command, self.credential]
        if sum(one is not None for one in given) != 1:
            raise ValueError("exactly one of file, env, command and credential was expected")

    def get(self, account: pwd.struct_passwd | None = None) -> str:
        """Return it. Raises ConfigError, ProgramError.

        account: the user that it is for, who may own its file, too; None: castore's own.
        """
        if self.command is not None:
            return os.fsdecode(output_of(self.command)).rstrip("\n")
        if self.env is not None:
            if self.env not in os.environ:
                raise ConfigError(f"the environment variable {self.env}, for a password, is not set")
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

    what: what the file holds. account: a user who may own it besides root and castore's own; None: no
    other. Raises ConfigError.
    """
    try:
        return read_trusted(path, also=[] if account is None else [account.pw_uid])
    except UntrustedPathError as error:
        raise ConfigError(f"cannot read the {what} in {path}: {error}") from error
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"cannot read the {what} in {path}: {reason}") from error


class DumpWithPreamble:
    """What reads a dump: a line of castore's own first, which the program that takes it in passes over.

    warnings: (name, reason) of what of the state is not in the dump, or could not be taken in again. They
    are whole when the dump has been read to its end.
    """

    def __init__(self, readinto: Readinto, introduction: dict[str, Any]) -> None:
        self.warnings: list[tuple[bytes, str]] = []
        self._readinto = readinto
        # In ASCII, so that it holds no end of a line.
        text = json.dumps(introduction, sort_keys=True)
        self._first = memoryview(_INTRODUCTION + text.encode("ascii") + b"\n")

    def __call__(self, view: memoryview) -> int:
        """Fill the beginning of a buffer; return how many bytes that were, 0 at the end."""
        if self._first:
            count = min(len(self._first), len(view))
            view[:count] = self._first[:count]
            self._first = self._first[count:]
            return count
        return self._readinto(view)


def read_preamble(chunks: Iterable[Bytes]) -> dict[str, Any]:
    """Return what the first line of a dump records; {}: it was taken by a castore that wrote none.

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
        # JSON may hold lone surrogates, which no program can be given.
        json.dumps(found, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise CastoreError("the first line of the dump, which castore wrote, is damaged")
    return found


def differences(expected: Inventory, found: Inventory) -> list[str]:
    """Return what of `found` is not as expected, each as "the view a.b is missing"."""
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
    """Raise CastoreError where a staged database is not what was recorded when its dump was taken.

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
    """Raise CastoreError where options of a dump program leave out what a roll-back would not bring back."""
    for option in options:
        for one in filters:
            if option == one or (option.startswith(one) and (one.startswith("--") or len(option) > len(one))):
                raise CastoreError(
                    f"the option {option} leaves something out of the dump, and a roll-back exchanges the "
                    "whole database: nothing was touched; the engine command leaves that to a program"
                )


def refuse_elsewhere(options: tuple[str, ...], leading: tuple[str, ...]) -> None:
    """Raise CastoreError where options let a dump say itself which database it goes into: the live one."""
    for option in options:
        if any(option == one or (one.startswith("--") and option.startswith(one)) for one in leading):
            raise CastoreError(
                f"with the option {option} the dump says itself where it goes: into the live database; "
                "nothing was touched"
            )


def new_name(mark: str) -> str:
    """Return a name for what a roll-back makes, which nobody else has: castore_MARK_0123456789ab."""
    return f"castore_{mark}_{os.urandom(6).hex()}"


def require_trailer(readinto: Readinto, promise: bytes, what: str, within: int = 4096) -> Readinto:
    """Return `readinto`, but with an error at the end of a dump that does not end as promised.

    promise: what is in its last `within` bytes if it is whole.
    """
    tail = b""

    def read(view: memoryview) -> int:
        nonlocal tail
        count = readinto(view)
        if count:
            tail = (tail + bytes(view[max(0, count - within) : count]))[-within:]
        elif promise not in tail:
            raise ProgramError(f"{what} exited with 0, but its dump is not whole: its end is missing")
        return count

    return read
