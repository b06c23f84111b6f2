"""The operations on services for the commands guard and follow."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.cli.context import report
from castore.cli.quiet import is_quiet

if TYPE_CHECKING:
    from castore.api.store import Store
    from castore.cli.progress import Watch
    from castore.services.operations import ServiceOperations


def operations_of(store: Store, progress: Watch) -> ServiceOperations:
    """Return the operations on services, which report on the terminal."""
    from castore.cli.progress import hushed

    made = store.operations(progress)
    made.note = lambda line: None if is_quiet() else report(line)
    made.hushed = hushed
    return made
