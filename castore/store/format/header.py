"""The 16 bytes at the beginning of every object."""

from __future__ import annotations

import struct
from typing import Final

from castore.errors import DamageError, FormatError

HEADER_BYTES: Final = 16
CONFIG: Final = b"castorec"
SESSION: Final = b"castores"
PACK: Final = b"castorep"
GENERATION: Final = b"castoreg"
DELETION: Final = b"castorex"
PIN: Final = b"castorei"
ROTATION: Final = b"castorer"
REMOVAL: Final = b"castored"

_VERSION: Final = 1
_HEADER: Final = struct.Struct("<8sH6s")


def header(kind: bytes) -> bytes:
    """Return the header of a new object."""
    return _HEADER.pack(kind, _VERSION, bytes(6))


def check_header(name: str, data: bytes, kind: bytes) -> None:
    """Refuse `data`, the beginning of the object `name`, if it is not of this kind and version.

    Raises DamageError; FormatError for a configuration of another version.
    """
    if len(data) < HEADER_BYTES or data[:8] != kind:
        raise DamageError(f"{name} is damaged: it does not begin as an object of its kind does")
    _, version, rest = _HEADER.unpack_from(data)
    if version != _VERSION and kind == CONFIG:
        raise FormatError(
            f"{name} is of format {version}, and this castore knows {_VERSION}: update castore"
        )
    if version != _VERSION:
        # A header is not signed. A newer castore first has an admin sign a newer configuration.
        raise DamageError(
            f"{name} is damaged: its header says format {version}, and the store is of format {_VERSION}"
        )
    if rest != bytes(6):
        raise DamageError(f"{name} is damaged: its header is not valid")
