"""The journal of a rollback: how far it has got.

It is part of castore's state on this machine, and durable before anything is done.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from blake3 import blake3

from castore.engines.base import SWITCHING, Memo
from castore.errors import NotIntactError, StorageError
from castore.model.odd_text import lossless, texts

if TYPE_CHECKING:
    from castore.store import Store

_VERSION: Final = 3
"""2: a part may be one that is removed; 3: a checksum follows."""
_CHECKSUM: Final = 16
"""Bytes of it."""
UNDONE: Final = "undone"


class PartJournal(msgspec.Struct):
    """What is being done to one part."""

    name: str
    path: bytes = b""
    """A tree's."""
    engine: str = ""
    settings: dict[str, Any] = {}
    memo: Memo = {}
    """An engine's; of a tree that is to be gone, its path and `old`, which it is moved to."""

    @property
    def switched(self) -> bool:
        """Whether the live state may have been touched, and was not put back."""
        return SWITCHING in self.memo and UNDONE not in self.memo


class Journal(msgspec.Struct):
    """How far a roll-back has got."""

    service: str
    target: int
    safety: int | None
    parts: list[PartJournal]
    stop: tuple[str, ...] = ()
    start: tuple[str, ...] = ()
    timeout: float | None = None
    run_as: str | None = None
    """The user that `stop` and `start` are run as; None: castore's own."""
    phase: Literal["begun", "stopped", "started", "done"] = "begun"
    revision: str = ""
    """What the state belongs to when the rollback is done."""
    before: str = ""
    """The revision that the replaced state belonged to."""
    version: int = _VERSION

    @property
    def changed(self) -> bool:
        """Whether any part was not equal to the target already."""
        return any(SWITCHING in part.memo for part in self.parts)


class _JournalVersion(msgspec.Struct):
    """What is read first of a journal: who does not know its version cannot tell what the rest means."""

    version: int = 1


def write_journal(store: Store, journal: Journal) -> None:
    """Make durable how far a roll-back has got. Raises StorageError."""
    # Paths may have bytes that are not UTF-8.
    data = msgspec.msgpack.encode(lossless(msgspec.to_builtins(journal, builtin_types=(bytes,))))
    store.remember_rollback(journal.service, data + _checksum(data))


def _checksum(data: bytes) -> bytes:
    return blake3(data).digest(_CHECKSUM)


def read_journal(store: Store, service: str) -> Journal | None:
    """Return the journal of a rollback that has not ended; None: there is none. Raises NotIntactError."""
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
        f"the journal of a rollback of {service!r} is of version {version}, and this castore knows "
        f"{_VERSION}: recover it with the castore that began it, or a newer one; if you have repaired the "
        f"state: castore recover --forget {service}"
    )


def _decoded(data: bytes) -> Journal:
    """Return a journal. Raises DecodeError, ValidationError."""
    plain = msgspec.msgpack.decode(data, type=dict[str, Any])
    parts = msgspec.convert(plain.get("parts"), list[dict[str, Any]])
    for part in parts:
        part |= {name: texts(part.get(name, {})) for name in ("settings", "memo")}
    return msgspec.convert({**plain, "parts": parts}, Journal)


def _damaged(service: str, reason: str) -> NotIntactError:
    return NotIntactError(
        f"the journal of a rollback of {service!r} is damaged ({reason}), so that it can be neither "
        f"undone nor completed: castore recover --forget {service}, then check its state, or restore a "
        f"generation: castore rollback {service} --to NUMBER"
    )


def refuse_interrupted(store: Store, service: str) -> None:
    """Raise NotIntactError if an earlier rollback of a service was interrupted or failed."""
    if store.has_begun_rollback(service):
        raise NotIntactError(unfinished(service))


def unfinished(service: str) -> str:
    """Say that a rollback of a service has not ended, and how it is ended."""
    return (
        f"an earlier rollback of {service!r} was interrupted or failed, and its state may be inconsistent: "
        f"first castore recover {service}; if that cannot succeed, or you have repaired the state: castore "
        f"recover --forget {service}"
    )
