"""castore: snapshots of service state that follow the configuration.

The public Python API, which the documentation describes with examples::

    import castore

    with castore.open("/var/backups/castore", identity="~/key") as store:
        drupal = store.service("drupal")
        parts = {"sites": castore.Tree("/srv/sites"), "db": castore.PostgreSQL("drupal")}
        taken = drupal.snapshot(parts, revision="r1")
        drupal.rollback(to="r1")

Names are imported at their first use. All errors are classes of `castore.errors`.
"""

from __future__ import annotations

from castore.version import __version__

# Every import here delays every command: importing `typing` takes longer than the rest of this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from castore.api import (
        Generation,
        Identity,
        Part,
        PruneReport,
        RestoreReport,
        RollbackResult,
        Service,
        Store,
        create,
        open,  # noqa: A004
    )
    from castore.crypto import Recipient
    from castore.engines.command import Command
    from castore.engines.file import File
    from castore.engines.ldap import LDAP
    from castore.engines.mariadb.engine import MariaDB, MySQL
    from castore.engines.postgresql.engine import PostgreSQL
    from castore.engines.redis import Redis
    from castore.engines.sqlite import SQLite
    from castore.maintenance.verify import Verification
    from castore.progress import Progress
    from castore.services.config import Keep as Retention
    from castore.services.rollback.plan import RollbackPlan
    from castore.services.snapshot import Stream, Tree
    from castore.state.paths import MachinePaths

__all__ = [
    "LDAP",
    "Command",
    "File",
    "Generation",
    "Identity",
    "MachinePaths",
    "MariaDB",
    "MySQL",
    "Part",
    "PostgreSQL",
    "Progress",
    "PruneReport",
    "Recipient",
    "Redis",
    "RestoreReport",
    "Retention",
    "RollbackPlan",
    "RollbackResult",
    "SQLite",
    "Service",
    "Store",
    "Stream",
    "Tree",
    "Verification",
    "__version__",
    "create",
    "open",
]

_WHERE = {
    "Command": "castore.engines.command",
    "File": "castore.engines.file",
    "LDAP": "castore.engines.ldap",
    "MachinePaths": "castore.state.paths",
    "MariaDB": "castore.engines.mariadb.engine",
    "MySQL": "castore.engines.mariadb.engine",
    "PostgreSQL": "castore.engines.postgresql.engine",
    "Progress": "castore.progress",
    "Recipient": "castore.crypto",
    "Redis": "castore.engines.redis",
    "RollbackPlan": "castore.services.rollback.plan",
    "SQLite": "castore.engines.sqlite",
    "Stream": "castore.services.snapshot",
    "Tree": "castore.services.snapshot",
    "Verification": "castore.maintenance.verify",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "testing":
        return importlib.import_module("castore.testing")
    if name not in __all__:
        raise AttributeError(f"module 'castore' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE.get(name, "castore.api")), name)
    globals()[name] = found
    return found
