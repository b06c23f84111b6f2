"""The operations on services for the commands guard and follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.cli.messages import is_quiet, report

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.cli.progress import ProgressDisplay
    from castore.services.operations import ServiceOperations


def operations_of(store: Store, progress: ProgressDisplay) -> ServiceOperations:
    """Return the operations on services, which report on the terminal."""
    from castore.cli.progress import progress_paused

    made = store.operations(progress)
    made.note = lambda line: None if is_quiet() else report(line)
    made.progress_paused = progress_paused
    return made
