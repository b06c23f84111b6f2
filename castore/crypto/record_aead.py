"""Sealing of records: chunks and nodes, under keys of their session."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final

from blake3 import blake3
from nacl._sodium import lib

from castore.crypto.sodium import NULL, Secret, allocate, pointer, room, taken
from castore.errors import DamageError

_ASSOCIATED: Final = struct.Struct("<16s32sIBBxx")
_COUNTER: Final = 8
_DIGEST: Final = 16
"""Bytes of a nonce that depend on the sealed data; a sealed record begins with them."""
_LAST_OF_ID: Final = 1
"""Codecs up to this one (raw, zstd) seal the content that the record's id names; others seal deltas."""


class Cipher(IntEnum):
    """The cipher with which a session seals its records."""

    AEGIS_256 = 1
    XCHACHA20_POLY1305 = 2


def best_cipher() -> Cipher:
    """Return the faster cipher on this CPU.

    AEGIS uses the CPU's AES instructions; without them, libsodium's portable version is slow. A CPU has
    them exactly if libsodium offers AES-256-GCM, of which it has no portable version.
    """
    if lib.crypto_aead_aes256gcm_is_available():
        return Cipher.AEGIS_256
    return Cipher.XCHACHA20_POLY1305


def random_key() -> bytes:
    """Return 32 random bytes from the operating system."""
    return os.urandom(32)


class RecordSealer:
    """Seals and opens the records of one session and one kind; safe to share between threads.

    The caller must never seal two records under the same counter. A virtual machine that is resumed twice
    from one snapshot of its memory does so nevertheless. So a nonce is the counter and a keyed hash of the
    sealed data: only the same record gets the same nonce. The copy of the key is wiped with the sealer.
    """

    def __init__(self, cipher: Cipher, key: bytes, store_id: bytes) -> None:
        if len(key) != 32 or len(store_id) != 16:
            raise ValueError(f"32 and 16 bytes were expected, not {len(key)}, {len(store_id)}")
        self._key = Secret(key)
        self._store_id = store_id
        self._hasher = blake3(key=blake3(key, derive_key_context="castore 1 nonce").digest())
        if cipher == Cipher.AEGIS_256:
            self._encrypt = lib.crypto_aead_aegis256_encrypt
            self._decrypt = lib.crypto_aead_aegis256_decrypt
            self._nonce, tag = 32, 32
        else:
            self._encrypt = lib.crypto_aead_xchacha20poly1305_ietf_encrypt
            self._decrypt = lib.crypto_aead_xchacha20poly1305_ietf_decrypt
            self._nonce, tag = 24, 16
        self.overhead = _DIGEST + tag

    def __repr__(self) -> str:
        return "RecordSealer(...)"

    def seal(
        self,
        counter: int,
        record_id: bytes,
        plain_length: int,
        kind: int,
        codec: int,
        data: bytes | memoryview,
    ) -> bytes:
        """Return `data`, the plaintext encoded with `codec`, sealed; `overhead` bytes longer."""
        ad = _ASSOCIATED.pack(self._store_id, record_id, plain_length, kind, codec)
        length = len(data)
        hasher = self._hasher.copy()
        hasher.update(counter.to_bytes(_COUNTER, "little") + ad)
        # The id of any other record determines the data; hashing the data takes longer than sealing it.
        if codec > _LAST_OF_ID:
            hasher.update(data)
        digest = hasher.digest(_DIGEST)
        sealed = allocate("unsigned char[]", length + self.overhead)
        sealed[0:_DIGEST] = digest
        self._encrypt(
            sealed + _DIGEST,
            NULL,
            pointer(data),
            length,
            ad,
            len(ad),
            NULL,
            self._nonce_of(counter, digest),
            self._key.pointer,
        )
        return taken(sealed, length + self.overhead)

    def open(
        self,
        counter: int,
        record_id: bytes,
        plain_length: int,
        kind: int,
        codec: int,
        sealed: bytes | memoryview,
    ) -> bytes:
        """Return the data that was sealed. Raises DamageError if any argument differs from the sealing."""
        length = len(sealed) - self.overhead
        if length < 0:
            raise DamageError(f"a record of {len(sealed)} bytes is too short to be valid")
        ad = _ASSOCIATED.pack(self._store_id, record_id, plain_length, kind, codec)
        data = room(length)
        failed = self._decrypt(
            data,
            NULL,
            NULL,
            pointer(sealed) + _DIGEST,
            len(sealed) - _DIGEST,
            ad,
            len(ad),
            self._nonce_of(counter, bytes(sealed[:_DIGEST])),
            self._key.pointer,
        )
        if failed:
            raise DamageError("the record does not open: its bytes are not those that were sealed")
        return taken(data, length)

    def _nonce_of(self, counter: int, digest: bytes) -> bytes:
        return (counter.to_bytes(_COUNTER, "little") + digest).ljust(self._nonce, b"\0")
