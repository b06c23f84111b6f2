"""Find the parts of a service that castore.toml describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import UsageError
from castore.services.config import load
from castore.services.snapshot import sources_of
from castore.state.directories import home

if TYPE_CHECKING:
    from castore.services.config import Settings
    from castore.services.snapshot import Source


def described_sources(settings: Settings | None, service: str) -> dict[str, Source]:
    """Return the parts of a service as castore.toml describes them, whose programs exist.

    Raises UsageError if there are none; ConfigError if their description has mistakes.
    """
    described = settings.of(service) if settings is not None else None
    if settings is None or described is None or not described.parts:
        where = settings.path if settings is not None else "no castore.toml"
        raise UsageError(
            f"{service!r} has no parts to take: give --tree, --dump or --exec, or describe it in "
            f"castore.toml ({where} was read)"
        )
    # Load again with its programs: the programs of other services may be missing.
    load(settings.path, home=home(), programs={service}, tolerant=True).of(service)
    return sources_of(described)
