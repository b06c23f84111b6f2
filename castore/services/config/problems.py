"""What is wrong with a castore.toml: collected, in its own words, with the key of each mistake."""

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
"""The keys that lead to a value, from the top of the file; of a list, the position."""

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
"""msgspec's names of types, which are JSON's, and what a reader of TOML calls them."""


class Problems:
    """The mistakes of one file, or of one of its services."""

    def __init__(self, path: str) -> None:
        self.found: list[str] = []
        """All mistakes so far of the service, or of what concerns every service."""
        self._path = path

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Note the mistake that the block raises, and go on after it."""
        try:
            yield
        except ConfigProblemsError as error:
            self.found += error.problems
        except ConfigError as error:
            self.found.append(str(error))

    def error(self, keys: Keys, reason: str) -> ConfigError:
        """Return the error of a mistake in the value that `keys` lead to."""
        return ConfigError(f"{self._path}: {_dotted(keys)}: {reason}")

    def convert(self, table: dict[str, Any], kind: type[Decoded], keys: Keys) -> Decoded:
        """Decode a table. Raises ConfigProblemsError with what is wrong with each of its keys."""
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
        """Decode a table; note what is wrong with each key, and decode the others.

        Raises ConfigProblemsError where a key is missing or unusable that is required.
        """
        left = dict(table)
        while True:
            try:
                return msgspec.convert(left, kind)
            except msgspec.ValidationError as error:
                refusal, key = self._refusal(kind, keys, str(error), left)
            if key not in left:
                # A required key that was removed here has its own complaint already.
                raise ConfigProblemsError(*([] if key in table else [str(refusal)]))
            self.found.append(str(refusal))
            del left[key]

    def _refusal(
        self, kind: type[msgspec.Struct], keys: Keys, complaint: str, table: dict[str, Any]
    ) -> tuple[ConfigError, str]:
        """Put msgspec's complaint about `table` in castore.toml's own words; return its key, too."""
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
            # msgspec does not say which key of a table of tables: the one that holds none.
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
    """Return what a reader of TOML calls a value's type."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "text"


def _dotted(keys: Keys) -> str:
    """Return keys as castore.toml would write them; a list's positions in brackets."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            dot = "." if text else ""
            # A TOML string is quoted and escaped as one of JSON.
            text += dot + (key if _BARE.fullmatch(key) else msgspec.json.encode(key).decode())
    return text
