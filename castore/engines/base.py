"""The contract of an engine: what it dumps, and how a rollback replaces the live state by a dump."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple, TypeVar

import msgspec

from castore.engines.state import EngineState, NoState
from castore.errors import CastoreError
from castore.process.users import account_of

if TYPE_CHECKING:
    import pwd
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from castore.engines.dump_stream import Bytes, DumpStream

State = TypeVar("State", bound=EngineState)
"""What an engine remembers of a rollback: `EngineState`, or a struct of its own that inherits from it."""


class Contents(NamedTuple):
    """The dumps that a rollback has for a part; each may be read several times."""

    restore_dump: Callable[[], Iterable[Bytes]]
    """The dump to go back to."""
    previous_dump: Callable[[], Iterable[Bytes]]
    """The dump of the state that is replaced. Raises CastoreError where none was taken."""


class Engine(
    msgspec.Struct,
    Generic[State],
    frozen=True,
    forbid_unknown_fields=True,
    rename="kebab",
    kw_only=True,
):
    """One part of a service, as castore.toml describes it. Its fields are the keys of castore.toml.

    `castore config check` calls `check`. A snapshot reads `dump`. A rollback calls these methods, in this
    order:

    0. `refusal`: if it returns a reason, the rollback is refused, and no other method is called.
    1. `preflight`, then `prepare`: check, and choose names. They create nothing. `castore guard` calls
       `preflight` without `refusal`, before it runs a deployment.
    2. `stage`: create the state to return to next to the live state, while the service runs.
    3. `swap`, or `remove`: replace the live state, while the service is stopped. It raises if the staged
       state no longer exists.
    4. `cleanup`: delete the replaced state. If anything fails before, `revert` instead.

    `prepare` returns a state, which all later calls get. It is stored in a journal before `stage` is called,
    and again before `swap` is called. So `stage` may note in it what it created. `revert` and `cleanup` may
    be called again after a kill, in another process, however far an earlier call got, with the state as it
    was stored last. They then do what remains to be done.
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
    """Endings of the files that are stored next to the paths of a state and belong to them."""
    state_type: ClassVar[type[EngineState]] = NoState
    """The class of the states that `prepare` returns: a journal is decoded with it."""

    @property
    def account(self) -> pwd.struct_passwd | None:
        """The user that programs run as; None: castore's own. Raises ConfigError if there is no such user."""
        return account_of(self.run_as)

    def file_path(self) -> str | None:
        """Return the path of the file that the part consists of, as configured; None if it is not a file."""
        return None

    def label(self) -> str:
        """Return what the engine dumps, for people, such as a path or the name of a database."""
        return self.file_path() or ""

    def expand(self, name: str) -> dict[str, tuple[str, Engine[Any]]]:
        """Return the parts that the part `name` represents at this time, each with its engine's name.

        Returns {} if it represents only itself.
        """
        del name
        return {}

    def recorded(self, name: str, settings: dict[str, dict[str, Any]]) -> dict[str, tuple[str, Engine[Any]]]:
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
    def dump(self) -> AbstractContextManager[DumpStream]:
        """Return a context with a stream of the dump. Raises ProgramError if the dump fails."""

    def stable_dump(self, secret: str) -> AbstractContextManager[DumpStream]:
        """Return the same as `dump`, for engines whose program puts a random word into each dump.

        secret: replaces the random word, so that equal states give equal dumps; always the same for one part.
        """
        del secret
        return self.dump()

    def when_stopped(self, state: State) -> Engine[Any]:
        """Return the engine that dumps this part while its service is stopped."""
        del state
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

    @abstractmethod
    def prepare(self) -> State:
        """Return what the later steps need. Nothing is created yet. Raises CastoreError."""

    @abstractmethod
    def stage(self, state: State, contents: Contents) -> list[str]:
        """Create the state to return to, next to the live one, which stays in use. Raises CastoreError.

        Return remarks for people, such as what was created with it.
        """

    @abstractmethod
    def swap(self, state: State, contents: Contents) -> list[str]:
        """Replace the live state by the staged one, and keep the replaced state. Raises CastoreError.

        Return remarks for people, as `stage`.
        """

    def remove(self, state: State) -> None:
        """Move the live state away without a replacement, and keep it; called instead of `swap`.

        This is for engines whose `exists` may return False: a rollback may return to a time when the state
        did not exist. Raises CastoreError.
        """
        del state
        raise CastoreError(
            f"{self.label() or 'the live state'} did not exist in that generation, and this engine cannot "
            "remove it: remove it by hand"
        )

    @abstractmethod
    def revert(self, state: State, contents: Contents, *, swapped: bool) -> None:
        """Restore the live state, and remove what was staged. Raises CastoreError.

        swapped: `swap` or `remove` was called, however far it got.
        """

    def cleanup(self, state: State) -> None:
        """Remove the replaced state. Raises CastoreError."""

    @contextlib.contextmanager
    def drill(self, folder: str, contents: Contents) -> Iterator[tuple[str, dict[str, str]] | None]:
        """Restore the dump into a scratch directory below `folder`, check it, and yield a summary.

        With the summary come variables for the environment of a check: they say how to reach the restored
        state while the block lasts. Yields None if this engine has no drill; the dump is then kept as a
        file. Raises CastoreError if the dump is damaged.
        """
        del folder, contents
        yield None


def settings_of(engine: Engine[Any]) -> dict[str, Any]:
    """Return an engine's fields as plain values, as castore.toml has them."""
    settings: dict[str, Any] = msgspec.to_builtins(engine)
    return settings
