"""Decide whether the programs, servers and paths that a generation records are used.

Every holder of a writer key can add a generation that names any of them. So a part is restored as
castore.toml says. Without that, it is restored as recorded only if a snapshot on this machine took it from
there, or if the user, who was shown what is recorded, consents.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from typing import TYPE_CHECKING, Any, Final

import msgspec
from blake3 import blake3

from castore.errors import StorageError
from castore.model.generation import Origin
from castore.model.odd_text import escaped, lossless
from castore.services.folders import path_of
from castore.services.sources import merged_origins

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from castore.model.generation import Generation
    from castore.store import Store

_MOST: Final = 1000
"""Number of origins that a machine remembers for a service."""
_PROGRAMS: Final = ("dump", "restore")
_NAMES: Final = ("database", "cluster", "suffix")
"""Settings that name something in a server, but neither the server nor a program."""
_SHOWN: Final = 400
_encoder: Final = msgspec.msgpack.Encoder(order="deterministic")


def remember(store: Store, service: str, origins: Mapping[str, Origin]) -> None:
    """Store on this machine where a snapshot took the parts of a service from."""
    with contextlib.suppress(StorageError):  # the snapshot is committed; a later rollback asks for consent
        known = _known(store, service)
        fresh = {part: _digest(origin) for part, origin in origins.items()}
        if all(digest in known.get(part, ()) for part, digest in fresh.items()):
            return
        for part, digest in fresh.items():
            known[part] = [*(other for other in known.get(part, ()) if other != digest), digest]
        while sum(map(len, known.values())) > _MOST and any(len(digests) > 1 for digests in known.values()):
            del max(known.values(), key=len)[0]
        store.state.set_known_origins(service, json.dumps(known, sort_keys=True))


def trusted_origins(
    store: Store,
    target: Generation,
    recorded: dict[str, Origin],
    configured: dict[str, Origin],
    say: Callable[[str], None] = lambda _text: None,
    *,
    consent: bool = False,
    drill: bool = False,
) -> dict[str, Origin]:
    """Return where parts belong, as `merged_origins` does, without origins that this machine does not trust.

    An origin is trusted if castore.toml describes the part, or if this machine took the part from there.
    Others are emptied. drill: keep the name of the engine, and what names something in a server. consent:
    trust the recorded origins of the target's parts; a part that the target does not have is never removed
    on this basis. say: called with each origin that is not used, or that is used with consent.
    """
    known = _known(store, target.service)
    origins = merged_origins(recorded, configured)
    for part, one in origins.items():
        if one is not recorded.get(part) or one == Origin(producer=one.producer):
            continue  # configured in castore.toml, or nothing is recorded
        if _digest(one) in known.get(part, ()):
            continue
        kind, shown = _described(one)
        if target.part(part) is None:
            say(f"{part}: not in the generation, and left as it is; recorded for it is {kind}: {shown}")
        elif consent:
            say(f"{part}: used as the generation records it, by --trust-recorded: {shown}")
            continue
        else:
            used = "run" if kind == "a program" else "used"
            say(
                f"{part}: the generation names {kind}, but neither castore.toml nor a snapshot on this "
                f"machine does, and it is not {used}: {shown} (describe the part in castore.toml or, if all "
                "of this is right, add --trust-recorded)"
            )
        origins[part] = _for_drill(one) if drill else Origin(producer=one.producer)
    return origins


def _known(store: Store, service: str) -> dict[str, list[str]]:
    try:
        known = json.loads(store.state.known_origins(service) or "{}")
        return {str(part): [str(digest) for digest in digests] for part, digests in known.items()}
    except (ValueError, TypeError, AttributeError):
        return {}


def _digest(one: Origin) -> str:
    """Return a hash of the origin of a part, and of how it was taken."""
    said = [one.path, one.dump, one.restore, one.exclude, one.one_file_system, one.exclude_caches]
    plain = lossless(msgspec.to_builtins([*said, one.engine, one.settings], builtin_types=(bytes,)))
    return blake3(_encoder.encode(plain)).hexdigest(16)


def _described(one: Origin) -> tuple[str, str]:
    """Return the kind of origin that is recorded for a part, and its text, for people."""
    programs = {key: argv for key in _PROGRAMS if (argv := getattr(one, key))}
    if one.engine in {"", "command"} and programs:
        text = "; ".join(f"{key} = {shlex.join(argv)}" for key, argv in programs.items())
        return "a program", _cut(text)
    path = path_of(one)
    if path and one.engine in {"", "file"}:
        leaves_out = f", without {', '.join(one.exclude)}" if one.exclude else ""
        return "a path", _cut(f"{os.fsdecode(path)}{leaves_out}")
    settings = ", ".join(f"{key} = {value!r}" for key, value in one.settings.items() if value is not None)
    return f"settings of the engine {one.engine}", _cut(settings)


def _cut(text: str) -> str:
    return escaped(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _for_drill(one: Origin) -> Origin:
    """Return the origin with which this machine's programs check a dump in a scratch directory."""
    if one.engine in {"", "command"}:
        return Origin(producer=one.producer)
    settings: dict[str, Any] = {key: one.settings[key] for key in _NAMES if key in one.settings}
    if one.engine in {"file", "sqlite"}:
        # A drill uses only the base name, for a file in the scratch directory.
        settings["path"] = f"/{os.path.basename(str(one.settings.get('path', ''))) or 'file'}"
    return Origin(engine=one.engine, settings=settings, producer=one.producer)
