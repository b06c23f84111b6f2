"""Programs that a generation names: only those that this machine has run for its service are run again.

Every holder of a writer key can add a generation that names any program.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from typing import TYPE_CHECKING, Any

import msgspec

from castore.errors import StorageError, UsageError
from castore.services.snapshot import engine_of, merged_origins, origin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from castore.model.generation import Origin
    from castore.services.snapshot import Source
    from castore.store import Store

    Argv = tuple[str, ...]


def remember(store: Store, service: str, sources: Mapping[str, Source]) -> None:
    """Remember on this machine the programs that a user named for a service."""
    origins = [origin(source) for source in sources.values()]
    named = {argv for one in origins for argv in _named(one).values()}
    with contextlib.suppress(StorageError):  # the snapshot is committed; only a later rollback asks for more
        known = _known(store, service)
        if not named <= known:
            store.set_known_programs(service, json.dumps(sorted(known | named)))


def trusted_origins(
    store: Store,
    service: str,
    recorded: dict[str, Origin],
    configured: dict[str, Origin],
    say: Callable[[str], None] = lambda _text: None,
) -> dict[str, Origin]:
    """Return where parts belong, as `merged_origins` does, without programs that this machine does not know.

    say: is called with each program that is left out. castore.toml or the command line may name it.
    """
    known = _known(store, service)
    found = merged_origins(recorded, configured)
    for part, one in found.items():
        if one is not recorded.get(part):
            continue  # as castore.toml says
        unknown = {key: argv for key, argv in _named(one).items() if argv not in known}
        if unknown:
            found[part] = _without(one, unknown)
        for argv in dict.fromkeys(unknown.values()):
            say(
                f"{part}: the generation names a program, but neither castore.toml nor a snapshot on this "
                f"machine does, and it is not run: {shlex.join(argv)}"
            )
    return found


def _known(store: Store, service: str) -> set[Argv]:
    try:
        return {tuple(map(str, argv)) for argv in json.loads(store.known_programs(service) or "[]")}
    except (ValueError, TypeError):
        return set()


def _named(one: Origin) -> dict[str, Argv]:
    """Return the programs of a part, and the directory of programs, by the key that names them."""
    found: dict[str, Argv] = {"dump": one.dump, "restore": one.restore}
    settings: Iterable[tuple[str, Any]] = ()
    try:
        source = engine_of(one) if one.engine else None
    except UsageError:
        source = None  # what is to be done with the part fails with this error, too
    if source is not None:
        engine = source.engine
        keys = {field.name: field.encode_name for field in msgspec.structs.fields(type(engine))}
        names = [name for name in (*engine.programs, "program_path") if name in keys]
        settings = [(keys[name], getattr(engine, name)) for name in names]
        found["password"] = getattr(getattr(engine, "password", None), "command", None) or ()
    for key, value in settings:
        found[key] = (value,) if isinstance(value, str) else tuple(value or ())
    return {key: argv for key, argv in found.items() if argv}


def _without(one: Origin, unknown: Mapping[str, Argv]) -> Origin:
    """Return a part's origin without the keys that name unknown programs."""
    left = {field: () for field in ("dump", "restore") if field in unknown}
    settings = {key: value for key, value in one.settings.items() if key not in unknown}
    if one.engine == "command":
        # What remains is in the fields that have the same names.
        return msgspec.structs.replace(one, engine="", settings={}, **left)
    return msgspec.structs.replace(one, settings=settings, **left)
