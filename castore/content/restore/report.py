"""The report of a restore: what it could not do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from castore.errors import DamageError


class Report(msgspec.Struct):
    """What a restore could not do."""

    warnings: list[tuple[bytes, str]] = []
    """(path, reason) of files that lack some of their metadata, or that could not be created."""
    unmade: list[tuple[bytes, str]] = []
    """Those of the warnings that are about files that do not exist."""
    damaged: list[tuple[bytes, str]] = []
    """(path, reason) of files that are missing because the store is damaged."""

    def add(self, other: Report) -> None:
        """Add what is in another report."""
        self.warnings += other.warnings
        self.unmade += other.unmade
        self.damaged += other.damaged

    def warn(self, path: tuple[bytes, ...], reason: str) -> None:
        """Report a file that exists, but lacks some of its metadata."""
        self.warnings.append((b"/".join(path), reason))

    def not_made(self, path: tuple[bytes, ...], reason: str) -> None:
        """Report a file that could not be created."""
        self.unmade.append((b"/".join(path), reason))
        self.warn(path, reason)

    def damage(self, path: tuple[bytes, ...], error: DamageError) -> None:
        """Report a file that is missing because the store is damaged."""
        self.damaged.append((b"/".join(path) or b".", str(error)))
