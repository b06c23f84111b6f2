"""Sessions, packs and the index: put a chunk, get a chunk, commit a generation.

What lies in a store is said in `castore/FORMAT.md`; this layer writes and reads it through
`castore.storage`, with the keys of `castore.sealing`, and keeps an index of it on this machine. It
knows chunks, nodes and generation records, and nothing of what content they make up.
"""

from __future__ import annotations

from castore.store.places import Places
from castore.store.session import Sealed, Session
from castore.store.store import Store

__all__ = ["Places", "Sealed", "Session", "Store"]
