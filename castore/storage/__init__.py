"""Where a store's objects are kept: one contract, one test suite, one file per backend."""

from __future__ import annotations

from castore.storage.address import import_backend, is_url, normalized_url, open_storage
from castore.storage.base import Storage, Writer
from castore.storage.local import LocalStorage

__all__ = ["LocalStorage", "Storage", "Writer", "import_backend", "is_url", "normalized_url", "open_storage"]
