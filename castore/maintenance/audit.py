"""List what each machine and admin has added to a store, by the keys that signed it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import msgspec

from castore.errors import DamageError, FormatError
from castore.store.format.envelope import Refusal

if TYPE_CHECKING:
    from castore.model.generation import Generation
    from castore.store import Store


class Added(msgspec.Struct):
    """The objects that one key signed, counted."""

    key: str
    """Its public half, in hexadecimal."""
    kind: str
    """`writer`, `admin` or `former admin`."""
    host: str
    since: int
    """When it was certified: nanoseconds since 1970; 0 if that is not known."""
    roles: tuple[str, ...] = ()
    revoked: int = 0
    """When it was revoked: nanoseconds since 1970; 0 if it is valid."""
    replaced: bool = False
    generations: int = 0
    first: int = 0
    """Time of its first generation: nanoseconds since 1970, by the clock of that machine."""
    last: int = 0
    sessions: int = 0
    packs: int = 0
    bytes: int = 0
    """Total length of its packs."""


class Audit(msgspec.Struct):
    """What is known about the writers of a store."""

    added: list[Added]
    former: int
    """Number of objects that are accepted under replaced writer keys."""
    refused: dict[str, str]
    """Objects that are not accepted, by name, with the reason."""


def audit(store: Store) -> Audit:
    """Return what each key has added. First brings the index up to date.

    Raises StorageError, StaleStoreError.
    """
    store.sync(report_older=True)
    config = store.keys.config
    all_added = [
        Added(
            writer.key.hex(),
            "writer",
            writer.host,
            writer.since,
            writer.roles,
            writer.revoked,
            writer.replaced,
        )
        for writer in config.writers
    ]
    all_added += [Added(admin.key.hex(), "admin", admin.label, 0) for admin in config.admins]
    all_added += [Added(key.hex(), "former admin", "", 0) for key in config.previous_admins]
    by_key = {added.key: added for added in all_added}
    for generation in store.generations.iterate():
        _count(by_key[generation.host_id], generation)
    sessions: Counter[str] = Counter()
    for owner in store.index.packs.owners():
        added = by_key.get(owner.signer.hex())
        if added is not None:
            added.packs += 1
            added.bytes += owner.length
    for writer in store.keys.session_writers():
        sessions[writer.hex()] += 1
    for key, count in sessions.items():
        if key in by_key:
            by_key[key].sessions = count
    refused = {name: reason for name, reason in store.damaged.items() if isinstance(reason, Refusal)}
    return Audit(all_added, _former(store), {**store.keys.passed_over, **refused})


def _count(added: Added, generation: Generation) -> None:
    added.generations += 1
    added.first = min(added.first or generation.time, generation.time)
    added.last = max(added.last, generation.time)


def _former(store: Store) -> int:
    try:
        return len(store.keys.writer_key.listed()) if store.keys.writer_key.previous_keys else 0
    except (DamageError, FormatError):
        return 0
