"""castore: snapshots of service state that follow the configuration.

The public Python API, which the documentation describes with examples::

    import castore

    with castore.open("/var/backups/castore", identity="~/key") as store:
        drupal = store.service("drupal")
        parts = {"sites": castore.Tree("/srv/sites"), "db": castore.PostgreSQL("drupal")}
        taken = drupal.snapshot(parts, revision="r1")
        drupal.rollback(to="r1")

Names are imported at their first use. All errors are classes of `castore.errors`;
the ones that a program may want to handle also have names here.
"""

from __future__ import annotations

from castore.version import __version__

# Every import here delays every command: importing `typing` takes longer than the rest of this file.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from castore import errors, testing
    from castore.analysis.results import Analysis
    from castore.api.analysis import analyze
    from castore.api.generation import Generation, Part
    from castore.api.identity import Identity
    from castore.api.opening import create, open  # noqa: A004
    from castore.api.prune import PrunePlan, PruneReport
    from castore.api.rollback import RollbackPlan, RollbackResult
    from castore.api.selection import Entry, RestoreReport, Selection
    from castore.api.service import Service
    from castore.api.store import Store
    from castore.crypto import Recipient
    from castore.engines.command import Command
    from castore.engines.file import File
    from castore.engines.ldap import LDAP
    from castore.engines.mariadb.engine import MariaDB, MySQL
    from castore.engines.postgresql.engine import PostgreSQL
    from castore.engines.redis import Redis
    from castore.engines.sqlite import SQLite
    from castore.errors import (
        BusyError,
        CastoreError,
        ConfigError,
        DamageError,
        FormatError,
        IdentityError,
        NotFoundError,
        NotIntactError,
        ProgramError,
        StaleStoreError,
        StorageError,
        UntrustedError,
        UsageError,
    )
    from castore.maintenance.verify import Verification
    from castore.progress import Progress
    from castore.services.config import Keep as Retention
    from castore.services.sources import Stream, Tree
    from castore.state.paths import MachinePaths

__all__ = [
    "LDAP",
    "Analysis",
    "BusyError",
    "CastoreError",
    "Command",
    "ConfigError",
    "DamageError",
    "Entry",
    "File",
    "FormatError",
    "Generation",
    "Identity",
    "IdentityError",
    "MachinePaths",
    "MariaDB",
    "MySQL",
    "NotFoundError",
    "NotIntactError",
    "Part",
    "PostgreSQL",
    "ProgramError",
    "Progress",
    "PrunePlan",
    "PruneReport",
    "Recipient",
    "Redis",
    "RestoreReport",
    "Retention",
    "RollbackPlan",
    "RollbackResult",
    "SQLite",
    "Selection",
    "Service",
    "StaleStoreError",
    "StorageError",
    "Store",
    "Stream",
    "Tree",
    "UntrustedError",
    "UsageError",
    "Verification",
    "__version__",
    "analyze",
    "create",
    "errors",
    "open",
    "testing",
]

_WHERE = {
    "Analysis": "castore.analysis.results",
    "BusyError": "castore.errors",
    "CastoreError": "castore.errors",
    "Command": "castore.engines.command",
    "ConfigError": "castore.errors",
    "DamageError": "castore.errors",
    "Entry": "castore.api.selection",
    "File": "castore.engines.file",
    "FormatError": "castore.errors",
    "Generation": "castore.api.generation",
    "Identity": "castore.api.identity",
    "IdentityError": "castore.errors",
    "LDAP": "castore.engines.ldap",
    "MachinePaths": "castore.state.paths",
    "MariaDB": "castore.engines.mariadb.engine",
    "MySQL": "castore.engines.mariadb.engine",
    "NotFoundError": "castore.errors",
    "NotIntactError": "castore.errors",
    "Part": "castore.api.generation",
    "PostgreSQL": "castore.engines.postgresql.engine",
    "ProgramError": "castore.errors",
    "Progress": "castore.progress",
    "PrunePlan": "castore.api.prune",
    "PruneReport": "castore.api.prune",
    "Recipient": "castore.crypto",
    "Redis": "castore.engines.redis",
    "RestoreReport": "castore.api.selection",
    "RollbackPlan": "castore.api.rollback",
    "RollbackResult": "castore.api.rollback",
    "SQLite": "castore.engines.sqlite",
    "Selection": "castore.api.selection",
    "Service": "castore.api.service",
    "StaleStoreError": "castore.errors",
    "StorageError": "castore.errors",
    "Store": "castore.api.store",
    "Stream": "castore.services.sources",
    "Tree": "castore.services.sources",
    "UntrustedError": "castore.errors",
    "UsageError": "castore.errors",
    "Verification": "castore.maintenance.verify",
    "analyze": "castore.api.analysis",
    "create": "castore.api.opening",
    "open": "castore.api.opening",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in {"errors", "testing"}:
        return importlib.import_module(f"castore.{name}")
    if name == "Retention":
        found = importlib.import_module("castore.services.config").Keep
    elif name in _WHERE:
        found = getattr(importlib.import_module(_WHERE[name]), name)
    else:
        raise AttributeError(f"module 'castore' has no attribute {name!r}")
    globals()[name] = found
    return found
