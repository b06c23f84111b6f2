"""Texts that are not valid UTF-8: paths, arguments and host names may contain any bytes.

Python represents such a byte as a surrogate, which no encoder of MessagePack or JSON accepts.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

_SURROGATE: Final = "[\ud800-\udfff]"
_REPR: Final = r"(?<!\\)\\udc([89a-f][0-9a-f])"


def is_valid(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8."""
    return text.isascii() or re.search(_SURROGATE, text) is None


def escaped(text: str) -> str:
    r"""Return a text in which each byte that is not UTF-8 is written as `\xNN`; any other text as it is."""
    return text if is_valid(text) else re.sub(_SURROGATE, _escape, text)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def escape_unencodable(error: UnicodeError) -> tuple[str, int]:
    """Replace what a file cannot encode by escapes: a handler for `codecs.register_error`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    odd = error.object[error.start : error.end]
    shown = "".join(char if is_valid(char) else escaped(char) for char in odd)
    return shown.encode("ascii", "backslashreplace").decode(), error.end


def message(text: str) -> str:
    r"""Return a message in valid text for people to read: `\xNN` for an odd byte, also from repr."""
    return re.sub(_REPR, r"\\x\1", escaped(text))


def printable(name: bytes | str) -> str:
    r"""Return a name with everything escaped that a terminal would interpret.

    Control characters, other unprintable ones and bytes that are not UTF-8 become `\n`, `\x1b`,
    `\u202e`; a backslash becomes two, so that the result identifies one name only.
    """
    text = os.fsdecode(name) if isinstance(name, bytes) else name
    if text.isprintable() and "\\" not in text:
        return text
    return "".join(map(printable_char, text))


def printable_char(char: str) -> str:
    """Return a character, escaped if a terminal would interpret it."""
    if char == "\\":
        return "\\\\"
    if char.isprintable():
        return char
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:
        # How Python holds a byte that is not UTF-8.
        return f"\\x{code - 0xDC00:02x}"
    if 0x80 <= code < 0x100:
        # Not as \x80, which is a byte.
        return f"\\u{code:04x}"
    return char.encode("unicode_escape").decode("ascii")


def lossless(value: Any) -> Any:
    """Return plain values with every text that is not valid replaced by bytes."""
    return _mapped(value, str, lambda text: text if is_valid(text) else os.fsencode(text))


def without_odd(value: Any) -> Any:
    """Return plain values with every text that is not valid escaped."""
    return _mapped(value, str, escaped)


def texts(value: Any) -> Any:
    """Return the plain values that were passed to `lossless`."""
    return _mapped(value, bytes, os.fsdecode)


def _mapped(value: Any, kind: type, change: Any) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, kind, change): _mapped(one, kind, change) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_mapped(item, kind, change) for item in value)
    return value
