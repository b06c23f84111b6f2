"""The content of an encrypted object: the public key of the signer, its signature, and the record.

The signature also covers what the object is bound to: the object's name, the store, the header. So no signed
record can be moved to another object.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from castore.crypto.key_derivation import derive
from castore.crypto.public_key import PUBLIC_BYTES
from castore.crypto.signing import SIGNATURE_BYTES, is_signed_by
from castore.errors import DamageError

if TYPE_CHECKING:
    from castore.crypto import SigningKey

_CONTEXT: Final = "castore 1 signed"
_LENGTH: Final = struct.Struct("<I")
ENVELOPE_BYTES: Final = PUBLIC_BYTES + SIGNATURE_BYTES
"""Bytes that an envelope adds to a record."""


def sign(signer: SigningKey, about: bytes, record: bytes) -> bytes:
    """Return the signer's public key, its signature and the record. about: what the record is bound to."""
    return signer.public + signer.sign(_message(about, record)) + record


def open_signed(about: bytes, envelope: bytes) -> tuple[bytes, bytes]:
    """Return the public key that signed a record, and the record.

    The caller decides whether that key may sign it. Raises DamageError, which does not name the object.
    """
    signer = envelope[:PUBLIC_BYTES]
    signature, record = envelope[PUBLIC_BYTES:ENVELOPE_BYTES], envelope[ENVELOPE_BYTES:]
    if not is_signed_by(signer, _message(about, record), signature):
        raise DamageError("its signature is not valid")
    return signer, record


def _message(about: bytes, record: bytes) -> bytes:
    return derive(_CONTEXT, _LENGTH.pack(len(about)) + about + record)
