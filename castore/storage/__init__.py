"""Where a store's objects live. One contract, one test suite, one file a backend."""

from __future__ import annotations

from castore.storage.base import Storage, Writer
from castore.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "Writer"]
