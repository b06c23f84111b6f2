"""What a rollback is asked to do, and what it uses of castore.toml and of this machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.progress import unwatched
from castore.services.config import Service
from castore.services.ownership import stored_ownership

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.content.restore.metadata import Ownership
    from castore.model.generation import Generation, Origin
    from castore.progress import Watch

RESTORING: Final = "restoring"
"""The name that progress shows for work that concerns all parts."""
_NO_SERVICE: Final = Service()


class RollbackRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A rollback of a service, with the answers to all questions that it has."""

    target: Generation
    origins: dict[str, Origin]
    """Where the parts of the target belong on this machine."""
    ownership: Ownership = msgspec.field(default_factory=stored_ownership)
    take_pre_rollback: bool = True
    """Whether a pre-rollback generation is taken first."""
    trust_times: bool = False
    """Whether, without a pre-rollback generation, files are compared by size and time only."""
    range_writes: bool = True
    """Whether ranges of large live files may be overwritten."""


class RollbackContext(msgspec.Struct, frozen=True, kw_only=True):
    """The service's settings, the directories that are castore's own, and where messages go."""

    service: Service = _NO_SERVICE
    """The service in castore.toml, with its hooks."""
    revision: str = ""
    """The revision of the present state, which is recorded with the pre-rollback generation."""
    leave_out: Sequence[str] = ()
    """Directories that are never changed, and not part of trees."""
    watch: Watch = unwatched
    """Called at the start of each part of the pre-rollback generation."""
    say: Callable[[str], None] = lambda _text: None
    """Report what the user should know."""
