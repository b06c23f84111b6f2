"""What a restore could not do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from castore.errors import DamageError


@dataclass
class Report:
    """What a restore could not do."""

    warnings: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of what is there, but not with all its metadata, or was not allowed."""
    unmade: list[tuple[bytes, str]] = field(default_factory=list)
    """Those of the warnings that are of what is not there."""
    damaged: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, reason) of what is missing, because the store is damaged there."""

    def warn(self, path: tuple[bytes, ...], reason: str) -> None:
        """Report what is there, but not with all its metadata."""
        self.warnings.append((b"/".join(path), reason))

    def not_made(self, path: tuple[bytes, ...], reason: str) -> None:
        """Report what could not be made."""
        self.unmade.append((b"/".join(path), reason))
        self.warn(path, reason)

    def damage(self, path: tuple[bytes, ...], error: DamageError) -> None:
        """Report what is missing because the store is damaged there."""
        self.damaged.append((b"/".join(path) or b".", str(error)))
