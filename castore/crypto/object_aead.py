"""Boxes under the object key: configuration, sessions, footers, generation records."""

from __future__ import annotations

import os
from typing import Any, Final

from nacl._sodium import lib

from castore.crypto.sodium import NULL, allocate, pointer, taken
from castore.errors import DamageError

_NONCE: Final = 24
_TAG: Final = 16


def seal_box(key: Any, ad: bytes, plain: bytes) -> bytes:
    """Return nonce | XChaCha20-Poly1305 of `plain`. key: 32 bytes, or the buffer of a libsodium call.

    The nonce is random: at 192 bits, no two of any number of boxes will share one.
    """
    nonce = os.urandom(_NONCE)
    sealed = allocate("unsigned char[]", len(plain) + _TAG)
    lib.crypto_aead_xchacha20poly1305_ietf_encrypt(
        sealed, NULL, pointer(plain), len(plain), pointer(ad), len(ad), NULL, nonce, key
    )
    return nonce + taken(sealed, len(plain) + _TAG)


def open_box(key: Any, ad: bytes, box: bytes | memoryview) -> bytes | None:
    """Return the plaintext of a box, or None if key, associated data and box do not match."""
    length = len(box) - _NONCE - _TAG
    if length < 0:
        return None
    view = memoryview(box)
    plain = allocate("unsigned char[]", length or 1)
    failed = lib.crypto_aead_xchacha20poly1305_ietf_decrypt(
        plain,
        NULL,
        NULL,
        pointer(view[_NONCE:]),
        length + _TAG,
        pointer(ad),
        len(ad),
        bytes(view[:_NONCE]),
        key,
    )
    return None if failed else taken(plain, length)


class ObjectSealer:
    """Seals and opens boxes under one key; safe to share between threads."""

    OVERHEAD: Final = _NONCE + _TAG
    """Bytes that a box is longer than its plaintext."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"an object key has 32 bytes, not {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return "ObjectSealer(...)"

    def seal(self, ad: bytes, plain: bytes) -> bytes:
        """Return the box of `plain`, which opens only with the same associated data."""
        return seal_box(self._key, ad, plain)

    def open(self, ad: bytes, box: bytes | memoryview) -> bytes:
        """Return the plaintext of a box.

        Raises DamageError, which does not name the object: the caller adds its name.
        """
        plain = self.attempt(ad, box)
        if plain is None:
            raise DamageError("it does not open with the store's key: it is damaged, cut off or foreign")
        return plain

    def attempt(self, ad: bytes, box: bytes | memoryview) -> bytes | None:
        """Return the plaintext of a box; None if it was not sealed with this key and associated data."""
        return open_box(self._key, ad, box)
