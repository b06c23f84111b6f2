"""For tests of programs that use castore: a store that exists for a while."""

from __future__ import annotations

import contextlib
import os
import tempfile
from typing import TYPE_CHECKING

from castore.api.opening import create
from castore.crypto import Identity
from castore.state.paths import MachinePaths

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.api.store import Store


@contextlib.contextmanager
def temporary_store(identity: Identity | None = None) -> Iterator[Store]:
    """Give a new store in a temporary directory, with keys and caches there; delete it all at the end."""
    with tempfile.TemporaryDirectory(prefix="castore-testing-") as folder:
        paths = MachinePaths(os.path.join(folder, "state"), os.path.join(folder, "cache"))
        own = identity if identity is not None else Identity.generate()
        with create(os.path.join(folder, "store"), identity=own, paths=paths) as store:
            yield store
