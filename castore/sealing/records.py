"""Records: chunks and nodes, each sealed under the key of its session."""

from __future__ import annotations

import os
import struct
from enum import IntEnum
from typing import Final

from nacl._sodium import lib

from castore.errors import DamageError
from castore.sealing.sodium import NULL, Secret, allocate, pointer, room, taken

_ASSOCIATED: Final = struct.Struct("<16s32s32sIBBxx")


class Cipher(IntEnum):
    """What a session seals its records with."""

    AEGIS_256 = 1
    XCHACHA20_POLY1305 = 2


def best_cipher() -> Cipher:
    """Return the faster cipher on this CPU.

    AEGIS runs on AES instructions; in their absence libsodium's portable version is slow. They are
    there exactly where libsodium offers AES-256-GCM, which it has no portable version of.
    """
    if lib.crypto_aead_aes256gcm_is_available():
        return Cipher.AEGIS_256
    return Cipher.XCHACHA20_POLY1305


def random_key() -> bytes:
    """Return 32 bytes that nobody can guess."""
    return os.urandom(32)


class RecordSealer:
    """Seals and opens the records of one session and one kind; safe to share between threads.

    The caller never seals two records under the same counter: the counter is the nonce. Its copy of the
    key is wiped when it goes.
    """

    def __init__(self, cipher: Cipher, key: bytes, store_id: bytes) -> None:
        if len(key) != 32 or len(store_id) != 16:
            raise ValueError(f"32 and 16 bytes were expected, not {len(key)}, {len(store_id)}")
        self._key = Secret(key)
        self._store_id = store_id
        if cipher == Cipher.AEGIS_256:
            self._encrypt = lib.crypto_aead_aegis256_encrypt
            self._decrypt = lib.crypto_aead_aegis256_decrypt
            self._nonce, self.overhead = 32, 32
        else:
            self._encrypt = lib.crypto_aead_xchacha20poly1305_ietf_encrypt
            self._decrypt = lib.crypto_aead_xchacha20poly1305_ietf_decrypt
            self._nonce, self.overhead = 24, 16

    def __repr__(self) -> str:
        return "RecordSealer(...)"

    def seal(
        self,
        counter: int,
        record_id: bytes,
        base_id: bytes,
        plain_length: int,
        kind: int,
        codec: int,
        data: bytes | memoryview,
    ) -> bytes:
        """Return `data`, the plaintext as `codec` says, sealed; `overhead` bytes longer.

        base_id: 32 zeros where there is none.
        """
        ad = _ASSOCIATED.pack(self._store_id, record_id, base_id, plain_length, kind, codec)
        length = len(data)
        sealed = allocate("unsigned char[]", length + self.overhead)
        self._encrypt(
            sealed,
            NULL,
            pointer(data),
            length,
            ad,
            len(ad),
            NULL,
            counter.to_bytes(self._nonce, "little"),
            self._key.pointer,
        )
        return taken(sealed, length + self.overhead)

    def open(
        self,
        counter: int,
        record_id: bytes,
        base_id: bytes,
        plain_length: int,
        kind: int,
        codec: int,
        sealed: bytes | memoryview,
    ) -> bytes:
        """Return what was sealed. Raises DamageError if any of the arguments is not as it was."""
        length = len(sealed) - self.overhead
        if length < 0:
            raise DamageError(f"a record of {len(sealed)} bytes is too short to be one")
        ad = _ASSOCIATED.pack(self._store_id, record_id, base_id, plain_length, kind, codec)
        data = room(length)
        failed = self._decrypt(
            data,
            NULL,
            NULL,
            pointer(sealed),
            len(sealed),
            ad,
            len(ad),
            counter.to_bytes(self._nonce, "little"),
            self._key.pointer,
        )
        if failed:
            raise DamageError("the record does not open: its bytes are not those that were sealed")
        return taken(data, length)
