"""Recipients and identities, and their text forms."""

from __future__ import annotations

import os
import re
import struct
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Self

from nacl._sodium import lib

from castore.crypto.key_derivation import derive
from castore.crypto.key_text import one_line, read, write
from castore.crypto.object_aead import decrypt, encrypt
from castore.crypto.public_key import PublicKey
from castore.crypto.signing import SigningKey
from castore.crypto.sodium import Secret, allocate, pointer, taken, wipe
from castore.errors import IdentityError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_IDENTITY: Final = "castore-identity-"
_LOCKED: Final = "castore-locked-"

SEAL_BYTES: Final = 48
"""Bytes that a sealed box is longer than its content."""

_LOCK: Final = struct.Struct("<16sII")
_LOCKED_BYTES: Final = _LOCK.size + 24 + 32 + 16
_LENGTHS: Final = {_IDENTITY: 58, _LOCKED: 160}
"""Number of letters after the prefix."""
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
GROUP: Final = 5
"""Letters in a group, which is typed together."""
# libsodium's "moderate" setting: three passes over 256 MiB, about a second.
_OPERATIONS: Final = 3
_MEMORY_KIB: Final = 256 * 1024
_MAX_MEMORY_KIB: Final = 4 * 1024 * 1024
_MAX_OPERATIONS: Final = 64


def typed_identity(text: str) -> str:
    """Return the one line of an identity's text that may be typed from paper; "" if it is not one.

    The text may have any case, spaces and dashes in it, span several lines, and lack its prefix, which its
    length implies.
    """
    text = text.removeprefix("\ufeff")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    # A printed sheet labels each line: "begins", or the numbers of its groups.
    lines = [re.sub(r"^\s*(begins|[0-9]+\s+to\s+[0-9]+)\s", "", line) for line in lines]
    body = "".join("".join(lines).split()).replace("-", "").lower()
    for prefix, length in _LENGTHS.items():
        start = prefix.replace("-", "")
        if body.startswith(start):
            return prefix + body[len(start) :]
        if len(body) == length and not body.startswith("castore"):
            return prefix + body
    return ""


def is_whole(text: str) -> bool:
    """Return whether an identity's text, as it was typed, has all of its letters; they may be wrong."""
    line = typed_identity(text)
    return any(line.startswith(prefix) and len(line) >= len(prefix) + n for prefix, n in _LENGTHS.items())


def check_identity(text: str) -> str:
    """Return the one line of an identity's text, after verifying its checksum. Raises IdentityError.

    The identity is not opened: no passphrase is needed.
    """
    line = typed_identity(text)
    for prefix, length in ((_IDENTITY, 32), (_LOCKED, _LOCKED_BYTES)):
        if line.startswith(prefix):
            if read(prefix, line, length) is None:
                raise IdentityError(f"the identity is mistyped or incomplete: {where_mistyped(line)}")
            return line
    raise IdentityError("this is not an identity: one looks like castore-identity-... or castore-locked-...")


def is_locked(line: str) -> bool:
    """Return whether an identity's text needs a passphrase."""
    return line.startswith(_LOCKED)


def groups(line: str) -> tuple[str, list[str]]:
    """Return an identity's text as it is typed: its prefix, and groups of GROUP letters."""
    prefix = _LOCKED if is_locked(line) else _IDENTITY
    body = line[len(prefix) :]
    return prefix, [body[at : at + GROUP] for at in range(0, len(body), GROUP)]


def where_mistyped(line: str) -> str:
    """Return where to look in an identity whose checksum does not match, without revealing any of the secret.

    Tries every text that one wrong, missing or extra letter, or two swapped letters, could have turned into
    this one. The checksum has 32 bits, so a text that matches is the one that was meant.
    """
    prefix = _LOCKED if is_locked(line) else _IDENTITY
    length = _LOCKED_BYTES if is_locked(line) else 32
    body = line[len(prefix) :]
    foreign = [at for at, letter in enumerate(body) if letter not in _LETTERS]
    if foreign:
        numbers = ", ".join(str(group) for group in sorted({at // GROUP + 1 for at in foreign}))
        return f"group {numbers} has a character that is neither a letter nor one of the digits 2 to 7"
    for at, meant in _near(body, _LENGTHS[prefix]):
        if read(prefix, prefix + meant, length) is not None:
            return f"look at group {at // GROUP + 1}, at letter {at % GROUP + 1} of it"
    problem = "its checksum does not match"
    if len(body) != _LENGTHS[prefix]:
        problem += f": it has {len(body)} letters after {prefix} instead of {_LENGTHS[prefix]}"
    return problem


def _near(body: str, length: int) -> Iterator[tuple[int, str]]:
    """Yield each text of the right length that is one slip away, with the position of the slip."""
    for at in range(len(body) + 1):
        if len(body) == length + 1:
            yield at, body[:at] + body[at + 1 :]
        if len(body) == length - 1:
            yield from ((at, body[:at] + letter + body[at:]) for letter in _LETTERS)
        if len(body) == length and at < length:
            yield from ((at, body[:at] + letter + body[at + 1 :]) for letter in _LETTERS)
            yield at, body[:at] + body[at : at + 2][::-1] + body[at + 2 :]


class Recipient(PublicKey, frozen=True):
    """The public half of an identity: it seals data that only that identity opens."""

    kind = "a recipient"
    prefix = "castore-pub-"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the recipient of a text form. Raises UsageError, also for an identity."""
        if one_line(text).startswith((_IDENTITY, _LOCKED)):
            raise UsageError(
                "a recipient was expected, but this is an identity, which is secret; "
                "'castore key show' gives its recipient (castore-pub-...)"
            )
        return super().parse(text)

    def seal(self, data: bytes) -> bytes:
        """Return `data` sealed, SEAL_BYTES longer. Raises UsageError for an invalid public key."""
        sealed = allocate("unsigned char[]", len(data) + SEAL_BYTES)
        if lib.crypto_box_seal(sealed, pointer(data), len(data), self.key):
            raise UsageError(f"nothing can be sealed to {self.text}: it is not a public key")
        return taken(sealed, len(data) + SEAL_BYTES)


class Identity:
    """An X25519 secret key that opens sessions, and so reads state. It is wiped when it is deallocated.

    What it opens, and the text that it was read from, are Python's `bytes` and `str`, which cannot be wiped.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != 32:
            raise ValueError(f"an identity has 32 bytes, not {len(secret)}")
        self._secret = Secret(secret)
        public = allocate("unsigned char[]", 32)
        lib.crypto_scalarmult_base(public, self._secret.pointer)
        self._recipient = Recipient(taken(public, 32))

    def __repr__(self) -> str:
        return f"Identity(of {self._recipient.text})"

    @classmethod
    def generate(cls) -> Self:
        """Return a new identity."""
        return cls(os.urandom(32))

    @classmethod
    def parse(cls, text: str, passphrase: Callable[[], str] | None) -> Self:
        """Return the identity in a file's text, asking for its passphrase if it has one.

        Raises IdentityError if the text holds no identity, or the passphrase is wrong or missing.
        """
        line = typed_identity(text) or one_line(text)
        if line.startswith(Recipient.prefix):
            raise IdentityError(
                "this is a recipient (castore-pub-...), the public half; the identity "
                "(castore-identity-... or castore-locked-...) is needed"
            )
        if line.startswith(_IDENTITY):
            secret = read(_IDENTITY, line, 32)
            if secret is None:
                raise IdentityError(f"the identity is mistyped or incomplete: {where_mistyped(line)}")
            return cls(secret)
        if not line.startswith(_LOCKED):
            raise IdentityError(
                "there is no identity in this text: expected one line castore-identity-... or "
                "castore-locked-..."
            )
        locked = read(_LOCKED, line, _LOCKED_BYTES)
        if locked is None:
            raise IdentityError(f"the locked identity is mistyped or incomplete: {where_mistyped(line)}")
        if passphrase is None:
            raise IdentityError("this identity is locked with a passphrase, and none was given")
        return cls(_unlock(locked, passphrase()))

    def text(self) -> str:
        """Return the secret as text, for a file that only its owner can read."""
        return write(_IDENTITY, bytes(self._secret))

    def locked_text(self, passphrase: str) -> str:
        """Return the secret as text, locked with a passphrase. This takes about a second."""
        lock = _LOCK.pack(os.urandom(16), _OPERATIONS, _MEMORY_KIB)
        key = _stretch(lock, passphrase)
        try:
            return write(_LOCKED, lock + encrypt(key, b"", bytes(self._secret)))
        finally:
            wipe(key)

    @property
    def recipient(self) -> Recipient:
        """The public half."""
        return self._recipient

    @cached_property
    def admin(self) -> SigningKey:
        """The admin key of this identity: it signs the configurations of the stores that name it."""
        return SigningKey(derive("castore 1 admin", bytes(self._secret)))

    def open(self, sealed: bytes) -> bytes:
        """Return the content of a box sealed to the recipient. Raises IdentityError for any other."""
        length = len(sealed) - SEAL_BYTES
        data = allocate("unsigned char[]", max(length, 1))
        if length < 0 or lib.crypto_box_seal_open(
            data, pointer(sealed), len(sealed), self._recipient.key, self._secret.pointer
        ):
            raise IdentityError(f"this is not sealed to the identity of {self._recipient.text}")
        opened = taken(data, length)
        wipe(data)
        return opened


def _stretch(lock: bytes, passphrase: str) -> Any:
    """Return the key derived from a passphrase with the salt and limits of a lock; the caller wipes it."""
    salt, operations, memory = _LOCK.unpack(lock)
    key = allocate("unsigned char[]", 32)
    secret = bytearray(passphrase.encode("utf-8", "surrogateescape"))
    failed = lib.crypto_pwhash(
        key,
        32,
        pointer(secret),
        len(secret),
        salt,
        operations,
        memory * 1024,
        lib.crypto_pwhash_alg_argon2id13(),
    )
    wipe(secret)
    if failed:
        raise IdentityError(f"unlocking this identity needs {memory // 1024} MiB of free memory")
    return key


def _unlock(locked: bytes, passphrase: str) -> bytes:
    lock, sealed = locked[: _LOCK.size], locked[_LOCK.size :]
    _, operations, memory = _LOCK.unpack(lock)
    if not (1 <= operations <= _MAX_OPERATIONS and 8 <= memory <= _MAX_MEMORY_KIB):
        raise IdentityError(
            f"this identity's lock is not valid: it asks for {operations} passes over {memory} KiB"
        )
    key = _stretch(lock, passphrase)
    secret = decrypt(key, b"", sealed)
    wipe(key)
    if secret is None:
        raise IdentityError("wrong passphrase for this identity")
    return secret
