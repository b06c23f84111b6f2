"""The text forms of keys: a prefix, then base32 of the bytes and a checksum."""

from __future__ import annotations

import base64
import binascii

from blake3 import blake3


def write(prefix: str, data: bytes) -> str:
    """Return the text of `data`, with its checksum."""
    check = blake3(prefix.encode() + data).digest(4)
    return prefix + base64.b32encode(data + check).decode().rstrip("=").lower()


def one_line(text: str) -> str:
    """Return a key file's only line that is neither empty nor a comment; "" if there is not exactly one."""
    # An editor may have put a byte-order mark at the beginning.
    lines = [line.strip() for line in text.removeprefix("\ufeff").splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    return keys[0] if len(keys) == 1 else ""


def read(prefix: str, line: str, length: int | None = None) -> bytes | None:
    """Return the bytes of a text form; None if it is mistyped or incomplete.

    length: the required number of bytes, or None for any.
    """
    body = line[len(prefix) :]
    if body != body.lower():
        return None
    try:
        data = base64.b32decode(body.upper() + "=" * (-len(body) % 8))
    except (binascii.Error, ValueError):
        return None
    data, check = data[:-4], data[-4:]
    # Each key has one form: if spare bits of the last letter are not zero, a letter is mistyped.
    if (length is not None and len(data) != length) or blake3(prefix.encode() + data).digest(4) != check:
        return None
    return data if write(prefix, data) == line else None
