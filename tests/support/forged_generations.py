"""Generations as somebody with a writer key can write them: with names, paths and counts that no castore writes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from castore.model import generation as model
from castore.services import part_writer
from tests.support.stores import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Details, Generation
    from castore.store import Store


def forge(
    store: Store,
    service: str,
    sources: dict[str, Any],
    change: Callable[[Generation], Generation] = lambda one: one,
    details: Callable[[Details], Details] = lambda one: one,
    **options: Any,
) -> Generation:
    """Take a generation, and commit what `change` and `details` make of it, without any check."""
    commit = store.generations.commit
    kept: list[Generation] = []

    def encode(record: Details) -> bytes:
        return model.encode(details(record))

    def committed(one: Generation) -> None:
        kept.append(change(one))
        commit(kept[-1])

    with ExitStack() as stack:
        stack.enter_context(patch.object(model, "_check", lambda _record: None))
        stack.enter_context(patch.object(model, "MAX_DETAILS", 1 << 40))
        stack.enter_context(patch.object(part_writer, "encode", encode))
        stack.enter_context(patch.object(store.generations, "commit", committed))
        take_snapshot(store, service, sources, **options)
    return kept[0]
