"""Handle parts whose files are inside the tree of another part: that tree leaves them out."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from castore.content.scan.exclude import Exclude
from castore.errors import ConfigError
from castore.services.config import TreePart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from castore.engines.base import Engine
    from castore.services.config import PartSettings, Service


def with_endings(paths: Iterable[str], endings: tuple[str, ...]) -> list[str]:
    """Return paths, and for each the files next to it with these endings, which belong to it."""
    return [path + ending for path in paths for ending in ("", *endings)]


def configured_path(engine: Engine[Any]) -> str | None:
    """Return the real path of a part that is a file, as castore.toml says, or None."""
    path = engine.file_path()
    return None if path is None else os.path.realpath(path)


def below(top: str, paths: Iterable[str]) -> frozenset[bytes]:
    """Return those of the paths that are inside the tree `top`, relative to it."""
    start = os.path.realpath(top).rstrip("/") + "/"
    resolved = (
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths
    )
    return frozenset(os.fsencode(path.removeprefix(start)) for path in resolved if path.startswith(start))


def refuse_same(paths_of: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError if two parts have the same path. paths_of: the paths of each part."""
    owner: dict[str, str] = {}
    for name, paths in paths_of.items():
        for path in map(os.path.realpath, paths):
            if owner.setdefault(path, name) != name:
                raise ConfigError(
                    f"the parts {owner[path]!r} and {name!r} are both {path}: nothing was changed; remove "
                    "one of them from castore.toml"
                )


def refuse_overlaps(service: Service, name: str) -> None:
    """Raise ConfigError if another part of a service is inside its tree `name`, and is taken twice."""
    tree = service.parts[name].source
    if not isinstance(tree, TreePart):
        return
    for other, settings in service.parts.items():
        path = _path_of(settings)
        if other == name or path is None:
            continue
        if path == os.path.realpath(tree.path):
            raise ConfigError(f"the part {other!r} is the same directory, {tree.path}: remove one of them")
        for relative in below(tree.path, [path]):
            if not _leaves_out(tree, relative, is_dir=isinstance(settings.source, TreePart)):
                ending = "/" if isinstance(settings.source, TreePart) else "*"
                pattern = f"/{os.fsdecode(relative)}{ending}"
                raise ConfigError(
                    f"the part {other!r} is inside this tree, and would be taken twice: exclude it with "
                    f"exclude = [{pattern!r}]"
                )


def _path_of(settings: PartSettings) -> str | None:
    own = settings.source
    return os.path.realpath(own.path) if isinstance(own, TreePart) else configured_path(own)


def _leaves_out(tree: TreePart, relative: bytes, *, is_dir: bool) -> bool:
    """Whether a tree's patterns match a path, or a directory that it is in."""
    if not tree.exclude:
        return False
    exclude = Exclude(tree.exclude, tree.path)
    parts = relative.split(b"/")
    return any(
        exclude.matches(b"/".join(parts[:count]), is_dir=is_dir or count < len(parts))
        for count in range(1, len(parts) + 1)
    )
