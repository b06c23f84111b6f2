"""Whose generations a selection means: this host's, unless another is named."""

from __future__ import annotations

from typing import TYPE_CHECKING

from castore.errors import NotFoundError
from castore.store.hosts import ALL_HOSTS, HostGroups, host_key, refuse_unknown_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.store import Store

    Predicate = Callable[[Generation], bool]


def chosen(store: Store, service: str, *, mine: Predicate | None = None) -> Predicate:
    """Return which generations of a service are those of the chosen host.

    Without a choice: this host's (mine: what belongs to it); where it has no complete one, those of the only
    other host that has any. Raises NotFoundError where several others have, or the chosen one has none.
    """
    if store.chosen_host == ALL_HOSTS:
        return lambda _one: True
    if store.chosen_host is None:
        return _own_or_only(store, service, mine or store.is_own, store.say)
    groups = HostGroups(store.newest_first(service))
    refuse_unknown_host(service, store.chosen_host, groups)
    keys = groups.named(store.chosen_host)
    return lambda one: groups.key(one) in keys


def own(store: Store, service: str) -> Predicate:
    """Return which generations of a service belong to this host, whichever is chosen, as `chosen` says."""
    try:
        return _own_or_only(store, service, store.is_own, lambda _text: None)
    except NotFoundError:
        return store.is_own


def _own_or_only(
    store: Store, service: str, mine: Predicate, say: Callable[[str], None]
) -> Predicate:
    if any(mine(one) and not one.number_only for one in store.newest_first(service)):
        return mine
    groups = HostGroups(store.newest_first(service))
    others = {groups.key(one) for one in store.newest_first(service) if not mine(one) and not one.number_only}
    names = groups.names()
    if len(others) > 1:
        known = ", ".join(sorted({names[key] for key in others}))
        raise NotFoundError(
            f"this host, {store.host.name}, has no complete generation of {service!r}, and several others "
            f"have ({known}): choose one with --host NAME, or a generation by its number"
        )
    if not others:
        return mine
    (other,) = others
    say(f"this host, {store.host.name}, has no complete generation of {service!r}: {names[other]}'s are used")
    return lambda one: groups.key(one) == other


def take_over(store: Store, target: Generation) -> None:
    """Let this host, if it has no complete generation of a service, continue what the target's host has.

    What that host adds later stays its own. Raises StorageError.
    """
    service = target.service
    if store.is_own(target) or any(
        store.is_own(one) and not one.number_only for one in store.newest_first(service)
    ):
        return
    groups = HostGroups(store.newest_first(service))
    newest = store.newest(service)
    key = groups.key(target)
    keys = {host_key(one) for one in store.newest_first(service) if groups.key(one) == key}
    store.take_over(service, keys, newest.number if newest is not None else target.number)
