"""The journal of a rollback: what it does to each part, and how far it is.

The journal is stored in castore's state on this machine. Every step is durable in it before the step begins.
After a kill, `recover` reads it: it undoes the rollback, or completes it if all parts had been swapped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from blake3 import blake3

from castore.engines.base import SWAPPING, Memo
from castore.errors import NotIntactError, StorageError
from castore.model.odd_text import lossless, texts

if TYPE_CHECKING:
    from castore.store import Store

_VERSION: Final = 3
"""Version 2 added parts that are removed; version 3 added the checksum."""
_CHECKSUM: Final = 16
"""Bytes of the checksum after the encoded journal."""
UNDONE: Final = "undone"
"""Key of a memo: the part has its previous state again, and must not be touched any more."""


class PartJournal(msgspec.Struct):
    """What the rollback does to one part."""

    name: str
    path: bytes = b""
    """Path of a tree; empty for a dump."""
    engine: str = ""
    """Engine of a dump; empty for a tree."""
    settings: dict[str, Any] = {}
    memo: Memo = {}
    """State of the engine. For a tree that is removed: its path, and `old`, the path that it is moved to."""

    @property
    def switched(self) -> bool:
        """Whether the live state may have been changed, and has not been reverted."""
        return SWAPPING in self.memo and UNDONE not in self.memo


class Journal(msgspec.Struct):
    """A rollback, and how far it is."""

    service: str
    target: int
    pre_rollback: int | None
    """Number of the pre-rollback generation."""
    parts: list[PartJournal]
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    timeout: float | None = None
    """Seconds that `stop` and `start` may take."""
    run_as: str | None = None
    """The user that runs `stop` and `start`; None: castore's own user."""
    phase: Literal["begun", "stopped", "started", "done"] = "begun"
    revision: str = ""
    """The revision that the state belongs to when the rollback is done."""
    before: str = ""
    """The revision that the replaced state belonged to."""
    version: int = _VERSION

    @property
    def changed(self) -> bool:
        """Whether any part differed from the target."""
        return any(SWAPPING in part.memo for part in self.parts)


class _JournalVersion(msgspec.Struct):
    """The version, which is decoded first: the other fields depend on it."""

    version: int = 1


def write_journal(store: Store, journal: Journal) -> None:
    """Write the journal durably. Raises StorageError."""
    # Paths may have bytes that are not UTF-8.
    data = msgspec.msgpack.encode(lossless(msgspec.to_builtins(journal, builtin_types=(bytes,))))
    store.remember_rollback(journal.service, data + _checksum(data))


def _checksum(data: bytes) -> bytes:
    return blake3(data).digest(_CHECKSUM)


def read_journal(store: Store, service: str) -> Journal | None:
    """Return the journal of an unfinished rollback, or None.

    Raises NotIntactError if it is damaged, or of a newer version.
    """
    try:
        data = store.begun_rollback(service)
        if data is None:
            return None
        intact = data[-_CHECKSUM:] == _checksum(data[:-_CHECKSUM])
        data = data[:-_CHECKSUM] if intact else data
        version = msgspec.msgpack.decode(data, type=_JournalVersion).version
        if version == _VERSION and not intact:
            raise _damaged(service, "its checksum is wrong")
        if version in range(1, _VERSION + 1):
            return _decoded(data)
    except (msgspec.DecodeError, msgspec.ValidationError, StorageError) as error:
        raise _damaged(service, str(error)) from None
    raise NotIntactError(
        f"the journal of a rollback of {service!r} has version {version}, and this castore reads up to "
        f"{_VERSION}: recover with the castore that began the rollback, or a newer one; if you have repaired "
        f"the state: castore recover --forget {service}"
    )


def _decoded(data: bytes) -> Journal:
    """Decode a journal. Raises DecodeError, ValidationError."""
    plain = msgspec.msgpack.decode(data, type=dict[str, Any])
    parts = msgspec.convert(plain.get("parts"), list[dict[str, Any]])
    for part in parts:
        part |= {name: texts(part.get(name, {})) for name in ("settings", "memo")}
    return msgspec.convert({**plain, "parts": parts}, Journal)


def _damaged(service: str, reason: str) -> NotIntactError:
    return NotIntactError(
        f"the journal of a rollback of {service!r} is damaged ({reason}): the rollback can be neither undone "
        f"nor completed; run castore recover --forget {service}, then check the state of the service, or "
        f"restore a generation: castore rollback {service} --to NUMBER"
    )


def refuse_interrupted(store: Store, service: str) -> None:
    """Raise NotIntactError if an earlier rollback of a service was interrupted or failed."""
    if store.has_begun_rollback(service):
        raise NotIntactError(unfinished(service))


def unfinished(service: str) -> str:
    """Return the message that a rollback of a service is unfinished, with the commands that end it."""
    return (
        f"an earlier rollback of {service!r} was interrupted or failed, and its state may be inconsistent: "
        f"first castore recover {service}; if that cannot succeed, or you have repaired the state: castore "
        f"recover --forget {service}"
    )
