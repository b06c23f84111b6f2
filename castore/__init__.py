"""castore: snapshots of service state that follow the configuration.

The public Python API, of which the command line is one client::

    import castore

    store = castore.open_store("/var/backups/castore", castore.MachinePaths(state, cache), identity)
    with store, store.lock("drupal"):
        sources = {"sites": castore.TreeSource("/var/lib/drupal/sites")}
        taken = castore.snapshot(store, "drupal", sources, revision="r1")
    store.generations("drupal")                               # newest first
    selection = castore.select(store, "drupal@r1:sites")
    castore.restore(store, selection, "/tmp/look", castore.Ownership(change=False), castore.Progress())
    castore.roll_back(store, selection.generation, origins, ...)

Errors are those of `castore.errors`. Names are imported when they are first used.
"""

from __future__ import annotations

from castore.version import __version__

# What is imported here delays every command: typing alone takes longer than all else in this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from castore.content.restore.metadata import Ownership
    from castore.crypto import Identity, Recipient
    from castore.maintenance.verify import verify
    from castore.model.generation import Generation, Part
    from castore.progress import Progress
    from castore.services.restore import restore
    from castore.services.rollback.execute import roll_back
    from castore.services.rollback.plan import plan_rollback, read_details
    from castore.services.selectors import select
    from castore.services.snapshot import (
        FileSource,
        ProgramSource,
        StreamSource,
        TreeSource,
        snapshot,
    )
    from castore.store import MachinePaths, Store

__all__ = [
    "FileSource",
    "Generation",
    "Identity",
    "MachinePaths",
    "Ownership",
    "Part",
    "ProgramSource",
    "Progress",
    "Recipient",
    "Store",
    "StreamSource",
    "TreeSource",
    "__version__",
    "open_store",
    "plan_rollback",
    "read_details",
    "restore",
    "roll_back",
    "select",
    "snapshot",
    "verify",
]

_WHERE = {
    "FileSource": "castore.services.snapshot",
    "Generation": "castore.model.generation",
    "Identity": "castore.crypto",
    "Ownership": "castore.content.restore.metadata",
    "Part": "castore.model.generation",
    "MachinePaths": "castore.store",
    "ProgramSource": "castore.services.snapshot",
    "Recipient": "castore.crypto",
    "Store": "castore.store",
    "StreamSource": "castore.services.snapshot",
    "Progress": "castore.progress",
    "TreeSource": "castore.services.snapshot",
    "plan_rollback": "castore.services.rollback.plan",
    "read_details": "castore.services.rollback.plan",
    "restore": "castore.services.restore",
    "roll_back": "castore.services.rollback.execute",
    "select": "castore.services.selectors",
    "snapshot": "castore.services.snapshot",
    "verify": "castore.maintenance.verify",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name not in _WHERE:
        raise AttributeError(f"module 'castore' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def open_store(
    path: str,
    places: MachinePaths,
    identity: Callable[[], Identity] | None = None,
    *,
    accept_older: bool = False,
) -> Store:
    """Open the store in the directory `path`.

    places: where this machine keeps keys, indexes and what it has seen of stores. identity: called once,
    when state is first read; without it what takes an identity raises IdentityError. accept_older: take
    a store that is older than this machine has seen it. Raises NotFoundError, StaleStoreError, FormatError.
    """
    from castore.storage import LocalStorage
    from castore.store import Store

    return Store.open(LocalStorage(path), places, identity, accept_older=accept_older)
