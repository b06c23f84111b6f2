"""Results of a verification, as text and as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from castore.cli import formatting
from castore.cli.document import times

if TYPE_CHECKING:
    from castore.maintenance.verify import Verification


def plain_findings(found: Verification) -> dict[str, Any]:
    """Return what a verification found for JSON."""
    import msgspec

    fields = msgspec.to_builtins(found)
    del fields["damaged_packs"]
    resumed = times("resumed", found.resumed or None)
    affected = [
        {**hit, "paths": [formatting.printable(path) for path in hit["paths"]]} for hit in fields["affected"]
    ]
    return {**fields, **resumed, "affected": affected, "sound": found.sound}


def damage_summary(found: Verification) -> str:
    """Return the line that counts the damage and names the next command."""
    counts = (
        f"{formatting.count(len(found.damage), 'object or chunk is', 'objects or chunks are')} damaged, "
        f"{formatting.count(len(found.affected), 'part')} of generations cannot be restored completely; "
    )
    if found.damage:
        return counts + "'castore repair' deletes damaged objects and salvages intact records"
    return counts + "the next snapshots store again what still exists; 'castore forget' deletes generations"


def print_findings(found: Verification) -> None:
    """Print each damaged object and each part that it affects."""
    for line in found.damage:
        print(f"damaged: {line}")
    for hit in found.affected:
        print(f"affected: {hit.service}@{hit.number}:{hit.part}: {hit.reason}")
        for path in hit.paths:
            print(f"    {formatting.printable(path)}")
        if hit.more:
            print(f"    and {hit.more} more")
