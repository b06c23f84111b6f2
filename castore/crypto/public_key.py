"""Public keys, and the text form in which people copy them."""

from __future__ import annotations

from typing import ClassVar, Final, Self

import msgspec

from castore.crypto.key_text import one_line, read, write
from castore.errors import UsageError

PUBLIC_BYTES: Final = 32


class PublicKey(msgspec.Struct, frozen=True):
    """The public half of a secret key. Each role is a class of its own: keys of two roles are never equal."""

    key: bytes

    kind: ClassVar[str]
    """The role, for messages: "a recipient"."""
    prefix: ClassVar[str]
    """The beginning of the text form."""
    hint: ClassVar[str] = ""
    """Where to find a key of this role, for the message that a text is not one."""

    def __post_init__(self) -> None:
        if len(self.key) != PUBLIC_BYTES:
            raise ValueError(f"a public key has {PUBLIC_BYTES} bytes, not {len(self.key)}")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text})"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the key of a text form. Raises UsageError."""
        line = one_line(text)
        if not line.startswith(cls.prefix):
            raise UsageError(f"this is not {cls.kind}: one looks like {cls.prefix}...{cls.hint}")
        key = read(cls.prefix, line, PUBLIC_BYTES)
        if key is None:
            raise UsageError(
                f"{cls.kind} was expected: {line} is mistyped or incomplete, its checksum does not match"
            )
        return cls(key)

    @property
    def text(self) -> str:
        """The key in the form that people copy."""
        return write(self.prefix, self.key)
