"""Keys, sealing and signing: the only package that calls libsodium.

`castore/docs/format.md`, sections 1 to 3, specifies the bytes. There is one type per role: a Recipient can
only seal, an Identity opens what was sealed to its recipient, a WriterKey derives the keys that a machine
needs to add. None of them does I/O.
"""

from __future__ import annotations

from castore.crypto.identity import Identity, Recipient
from castore.crypto.object_aead import ObjectSealer
from castore.crypto.record_aead import Cipher, RecordSealer, best_cipher, random_key
from castore.crypto.signing import Admin, SigningKey
from castore.crypto.writer_key import KeyHistory, MachineKey, Signers, WriterKey

__all__ = [
    "Admin",
    "Cipher",
    "Identity",
    "KeyHistory",
    "MachineKey",
    "ObjectSealer",
    "Recipient",
    "RecordSealer",
    "Signers",
    "SigningKey",
    "WriterKey",
    "best_cipher",
    "random_key",
]
