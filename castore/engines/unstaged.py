"""Engines whose dumps cannot be staged: a rollback loads the dump into the live service."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from castore.engines.base import Engine
from castore.engines.state import NoState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.engines.base import Contents
    from castore.engines.dump_stream import Bytes


class UnstagedEngine(Engine[NoState], frozen=True):
    """A dump that a rollback loads into the live service; it reverts by loading the dump taken before."""

    @abstractmethod
    def load(self, dump: Iterable[Bytes]) -> None:
        """Load a dump into the live service. Raises CastoreError."""

    def prepare(self) -> NoState:
        """Return a state without fields: nothing is created next to the live state."""
        return NoState()

    def stage(self, state: NoState, contents: Contents) -> list[str]:
        """Do nothing: the dump cannot be staged."""
        del state, contents
        return []

    def swap(self, state: NoState, contents: Contents) -> list[str]:
        """Load the dump to go back to."""
        del state
        self.load(contents.restore_dump())
        return []

    def revert(self, state: NoState, contents: Contents, *, swapped: bool) -> None:
        """Load the dump that was taken before the rollback."""
        del state
        if swapped:
            self.load(contents.previous_dump())
