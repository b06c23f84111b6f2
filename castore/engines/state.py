"""What an engine remembers of a rollback of its part, from `prepare` to `cleanup` or `revert`.

The state is stored in the journal of the rollback on this machine, so that another process can continue after
a kill. Fields are plain values that msgspec converts: texts, numbers, bytes, lists, other structs.
"""

from __future__ import annotations

import os

import msgspec


class EngineState(msgspec.Struct, kw_only=True):
    """What every engine's state has. `stage` and `swap` may change its fields."""

    @property
    def live_paths(self) -> list[str]:
        """Absolute paths of the part on this machine: the trees that contain them leave them alone."""
        return []

    @property
    def created_paths(self) -> list[str]:
        """Absolute paths that the rollback creates: trees leave them alone, too."""
        return []

    @property
    def created(self) -> list[str]:
        """What the rollback creates, for people: paths, or names of databases."""
        return self.created_paths


class NoState(EngineState):
    """The state of an engine that remembers nothing."""


class PathSwap(EngineState, kw_only=True):
    """A file or directory that is replaced by renaming."""

    live: str
    existed: bool
    """Whether `live` existed before the rollback."""
    new: str
    """The path of the staged state."""
    old: str
    """The path that the replaced state is moved to."""

    @property
    def live_paths(self) -> list[str]:
        """The live path."""
        return [self.live]

    @property
    def created_paths(self) -> list[str]:
        """The staged and the replaced path."""
        return [self.new, self.old]


class FileSwap(PathSwap, kw_only=True):
    """A file that is replaced by renaming."""

    inode: tuple[int, int] | None = None
    """Device and inode number of the staged file, once it was created."""


class DatabaseSwap(EngineState, kw_only=True):
    """A database of a server that is replaced by renaming."""

    live: str
    existed: bool
    """Whether `live` existed before the rollback."""
    new: str
    """The database that the dump is loaded into."""
    old: str
    """The name of the replaced database."""

    @property
    def created(self) -> list[str]:
        """The names of the staged and the replaced database."""
        return [self.new, self.old]


def new_name(mark: str) -> str:
    """Return a name that nothing else has, for what a rollback creates: castore_MARK_0123456789ab."""
    return f"castore_{mark}_{os.urandom(6).hex()}"
