"""Collect the mistakes in a castore.toml, each with its key, in the terms of TOML."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from castore.errors import ConfigError, ConfigProblemsError

if TYPE_CHECKING:
    from collections.abc import Iterator

Decoded = TypeVar("Decoded", bound=msgspec.Struct)
Keys = tuple[str | int, ...]
"""The path of a value from the top of the file: keys of tables, positions in lists."""

_MISSING: Final = re.compile("Object missing required field `(.*?)`")
_STEP: Final = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
_BARE: Final = re.compile("[A-Za-z0-9_-]+")
_WORDS: Final = {
    "str": "text",
    "str | null": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "array | null": "a list",
    "object": "a table",
    "object | null": "a table",
}
"""msgspec's names of types, which are those of JSON, and the words that a message uses."""


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
                refusal, key = self._refusal(kind, keys, str(error), left)
            if key not in left:
                # The mistake of a required key that was removed here is already reported.
                raise ConfigProblemsError(*([] if key in table else [str(refusal)]))
            self.found.append(str(refusal))
            del left[key]

    def _refusal(
        self, kind: type[msgspec.Struct], keys: Keys, complaint: str, table: dict[str, Any]
    ) -> tuple[ConfigError, str]:
        """Return msgspec's complaint about `table` in the terms of TOML, and the key that it is about."""
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        if unknown := [name for name in table if name not in names]:
            error = self.error((*keys, unknown[0]), f"unknown key; known here: {', '.join(names)}")
            return error, unknown[0]
        if missing := _MISSING.match(complaint):
            return self.error((*keys, missing[1]), "this key is missing"), missing[1]
        depth = len(keys)
        reason, _, place = complaint.partition(" - at ")
        value: Any = table
        for name, position in _STEP.findall(place):
            # msgspec does not name the key in a table of tables: it is the one whose value is not a table.
            step = name or (
                int(position)
                if position.isdigit()
                else next(key for key, inner in value.items() if not isinstance(inner, dict))
            )
            keys, value = (*keys, step), value[step]
        for word, plain in _WORDS.items():
            reason = reason.replace(f"`{word}`", plain)
        key = str(keys[depth]) if len(keys) > depth else ""
        return self.error(keys, reason[:1].lower() + reason[1:]), key


def kind_of(value: Any) -> str:
    """Return the type of a value in the words of a message."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "text"


def _dotted(keys: Keys) -> str:
    """Return a path in the syntax of TOML, with positions in lists in brackets."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            dot = "." if text else ""
            # TOML quotes and escapes a string as JSON does.
            text += dot + (key if _BARE.fullmatch(key) else msgspec.json.encode(key).decode())
    return text
