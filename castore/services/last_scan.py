"""What earlier generations of a service have of a part: the next snapshot or rollback is compared with it."""

from __future__ import annotations

import contextlib
import itertools
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.content.scan.cache_reader import ScanCacheReader
    from castore.content.scan.rules import ScanRules
    from castore.model.generation import Part
    from castore.store import Store

_LOOKED_AT: Final = 100
"""How many generations are searched for the last state of a part: partial ones may lack it."""


@contextlib.contextmanager
def last_scan(
    store: Store, service: str, part: str, path: str, rules: ScanRules
) -> Iterator[ScanCacheReader | None]:
    """Open the scan cache that the last snapshot of a service made of the tree at `path` with these rules.

    Yield None if this machine has none.
    """
    from castore.content.scan.cache import scan_path
    from castore.content.scan.cache_reader import ScanCacheReader

    found = last_part(store, service, part)
    root = found.content if found is not None and found.kind == "tree" else None
    old = None
    with contextlib.suppress(OSError):
        old = ScanCacheReader.open(store, scan_path(store, service, part), root, rules.digest(os.stat(path)))
    with old if old is not None else contextlib.nullcontext():
        yield old


def last_part(store: Store, service: str, name: str) -> Part | None:
    """Return a part in this host's newest generation that has it, which the next one is compared with."""
    newest_first = store.generations.newest_first(service)
    newest = [
        generation for generation in itertools.islice(newest_first, _LOOKED_AT) if generation.part(name)
    ]
    found = next(filter(store.hosts.is_own, newest), newest[0] if newest else None)
    return None if found is None else found.part(name)


def expected_size(store: Store, service: str, name: str) -> int:
    """Return the size of a part in this host's last intact generation that has it; 0 if none has."""
    newest = itertools.islice(store.generations.newest_first(service), _LOOKED_AT)
    for generation in filter(store.hosts.is_own, newest):
        if not generation.interrupted and (part := generation.part(name)) is not None:
            return part.size
    return 0
