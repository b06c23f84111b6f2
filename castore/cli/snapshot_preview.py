"""The option `snapshot --dry-run`: print what a snapshot would take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from castore.cli import formatting
from castore.cli.options import print_json

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.cli.service_results import ServiceResults
    from castore.services.preview import PartPreview
    from castore.services.sources import Source


_SHOWN = 10


def show_preview(
    context: CliContext,
    service: str,
    sources: dict[str, Source],
    revision: str | None,
    results: ServiceResults,
    *,
    as_json: bool,
) -> None:
    """Print what a snapshot of a service would take. Raises UsageError if it would fail."""
    from castore.errors import UsageError
    from castore.services.preview import preview
    from castore.state.directories import machine_paths

    filed = _revision(context, service, revision)
    excluded = [context.store_address(), *context.excluded_paths()]
    parts = list(preview(sources, excluded, machine_paths().journals))
    plain = [_plain(part) for part in parts]
    entry = {"service": service, "revision": filed, "dry_run": True, "parts": plain}
    results.entries.append(entry)
    if as_json:
        if not results.collect_errors:
            print_json(entry)
    else:
        revised = f" of revision {filed}" if filed else ""
        print(f"{service}{revised}: nothing was stored, no dump program was run")
        for part in parts:
            _print(part)
    if failing := [part for part in parts if part.error]:
        reasons = [f"the part {part.name!r} cannot be taken: {part.error}" for part in failing]
        raise UsageError("; ".join(reasons))


def _revision(context: CliContext, service: str, revision: str | None) -> str:
    """Return the revision that a generation would get."""
    from castore.errors import NotFoundError
    from castore.services.state_revision import filed_under

    configured = context.configured_revision(service)
    try:
        with context.open_internal() as store:
            return filed_under(store, service, revision, configured)[0]
    except NotFoundError:  # the first snapshot creates the store
        return revision or configured or ""


def _plain(part: PartPreview) -> dict[str, Any]:
    return {
        **msgspec.structs.asdict(part),
        "excluded_paths": [formatting.printable(path) for path in part.excluded_paths],
        "unreadable": [
            {"path": formatting.printable(path), "reason": reason} for path, reason in part.unreadable
        ],
    }


def _print(part: PartPreview) -> None:
    facts = []
    if part.files is not None:
        facts.append(formatting.count(part.files, "file"))
    if part.size is not None:
        facts.append(formatting.size(part.size))
    if part.excluded:
        facts.append(f"{part.excluded} excluded")
    if part.unreadable:
        facts.append(f"{len(part.unreadable)} unreadable")
    said = f": {', '.join(facts)}" if facts else ""
    print(f"  {part.name}  {part.kind}  {formatting.one_line(part.source)}{said}")
    for path in part.excluded_paths[:_SHOWN]:
        print(f"    excluded: {formatting.printable(path)}")
    if part.excluded > _SHOWN:
        print(f"    and {part.excluded - _SHOWN} more excluded")
    for path, reason in part.unreadable[:_SHOWN]:
        print(f"    unreadable: {formatting.printable(path)}: {reason}")
    if len(part.unreadable) > _SHOWN:
        print(f"    and {len(part.unreadable) - _SHOWN} more unreadable")
