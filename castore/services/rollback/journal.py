"""The journal of a rollback: what it does to each part, and how far it is.

The journal is stored in castore's state on this machine. Every step is durable in it before the step begins.
After a kill, `recover` reads it: it reverts the rollback, unless the service was started and healthy.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final, Literal

import msgspec
from blake3 import blake3

from castore.engines import find
from castore.engines.state import EngineState  # noqa: TC001 - msgspec evaluates it
from castore.errors import NotIntactError, StorageError
from castore.model.odd_text import lossless, texts

if TYPE_CHECKING:
    from castore.store import Store

_VERSION: Final = 1
_CHECKSUM: Final = 16
"""Bytes of the checksum after the encoded journal."""


class TreeMove(msgspec.Struct):
    """A tree that is removed: it is moved to a name next to it."""

    old: str
    """The path that the tree is moved to."""
    inode: tuple[int, int] | None = None
    """Device and inode number of the directory; None: it could not be examined."""
    boot: str = ""
    """Boot id of the machine, without which the device number means nothing."""


class PartJournal(msgspec.Struct):
    """What the rollback does to one part, and how far it is."""

    name: str
    path: bytes = b""
    """Path of a tree; empty for a dump."""
    engine: str = ""
    """Engine of a dump; empty for a tree."""
    settings: dict[str, Any] = {}
    state: EngineState | None = None
    """What the engine has to remember; None for a tree. Its class is the engine's `state_type`."""
    move: TreeMove | None = None
    """Set for a tree that is removed."""
    existed: bool = True
    """Whether a tree existed before the rollback."""
    swap_begun: bool = msgspec.field(default=False, name="swapped")
    """Whether the live state may have been changed: set just before the part is swapped."""
    reverted: bool = False
    """Whether the part has its previous state again, so that it must not be touched any more."""
    keep_old: bool = False
    """Whether what was moved aside is kept, because no generation has all of it."""

    @property
    def may_be_changed(self) -> bool:
        """Whether the live state may have been changed, and has not been reverted."""
        return self.swap_begun and not self.reverted

    @property
    def paths(self) -> tuple[list[str], list[str]]:
        """The paths that the part consists of, and those that the rollback creates for it."""
        if self.state is not None:
            return self.state.live_paths, self.state.created_paths
        return [os.fsdecode(self.path)], [] if self.move is None else [self.move.old]

    @property
    def left(self) -> str:
        """What the rollback may leave if it is forgotten, for people; empty: nothing."""
        if not self.engine:
            return f".castore-aside-... in {os.fsdecode(self.path)}"
        return ", ".join(sorted(self.state.created)) if self.state is not None else ""


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
    def any_difference(self) -> bool:
        """Whether any part differed from the target."""
        return any(part.swap_begun for part in self.parts)


class _JournalVersion(msgspec.Struct):
    """The version, which is decoded first: the other fields depend on it."""

    version: int


def write_journal(store: Store, journal: Journal) -> None:
    """Write the journal durably. Raises StorageError."""
    # Paths may have bytes that are not UTF-8.
    data = msgspec.msgpack.encode(lossless(msgspec.to_builtins(journal, builtin_types=(bytes,))))
    store.state.write_rollback_journal(journal.service, data + _checksum(data))


def _checksum(data: bytes) -> bytes:
    return blake3(data).digest(_CHECKSUM)


def read_journal(store: Store, service: str) -> Journal | None:
    """Return the journal of an unfinished rollback, or None.

    Raises NotIntactError if it is damaged, or of a newer version.
    """
    try:
        data = store.state.rollback_journal(service)
        if data is None:
            return None
        data, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
        if checksum != _checksum(data):
            raise _damaged(service, "its checksum is wrong")
        version = msgspec.msgpack.decode(data, type=_JournalVersion).version
        if version == _VERSION:
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
    parts = msgspec.convert(plain.pop("parts"), list[dict[str, Any]])
    return msgspec.convert({**plain, "parts": [_decoded_part(part) for part in parts]}, Journal)


def _decoded_part(plain: dict[str, Any]) -> PartJournal:
    texts_of = {name: texts(plain.pop(name, None)) for name in ("settings", "state", "move")}
    part = msgspec.convert({**plain, "settings": texts_of["settings"] or {}}, PartJournal)
    if part.engine:
        part.state = msgspec.convert(texts_of["state"], find(part.engine).state_type)
    elif texts_of["move"] is not None:
        part.move = msgspec.convert(texts_of["move"], TreeMove)
    return part


def _damaged(service: str, reason: str) -> NotIntactError:
    return NotIntactError(
        f"the journal of a rollback of {service!r} is damaged ({reason}): the rollback can be neither undone "
        f"nor completed; run castore recover --forget {service}, then check the state of the service, or "
        f"restore a generation: castore rollback {service} --to NUMBER"
    )


def refuse_interrupted(store: Store, service: str) -> None:
    """Raise NotIntactError if an earlier rollback of a service was interrupted or failed."""
    if store.state.has_rollback_journal(service):
        raise NotIntactError(unfinished(service))


def unfinished(service: str) -> str:
    """Return the message that a rollback of a service is unfinished, with the commands that end it."""
    return (
        f"an earlier rollback of {service!r} was interrupted or failed, and its state may be inconsistent: "
        f"first castore recover {service}; if that cannot succeed, or you have repaired the state: castore "
        f"recover --forget {service}"
    )
