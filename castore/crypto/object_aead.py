"""Boxes under the object key: configuration, sessions, footers, generation records."""

from __future__ import annotations

import os
from typing import Any, Final

from nacl._sodium import lib

from castore.crypto.sodium import NULL, allocate, pointer, taken
from castore.errors import DamageError

_NONCE: Final = 24
_TAG: Final = 16


def encrypt(key: Any, ad: bytes, plain: bytes) -> bytes:
    """Return nonce | XChaCha20-Poly1305 of `plain`. key: 32 bytes, or the buffer of a libsodium call.

    The nonce is random: at 192 bits, no two of any number of encrypted objects will share one.
    """
    nonce = os.urandom(_NONCE)
    sealed = allocate("unsigned char[]", len(plain) + _TAG)
    lib.crypto_aead_xchacha20poly1305_ietf_encrypt(
        sealed, NULL, pointer(plain), len(plain), pointer(ad), len(ad), NULL, nonce, key
    )
    return nonce + taken(sealed, len(plain) + _TAG)


def decrypt(key: Any, ad: bytes, sealed: bytes | memoryview) -> bytes | None:
    """Return the plaintext; None if key, associated data and ciphertext do not match."""
    length = len(sealed) - _NONCE - _TAG
    if length < 0:
        return None
    view = memoryview(sealed)
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
    """Encrypts and decrypts objects under one key; safe to share between threads."""

    OVERHEAD: Final = _NONCE + _TAG
    """Bytes that the sealed form is longer than its plaintext."""

    def __init__(self, key: bytes) -> None:
        if len(key) != 32:
            raise ValueError(f"an object key has 32 bytes, not {len(key)}")
        self._key = key

    def __repr__(self) -> str:
        return "ObjectSealer(...)"

    def seal(self, ad: bytes, plain: bytes) -> bytes:
        """Return the sealed form of `plain`, which opens only with the same associated data."""
        return encrypt(self._key, ad, plain)

    def open(self, ad: bytes, sealed: bytes | memoryview) -> bytes:
        """Return the plaintext of a sealed object.

        Raises DamageError, which does not name the object: the caller adds its name.
        """
        plain = self.attempt(ad, sealed)
        if plain is None:
            raise DamageError("it does not open with the store's key: it is damaged, cut off or foreign")
        return plain

    def attempt(self, ad: bytes, sealed: bytes | memoryview) -> bytes | None:
        """Return the plaintext of a sealed object; None if key or associated data are others."""
        return decrypt(self._key, ad, sealed)
