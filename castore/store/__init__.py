"""Sessions, packs and the index: put a chunk, get a chunk, commit a generation.

`castore/docs/format.md` describes the stored format. This layer writes and reads it through
`castore.storage`, with the keys of `castore.crypto`, and keeps an index of it on this machine. It knows
chunks, nodes and generation records, and nothing about the content that they make up.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castore.state.paths import MachinePaths
from castore.storage import open_storage
from castore.store.options import NewStore, StoreOptions
from castore.store.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.crypto import Identity
    from castore.store.write.delta_encoder import NewChunk
    from castore.store.write.session import SealedRecord, Session

__all__ = [
    "MachinePaths",
    "NewChunk",
    "NewStore",
    "SealedRecord",
    "Session",
    "Store",
    "StoreOptions",
    "open_store",
]


def open_store(
    address: str,
    paths: MachinePaths,
    identity: Callable[[], Identity] | None = None,
    *,
    accept_older: bool = False,
) -> Store:
    """Open the store at an address, as `Store.open` does."""
    return Store.open(open_storage(address), paths, identity, StoreOptions(accept_older=accept_older))


def __getattr__(name: str) -> Any:
    # A command that only lists a store does not pay for the modules that adding needs.
    if name == "NewChunk":
        from castore.store.write.delta_encoder import NewChunk  # noqa: PLC0415

        return NewChunk
    if name in {"SealedRecord", "Session"}:
        from castore.store.write import session  # noqa: PLC0415

        return getattr(session, name)
    raise AttributeError(f"module 'castore.store' has no attribute {name!r}")
