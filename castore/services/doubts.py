"""Find what a rollback must not do without asking: replace state of another host, or at another path."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from castore.engines.base import settings_of
from castore.services.sources import engine_of, taker_of

if TYPE_CHECKING:
    from castore.model.generation import Generation, Origin, Part
    from castore.store import Store

_NO_PATHS: Final = frozenset(
    ("timeout", "password", "user", "options", "program-path", "maintenance-database", "run-as")
)
"""Settings of engines that do not identify the state."""
_ADDRESS: Final = frozenset({"host", "port", "socket"})
"""Settings that identify the server that has the state."""


def doubts(
    store: Store, target: Generation, recorded: dict[str, Origin], origins: dict[str, Origin]
) -> list[str]:
    """Return the reasons why a rollback may replace other state than the target's own.

    Parts that do not exist live give no reason. recorded: where the parts came from. origins: where they
    would be restored. Raises ProgramError.
    """
    reasons = []
    # A new machine has noted no revision of the service, and its servers may have other addresses.
    same = _NO_PATHS if store.state.live_revision(target.service) is not None else _NO_PATHS | _ADDRESS
    if not store.hosts.is_own(target) and any(_is_live(part, origins) for part in target.parts):
        reasons.append(
            f"{target.service}@{target.number} was taken on host {target.host}, and this is "
            f"{store.hosts.name}"
        )
    for part in target.parts:
        before, now = recorded.get(part.name), origins.get(part.name)
        paths = _different(before, now, same) if before is not None and now is not None else None
        if paths is not None and _is_live(part, origins):
            reasons.append(f"{part.name} was taken from {paths[0]}, and would be restored to {paths[1]}")
    return reasons


def _is_live(part: Part, origins: dict[str, Origin]) -> bool:
    """Whether restoring a part would replace anything."""
    found = origins.get(part.name)
    if found is None:
        return False
    if part.kind == "dump":
        source = taker_of(found)
        return source is not None and source.engine.exists()
    try:
        with os.scandir(found.path) as entries:
            return next(entries, None) is not None
    except OSError:
        return os.path.lexists(found.path)


def _different(before: Origin, now: Origin, same: frozenset[str]) -> tuple[str, str] | None:
    """Return both paths, for people, if two origins differ. same: settings that may differ."""
    old, new = engine_of(before), engine_of(now)
    if old is None or new is None:
        paths = _shown(before.path), _shown(now.path)
        return paths if before.path and now.path and before.path != now.path else None
    if old.name == new.name == "command":
        return None
    mine, other = settings_of(old.engine), settings_of(new.engine)
    if not (isinstance(old.engine, type(new.engine)) or isinstance(new.engine, type(old.engine))):
        return f"the engine {old.name}", f"the engine {new.name}"
    differing = [key for key in mine if key in other and key not in same and mine[key] != other[key]]
    if not differing:
        return None
    shown = [", ".join(f"{key} {settings[key]!r}" for key in differing) for settings in (mine, other)]
    return shown[0], shown[1]


def _shown(path: bytes) -> str:
    return ascii(os.fsdecode(path))[1:-1]
