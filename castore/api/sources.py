"""Convert the parts that a caller passes into sources with absolute paths."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import msgspec

from castore.engines import name_of
from castore.engines.base import Engine
from castore.services.sources import EngineSource, Tree, origin
from castore.state.directories import absolute

if TYPE_CHECKING:
    from collections.abc import Mapping

    from castore.model.generation import Origin
    from castore.services.sources import Source, Stream

    AnySource = Tree | Stream | Engine[Any] | EngineSource
    AnyParts = Mapping[str, AnySource]


def sources_of(parts: AnyParts) -> dict[str, Source]:
    """Return parts with absolute paths, and engines with their names. Raises UsageError."""
    return {name: _source(one) for name, one in parts.items()}


def origins_of(parts: AnyParts | None) -> dict[str, Origin] | None:
    """Return where parts belong; None for None."""
    return None if parts is None else {name: origin(one) for name, one in sources_of(parts).items()}


def _source(part: AnySource) -> Source:
    if isinstance(part, Tree):
        return msgspec.structs.replace(part, path=absolute(os.fspath(part.path)))
    if not isinstance(part, Engine):
        return part
    given = {name: value for name in part.paths if isinstance(value := getattr(part, name), str)}
    paths = {name: absolute(value) for name, value in given.items()}
    return EngineSource(name_of(type(part)), msgspec.structs.replace(part, **paths))
