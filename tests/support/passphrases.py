"""Identities that are locked with a passphrase at little cost."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from castore.crypto import identity

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def cheap_key_derivation() -> Iterator[None]:
    """Derive keys from passphrases with few operations and little memory: the usual cost is a second and 256 MiB."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identity, "_OPERATIONS", 1)
        patch.setattr(identity, "_MEMORY_KIB", 8)
        yield
