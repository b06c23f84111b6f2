"""Ed25519 signatures: they prove which admin or writer machine made an object."""

from __future__ import annotations

from typing import Any, Final

from nacl._sodium import lib

from castore.crypto.public_key import PUBLIC_BYTES, PublicKey
from castore.crypto.sodium import NULL, Secret, allocate, pointer, taken, wipe

SIGNATURE_BYTES: Final = 64


class SigningKey:
    """An Ed25519 secret key. It is wiped when it is deallocated."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != 32:
            raise ValueError(f"a signing key has 32 bytes, not {len(seed)}")
        public = allocate("unsigned char[]", PUBLIC_BYTES)
        secret: Any = allocate("unsigned char[]", 64)
        lib.crypto_sign_seed_keypair(public, secret, seed)
        self._secret = Secret(taken(secret, 64))
        wipe(secret)
        self.public = taken(public, PUBLIC_BYTES)

    def __repr__(self) -> str:
        return f"SigningKey(of {self.public.hex()})"

    def sign(self, message: bytes) -> bytes:
        """Return the signature of a message, which should be short: message and signature are copied."""
        signed = allocate("unsigned char[]", SIGNATURE_BYTES + len(message))
        lib.crypto_sign(signed, NULL, pointer(message), len(message), self._secret.pointer)
        return taken(signed, SIGNATURE_BYTES)


def is_signed_by(public: bytes, message: bytes, signature: bytes) -> bool:
    """Return whether a signature of a message was made with the secret key of this public key."""
    if len(public) != PUBLIC_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    signed = signature + message
    opened = allocate("unsigned char[]", len(signed))
    return not lib.crypto_sign_open(opened, NULL, pointer(signed), len(signed), public)


class Admin(PublicKey, frozen=True):
    """The public half of an admin key, which signs configurations."""

    kind = "an admin key"
    prefix = "castore-admin-"
    hint = "; 'castore key show' prints that of an identity"
