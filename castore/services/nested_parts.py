"""Parts that lie in the tree of another part: what of it a tree leaves to them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from castore.content.scan.exclude import Exclude
from castore.errors import ConfigError
from castore.services.config import TreePart

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from castore.engines.base import Engine, Memo
    from castore.services.config import PartSettings, Service

_LIVE: Final = ("path", "live")
_MADE: Final = ("new", "old")


def live_paths(memo: Memo) -> list[str]:
    """Return where a part lies, if that is in files, as the memo of its roll-back says."""
    return [memo[key] for key in _LIVE if os.path.isabs(memo.get(key, ""))]


def made_paths(memo: Memo, beside: tuple[str, ...] = ()) -> list[str]:
    """Return what a roll-back of a part may make; beside: of its engine."""
    return with_endings([memo[key] for key in _MADE if os.path.isabs(memo.get(key, ""))], beside)


def with_endings(paths: Iterable[str], beside: tuple[str, ...]) -> list[str]:
    """Return paths, and what lies beside them and belongs to them."""
    return [path + ending for path in paths for ending in ("", *beside)]


def configured_path(engine: Engine) -> str | None:
    """Return where a part lies, as far as castore.toml says."""
    path = getattr(engine, "path", None)
    return os.path.realpath(path) if isinstance(path, str) else None


def below(top: str, paths: Iterable[str]) -> frozenset[bytes]:
    """Return which paths lie in the tree `top`, relative to it."""
    start = os.path.realpath(top).rstrip("/") + "/"
    found = (os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)) for path in paths)
    return frozenset(os.fsencode(path.removeprefix(start)) for path in found if path.startswith(start))


def refuse_same(places: Mapping[str, Iterable[str]]) -> None:
    """Raise ConfigError where two parts lie in the same place; places: the paths of each."""
    owner: dict[str, str] = {}
    for name, paths in places.items():
        for path in map(os.path.realpath, paths):
            if owner.setdefault(path, name) != name:
                raise ConfigError(
                    f"the parts {owner[path]!r} and {name!r} are both {path}: nothing was touched; take one "
                    "of them out of castore.toml"
                )


def refuse_overlaps(service: Service, name: str) -> None:
    """Raise ConfigError where other parts of a service lie in its tree `name`, and are taken twice."""
    tree = service.parts[name].source
    if not isinstance(tree, TreePart):
        return
    for other, settings in service.parts.items():
        path = _path_of(settings)
        if other == name or path is None:
            continue
        if path == os.path.realpath(tree.path):
            raise ConfigError(f"the part {other!r} is the same {tree.path}")
        for relative in below(tree.path, [path]):
            if not _leaves_out(tree, relative, is_dir=isinstance(settings.source, TreePart)):
                ending = "/" if isinstance(settings.source, TreePart) else "*"
                pattern = f"/{os.fsdecode(relative)}{ending}"
                raise ConfigError(
                    f"the part {other!r} lies in this tree, and would be taken twice: leave it to that, with "
                    f"exclude = [{pattern!r}]"
                )


def _path_of(settings: PartSettings) -> str | None:
    own = settings.source
    return os.path.realpath(own.path) if isinstance(own, TreePart) else configured_path(own)


def _leaves_out(tree: TreePart, relative: bytes, *, is_dir: bool) -> bool:
    """Whether patterns match a path in a tree, or a folder that it is in."""
    if not tree.exclude:
        return False
    exclude = Exclude(tree.exclude, tree.path)
    parts = relative.split(b"/")
    return any(
        exclude.matches(b"/".join(parts[:count]), is_dir=is_dir or count < len(parts))
        for count in range(1, len(parts) + 1)
    )
