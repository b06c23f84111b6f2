"""The log of operations on services, on this machine: state, not cache. A bounded file of JSON lines."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import msgspec

from castore.fs.durable import (
    make_private_directory,
    read_private,
    refusal,
    sync_if_supported,
    write_all,
    write_private,
)
from castore.model.events import Event
from castore.state.locks import waiting_lock

if TYPE_CHECKING:
    from collections.abc import Iterable

_MOST_EVENTS: Final = 10_000
_MOST_BYTES: Final = 8 << 20
"""A longer file is rewritten with the newest events, and the last drill of each generation."""

_decoder = msgspec.json.Decoder(Event)


class EventLog:
    """The file `path`; safe to use from several processes at once."""

    def __init__(self, path: str) -> None:
        self._path = path

    def append(self, event: Event) -> None:
        """Append an event, durably. Raises StorageError."""
        with waiting_lock(f"{self._path}.lock"):
            make_private_directory(os.path.dirname(self._path))
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
                descriptor = os.open(self._path, flags, 0o600)
                try:
                    length = os.fstat(descriptor).st_size
                    # A process that was killed may have left an incomplete last line.
                    cut = length and os.pread(descriptor, 1, length - 1) != b"\n"
                    line = (b"\n" if cut else b"") + _encoded(event)
                    write_all(descriptor, line)
                    os.fsync(descriptor)
                    if not length:
                        sync_if_supported(os.path.dirname(self._path))
                    length = os.fstat(descriptor).st_size
                finally:
                    os.close(descriptor)
            except OSError as error:
                raise refusal("write", self._path, error) from error
            if length > _MOST_BYTES:
                self._shorten()

    def read(self, service: str | None = None) -> list[Event]:
        """Return the events of a service, or all events, newest first. Raises StorageError."""
        events = []
        # Not splitlines(): a text may hold a line separator of Unicode, which JSON does not escape.
        for line in (read_private(self._path) or "").split("\n"):
            try:
                event = _decoder.decode(line)
            except (msgspec.MsgspecError, UnicodeError):
                continue
            if service in {None, event.service}:
                events.append(event)
        events.sort(key=lambda event: event.time)
        return events[::-1]

    def _shorten(self) -> None:
        events = self.read()
        kept = events[: _MOST_EVENTS // 2]
        drills: dict[tuple[str, int | None], Event] = {}
        for event in events[len(kept) :]:
            if event.kind == "drill" and len(drills) < _MOST_EVENTS // 2:
                drills.setdefault((event.service, event.number), event)
        write_private(self._path, _joined([*kept, *drills.values()]))


def _encoded(event: Event) -> bytes:
    # Invalid text, such as a file name in a message, is kept escaped.
    texts = {
        field: value.encode("utf-8", "backslashreplace").decode()
        for field in ("service", "revision", "text")
        if not (value := getattr(event, field)).isascii()
    }
    return msgspec.json.encode(msgspec.structs.replace(event, **texts)) + b"\n"


def _joined(events: Iterable[Event]) -> bytes:
    # Events beyond half of the limit are dropped: one long event cannot keep the file too long forever.
    lines: list[bytes] = []
    bytes_left = _MOST_BYTES // 2
    for event in events:
        line = _encoded(event)
        bytes_left -= len(line)
        if bytes_left < 0:
            break
        lines.append(line)
    return b"".join(reversed(lines))
