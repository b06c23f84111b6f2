"""Select generations by host: this host's, unless another one is named."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from castore.errors import NotFoundError, UsageError
from castore.model.hosts import ALL_HOSTS, HostGroups, refuse_unknown_host

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.model.generation import Generation
    from castore.store import Store

    Predicate = Callable[[Generation], bool]


def chosen(store: Store, service: str) -> Predicate:
    """Return a predicate for the generations of the chosen host.

    Without a choice: this host's, or, if it has no complete one, those of the only other host that has some.
    Raises NotFoundError if several other hosts have some, or if the chosen host has none.
    """
    if store.options.chosen_host == ALL_HOSTS:
        return lambda _one: True
    if store.options.chosen_host is None:
        return _own_or_only(store, service, store.options.say)
    return _of_named_host(store, service, store.options.chosen_host)


def listed(store: Store, service: str) -> Predicate:
    """Return a predicate for the generations that a list shows: all, unless a host is chosen.

    Raises NotFoundError if the chosen host has none.
    """
    return chosen(store, service) if store.options.chosen_host is not None else lambda _one: True


def removable(store: Store, service: str) -> Predicate:
    """Return a predicate for the generations that a removal may select: this host's, or the named host's.

    Unlike `chosen`, it never selects another host's generations unless that host is named. Raises
    NotFoundError. Whether this machine may remove them is checked by `castore.services.prune`.
    """
    if store.options.chosen_host is not None:
        return chosen(store, service)
    if not any(map(store.hosts.is_of_this_host, store.generations.all(service))):
        names = ", ".join(sorted(groups_of(store, service).hosts()))
        store.options.say(
            f"this host, {store.hosts.name}, has no generation of {service!r}: nothing is removed; choose a "
            f"host with --host NAME ({names})"
        )
    return store.hosts.is_of_this_host


def _of_named_host(store: Store, service: str, name: str) -> Predicate:
    groups = groups_of(store, service)
    refuse_unknown_host(service, name, groups)
    keys = groups.named(name)
    if len(keys) > 1:
        known = ", ".join(sorted(keys))
        raise UsageError(
            f"several hosts of {service!r} have had the name {name!r}: {known}; choose one by its id"
        )
    return lambda one: groups.key(one) in keys


def groups_of(store: Store, service: str) -> HostGroups:
    """Return the hosts of a service."""
    return store.hosts.groups(store.generations.newest_first(service))


def shown(store: Store, service: str) -> Predicate:
    """Return a predicate for the generations that a search reads: as `chosen`, or all if ambiguous."""
    try:
        return chosen(store, service)
    except NotFoundError:
        if store.options.chosen_host is not None:
            raise
        return lambda _one: True


def note_taken(store: Store, service: str, number: int) -> None:
    """Record the number of a generation that this machine takes; report another machine with the same key.

    Raises StorageError.
    """
    last, key = store.state.last_taken(service), store.hosts.current.id
    newer = itertools.takewhile(lambda one: one.number > last, store.generations.newest_first(service))
    others = [generation.number for generation in newer if generation.host_id == key]
    if others and last:
        store.options.say(
            f"{service}@{others[0]} is signed with the key of this host, {store.hosts.name}, but was taken "
            "by another machine with a copy of that key (for example, a clone of one image): give that "
            "machine its own key with 'castore key adopt --new-key --host NAME' there"
        )
    store.state.set_last_taken(service, number)


def own(store: Store, service: str) -> Predicate:
    """Return a predicate for the generations of this host: as `chosen`, but ignoring --host."""
    try:
        return _own_or_only(store, service, lambda _text: None)
    except NotFoundError:
        return store.hosts.is_own


def _own_or_only(store: Store, service: str, say: Callable[[str], None]) -> Predicate:
    mine = store.hosts.is_own
    if any(
        mine(generation) and not generation.number_only
        for generation in store.generations.newest_first(service)
    ):
        return mine
    groups = groups_of(store, service)
    newest_first = store.generations.newest_first(service)
    others = {
        groups.key(generation)
        for generation in newest_first
        if not mine(generation) and not generation.number_only
    }
    if len(others) > 1:
        known = ", ".join(sorted(others))
        raise NotFoundError(
            f"this host, {store.hosts.name}, has no complete generation of {service!r}, but several others "
            f"have ({known}): choose one with --host NAME, or a generation by its number"
        )
    if not others:
        return mine
    (other,) = others
    say(f"this host, {store.hosts.name}, has no complete generation of {service!r}: {other}'s are used")
    return lambda one: groups.key(one) == other


def take_over(store: Store, target: Generation) -> None:
    """Take over the generations of the target's host, if this host has no complete one of the service.

    Generations that the other host adds later remain its own. Raises StorageError.
    """
    service = target.service
    if store.hosts.is_own(target) or any(
        store.hosts.is_own(generation) and not generation.number_only
        for generation in store.generations.newest_first(service)
    ):
        return
    groups = groups_of(store, service)
    newest = store.generations.newest(service)
    key = groups.key(target)
    store.state.take_over(service, {key}, newest.number if newest is not None else target.number)
