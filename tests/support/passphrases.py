"""Identities that are locked with a passphrase at little cost."""

from __future__ import annotations

from castore.crypto import identity


def derive_keys_cheaply() -> None:
    """Let this process derive keys from passphrases in 1 ms and 8 KiB: the usual cost is a second and 256 MiB."""
    vars(identity).update(_OPERATIONS=1, _MEMORY_KIB=8)
