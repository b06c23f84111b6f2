"""Collect the mistakes in a castore.toml, each with its key, in the terms of TOML."""

from __future__ import annotations

import contextlib
import re
from types import NoneType, UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
)

import msgspec

from castore.errors import ConfigError, ConfigProblemsError

if TYPE_CHECKING:
    from collections.abc import Iterator

Decoded = TypeVar("Decoded", bound=msgspec.Struct)
Keys = tuple[str | int, ...]
"""The path of a value from the top of the file: keys of tables, positions in lists."""

_BARE: Final = "[A-Za-z0-9_-]+"
_WORDS: Final[dict[Any, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list",
    list: "a list",
    dict: "a table",
}
"""Types of values in the words of a message."""


class Problems:
    """The mistakes of one file: those of the service that is being decoded, or of its top level."""

    def __init__(self, path: str) -> None:
        self.found: list[str] = []
        """The mistakes so far; the decoder exchanges the list for each service."""
        self._path = path

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Add the mistakes that the block raises, and continue after the block."""
        try:
            yield
        except ConfigProblemsError as error:
            self.found += error.problems
        except ConfigError as error:
            self.found.append(str(error))

    def error(self, keys: Keys, reason: str) -> ConfigError:
        """Return the error for a mistake in the value at `keys`."""
        return ConfigError(f"{self._path}: {_dotted(keys)}: {reason}")

    def convert(self, table: dict[str, Any], kind: type[Decoded], keys: Keys) -> Decoded:
        """Decode a table. Raises ConfigProblemsError with the mistakes of all its keys."""
        before, self.found = self.found, []
        try:
            with self.collecting():
                decoded = self.convert_partly(table, kind, keys)
            found = self.found
        finally:
            self.found = before
        if found:
            raise ConfigProblemsError(*found)
        return decoded

    def convert_partly(self, table: dict[str, Any], kind: type[Decoded], keys: Keys) -> Decoded:
        """Decode a table; add the mistake of each wrong key to `found`, and decode the other keys.

        Raises ConfigProblemsError if a required key is missing or wrong.
        """
        left = dict(table)
        while True:
            try:
                return msgspec.convert(left, kind)
            except msgspec.ValidationError as error:
                path, reason = _mistake_in_table(left, kind) or ((), _reason(error))
            refusal = self.error((*keys, *path), reason)
            key = str(path[0]) if path else ""
            if key not in left:
                # The mistake of a required key that was removed here is already reported.
                raise ConfigProblemsError(*([] if key in table else [str(refusal)]))
            self.found.append(str(refusal))
            del left[key]


def _mistake_in_table(table: dict[str, Any], kind: type[msgspec.Struct]) -> tuple[Keys, str] | None:
    """Return where the first mistake in a table is, and what it is; None if each key by itself is right."""
    fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
    for name in table:
        if name not in fields:
            return (name,), f"unknown key; known here: {', '.join(fields)}"
    for name, value in table.items():
        if not _fits(value, fields[name].type):
            keys, reason = _mistake(value, fields[name].type)
            return (name, *keys), reason
    for name, field in fields.items():
        if field.required and name not in table:
            return (name,), "this key is missing"
    return None


def _fits(value: Any, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _mistake(value: Any, kind: Any) -> tuple[Keys, str]:
    """Return where the first mistake in a value is that does not fit its type, and what it is."""
    kinds = _alternatives(kind)
    for key, one, inner in _inner(value, kinds):
        if not _fits(one, inner):
            keys, reason = _mistake(one, inner)
            return (key, *keys), reason
    for one in kinds:
        if isinstance(value, dict) and _is_table(one):
            return _mistake_in_table(value, one) or ((), _combination(value, one))
    expected = " or ".join(dict.fromkeys(word for kind in kinds for word in _words(kind)))
    is_choice = isinstance(value, str) and any(get_origin(kind) is Literal for kind in kinds)
    return (), f"expected {expected}, got {repr(value) if is_choice else kind_of(value)}"


def _combination(table: dict[str, Any], kind: Any) -> str:
    """Return why a table is refused although each key by itself is right."""
    try:
        msgspec.convert(table, kind)
    except msgspec.ValidationError as error:
        return _reason(error)
    return "it is not valid"


def _reason(error: msgspec.ValidationError) -> str:
    """Return the words of the class that refused a value."""
    return str(error.__cause__ or error)


def _is_table(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _alternatives(kind: Any) -> list[Any]:
    """Return the types that a value may have."""
    if get_origin(kind) in {Union, UnionType}:
        return [get_arg for get_arg in get_args(kind) if get_arg is not NoneType]
    return [kind]


def _inner(value: Any, kinds: list[Any]) -> Iterator[tuple[str | int, Any, Any]]:
    """Yield the values in a list or table: key or position, value, and the type that it must have."""
    for kind in kinds:
        origin, arguments = get_origin(kind), get_args(kind)
        if isinstance(value, list) and origin in {tuple, list}:
            yield from ((at, one, arguments[0]) for at, one in enumerate(value))
        elif isinstance(value, dict) and origin is dict:
            yield from ((key, one, arguments[1]) for key, one in value.items())


def _words(kind: Any) -> list[str]:
    """Return a type in the words of a message; a choice gives the words that may be chosen."""
    origin = get_origin(kind)
    if origin is Literal:
        return [repr(get_arg) for get_arg in get_args(kind)]
    if origin is Annotated:
        return _words(get_args(kind)[0])
    if _is_table(kind):
        return ["a table"]
    return [_WORDS.get(origin or kind) or str(getattr(kind, "__name__", kind))]


def kind_of(value: Any) -> str:
    """Return the type of a value in the words of a message."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, list | dict):
        return _WORDS[type(value)]
    return "text" if isinstance(value, str) else "a date or time"


def _dotted(keys: Keys) -> str:
    """Return a path in the syntax of TOML, with positions in lists in brackets."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            dot = "." if text else ""
            # TOML quotes and escapes a string as JSON does.
            text += dot + (key if re.fullmatch(_BARE, key) else msgspec.json.encode(key).decode())
    return text
