"""Preview a snapshot, part by part: nothing is stored, and no program is run."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Literal

import msgspec

from castore.content.scan.preview import preview_tree
from castore.engines.command import Command
from castore.errors import CastoreError
from castore.services.sources import EngineSource, Tree, directory_ids, rules_of
from castore.services.underway import refuse_unfinished

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.services.sources import Source


class PartPreview(msgspec.Struct):
    """What a snapshot would take as one part."""

    name: str
    kind: Literal["tree", "dump"]
    source: str
    """The path, the program, or the engine and what it dumps."""
    path: str | None = None
    size: int | None = None
    """Bytes; None: only running a program would show it."""
    files: int | None = None
    """Number of names below the top of a tree."""
    excluded: int = 0
    excluded_paths: list[bytes] = []
    unreadable: list[tuple[bytes, str]] = []
    error: str = ""
    """Why a snapshot would fail."""


def preview(sources: dict[str, Source], leave_out: Sequence[str], journals: str) -> Iterator[PartPreview]:
    """Yield a preview of each part.

    leave_out: directories that trees store empty. journals: the directory with journals of restores in place.
    """
    skip = frozenset(directory_ids(leave_out))
    for name, source in sources.items():
        if isinstance(source, Tree):
            yield _tree(name, source, skip, journals)
        else:
            yield _dump(name, source)


def _tree(name: str, source: Tree, skip: frozenset[tuple[int, int]], journals: str) -> PartPreview:
    path = os.path.abspath(source.path)
    part = PartPreview(name, "tree", path, path)
    try:
        refuse_unfinished(journals, source.path)
        preview = preview_tree(source.path, rules_of(source, skip))
    except CastoreError as error:
        part.error = str(error)
        return part
    part.size, part.files, part.unreadable = preview.size, preview.files, preview.unreadable
    part.excluded, part.excluded_paths = preview.excluded, preview.excluded_paths
    return part


def _dump(name: str, source: Source) -> PartPreview:
    if not isinstance(source, EngineSource):
        return PartPreview(name, "dump", "standard input")
    engine = source.engine
    path = engine.file_path()
    if path is None:
        program = "" if isinstance(engine, Command) else f"the dump program of {source.name} "
        return PartPreview(name, "dump", f"not run: {program}{engine.label()}".rstrip())
    part = PartPreview(name, "dump", path, path)
    try:
        info = os.stat(path)
    except OSError as error:
        part.error = f"cannot read {path}: {error.strerror}"
        return part
    part.size = info.st_size if stat.S_ISREG(info.st_mode) else None
    return part
