"""The JSON document of a run with --json: standard output has this document and nothing else.

While the command runs, descriptor 1 is standard error, so that the output of a command, a hook or a
deployment cannot get into the document. `main` writes the document at the end, with the error of the run in
it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_EXACT: Final = 1 << 53
"""Readers that hold numbers as binary64, jq among them, know integers up to this."""
# Neither has false negatives; where one matches, the entire value is converted.
_SURROGATE: Final = r"(?i)\\ud[89a-f]"
_LONG_NUMBER: Final = r"[\[ -]\d{16}"
_KINDS: Final = {
    "DeploymentRevertedError": "deployment-failed",
    "CastoreError": "failed",
    "NewerConfigError": "format",
}

_BUFFER: Final = 1 << 16
"""Bytes of elements that are written at once."""
_unset: Final = object()
_kept: list[Document] = []
"""The document of this run, if it has one."""


def is_wanted(words: Sequence[str]) -> bool:
    """Return whether the arguments of castore ask for JSON, even if they are otherwise invalid."""
    own = list(words[: words.index("--")] if "--" in words else words)
    return "--json" in own and not {"--help", "-h", "--version"}.intersection(own)


class Document:
    """The result of the run, kept until it ends, and the original standard output."""

    def __init__(self) -> None:
        """Replace standard output: from now on, printed text goes to standard error."""
        import os

        self._value: Any = _unset
        self._elements = 0
        """Elements of a list that were written, or are about to be."""
        self._is_complete = False
        self._out = os.dup(1)
        os.dup2(2, 1)
        _kept.append(self)

    def keep(self, value: Any) -> None:
        """Keep the result; a later one replaces it."""
        self._value = value

    def stream(self, elements: Iterable[Any]) -> None:
        """Write a list as the result, each element when it is found. Raises OSError."""
        buffer = bytearray()
        try:
            for element in elements:
                text = element_text(element)
                buffer += (",\n" if self._elements else "[\n").encode() + text.encode()
                self._elements += 1
                if len(buffer) > _BUFFER:
                    self._write(buffer)
            buffer += b"\n]\n" if self._elements else b"[]\n"
            self._is_complete = True
        finally:
            self._write(buffer)

    def _write(self, data: bytearray) -> None:
        from castore.fs.durable import write_all

        written = bytes(data)
        data.clear()
        write_all(self._out, written)

    def finish(self, error: Mapping[str, Any] | None = None) -> None:
        """Write the result, with the error of the run, if any. Raises OSError."""
        if self._out < 0:
            return
        if self._elements or self._is_complete:
            self._end_list(error)
            return
        value = {} if self._value is _unset else self._value
        if error is not None and isinstance(value, dict):
            value = {**value, "error": error}
        out, self._out = self._out, -1
        _kept.remove(self)
        with open(out, "w", encoding="ascii") as file:
            file.write(as_text(value) + "\n")


    def _end_list(self, error: Mapping[str, Any] | None) -> None:
        out, self._out = self._out, -1
        _kept.remove(self)
        with open(out, "w", encoding="ascii") as file:
            if not self._is_complete:
                file.write(",\n" + element_text({"error": error}) + "\n]\n")


def print_json_list(elements: Iterable[Any]) -> None:
    """Write `elements` as the JSON result of this run, each when it is found, as `print_json` does a list."""
    if _kept:
        _kept[-1].stream(elements)
    else:
        import click

        before = "[\n"
        for element in elements:
            click.echo(before + element_text(element), nl=False)
            before = ",\n"
        click.echo("[]" if before == "[\n" else "\n]")


def print_json(value: Any) -> None:
    """Set `value` as the JSON result of this run."""
    if _kept:
        _kept[-1].keep(value)
    else:
        import click

        click.echo(as_text(value))


def as_text(value: Any) -> str:
    """Return a value as JSON, in ASCII; a list with one element per line."""
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(map(element_text, value)) + "\n]"
    text = _dumped(value)
    if re.search(_SURROGATE, text) or re.search(_LONG_NUMBER, text):
        text = _dumped(_readable(value))
    return text


def element_text(value: Any) -> str:
    """Return an element of a list as JSON, in ASCII, on one line."""
    text = json.dumps(value, default=_escaped)
    if re.search(_SURROGATE, text) or re.search(_LONG_NUMBER, text):
        text = json.dumps(_readable(value), default=_escaped)
    return text


def _dumped(value: Any) -> str:
    return json.dumps(value, indent=2, default=_escaped)


def _escaped(value: Any) -> str:
    """Return the name of a file, which may have any bytes, as text."""
    from castore.cli import formatting

    if not isinstance(value, bytes):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return formatting.printable(value)


def _readable(value: Any) -> Any:
    """Return a value whose integers and strings every JSON reader decodes without loss."""
    if isinstance(value, dict):
        return {_readable(key): _readable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(element) for element in value]
    if isinstance(value, str):
        return "".join(_valid(char) for char in value)
    if isinstance(value, int) and not -_EXACT <= value <= _EXACT:
        return str(value)
    return value


def _valid(char: str) -> str:
    code = ord(char)
    if not 0xD800 <= code <= 0xDFFF:
        return char
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"


def times(name: str, ns: int | None) -> dict[str, str | None]:
    """Return the two fields of a time in ns since 1970: `name` in RFC 3339, and `name`_ns in digits."""
    if ns is None:
        return {name: None, f"{name}_ns": None}
    return {name: rfc3339(ns), f"{name}_ns": str(ns)}


def rfc3339(ns: int) -> str:
    """Return a time, in ns since 1970, in RFC 3339 and UTC: `2026-11-20T01:30:00.000000000Z`."""
    import datetime as dt

    seconds, rest = divmod(ns, 1_000_000_000)
    moment = dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{rest:09}Z"


def error_fields(error: BaseException, code: int, message: str) -> dict[str, Any]:
    """Return the fields of an error: its exit code, its kind for programs, its message for people."""
    return {"code": code, "kind": kind_of(error), "message": message}


def kind_of(error: BaseException) -> str:
    """Return the stable name of a kind of error, from that of its class: `not-found`."""
    import click

    from castore.errors import CastoreError

    if isinstance(error, CastoreError):
        name = next(kind.__name__ for kind in type(error).__mro__ if not kind.__name__.startswith("_"))
        return _KINDS.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name.removesuffix("Error")).lower()
    if isinstance(error, click.Abort | KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, click.UsageError):
        return "usage"
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, UnicodeError):
        return "usage"
    return "system" if isinstance(error, OSError) else "internal"
