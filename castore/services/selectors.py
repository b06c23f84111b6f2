"""Resolve `SERVICE@SELECTOR:PART/PATH`, the names of everything that is stored."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec

from castore.errors import (
    DamageError,
    FormatError,
    NotFoundError,
    ObjectMissingError,
    RevokedKeyError,
    UsageError,
)
from castore.model.counting import count as counted
from castore.model.names import check_name, revision_begins
from castore.services.dates import parse_date
from castore.services.hosts import chosen
from castore.services.selector_rules import resolve
from castore.store.format.generation import MAX_JUMP, open_generation
from castore.store.format.names import split_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation, Part
    from castore.store import Store


class Selection(msgspec.Struct, frozen=True):
    """A generation, optionally one of its parts, and optionally a path in that part."""

    generation: Generation
    part: Part | None = None
    path: str = ""


def split(text: str) -> tuple[str, str]:
    """Split `SERVICE@REST` into (service, rest). Raises UsageError."""
    service, at, rest = text.partition("@")
    if not at or not rest:
        raise UsageError(
            f"{text!r} names no generation: write SERVICE@NUMBER, SERVICE@REVISION, "
            "SERVICE@latest or SERVICE@DATE"
        )
    return check_name("service", service), rest


def select(store: Store, text: str) -> Selection:
    """Return what `text` names. Raises NotFoundError, UsageError, DamageError.

    Revisions and times may contain colons. `:PART/PATH` is split off at the first colon, from the left, for
    which the generation and the part exist.
    """
    service, rest = split(text)
    first_error: NotFoundError | UsageError | None = None
    for selector, part_name, path in _readings(rest):
        try:
            generation = find(store, service, selector)
            if part_name is None:
                return Selection(generation)
            return Selection(generation, part_of(generation, part_name), path)
        except (NotFoundError, UsageError) as error:
            if part_name is None or not _goes_on(store, service, selector, part_name):
                first_error = first_error or error
    raise first_error or NotFoundError(f"{text!r} names nothing stored")


def _goes_on(store: Store, service: str, selector: str, part_name: str) -> bool:
    """Whether the colon after `selector` more likely belongs to a revision than to a part."""
    generations = store.generations.all(service)
    begun = selector.removeprefix("=") + ":"
    return any(revision_begins(generation.revision, begun) for generation in generations) and not any(
        generation.part(part_name) for generation in generations
    )


def _readings(rest: str) -> Iterator[tuple[str, str | None, str]]:
    for match in re.finditer(":", rest):
        part, _, path = rest[match.end() :].partition("/")
        if part:
            yield rest[: match.start()], part, path
    yield rest, None, ""


def part_of(generation: Generation, name: str) -> Part:
    """Return a part of a generation by its name. Raises NotFoundError."""
    part = generation.part(name)
    if part is None:
        names = ", ".join(part.name for part in generation.parts)
        raise NotFoundError(
            f"generation {generation.service}@{generation.number} has no part {name!r}; it has {names}"
        )
    return part


def find(store: Store, service: str, selector: str) -> Generation:
    """Return the one generation of `service` that `selector` names, by the rules of `resolve`.

    Raises NotFoundError, UsageError. Raises DamageError or FormatError if a newer generation that cannot be
    read may have been meant: an older one is never taken instead.
    """
    try:
        found = resolve(store, service, selector)
    except NotFoundError:
        _refuse_damaged(store, service, 0)
        raise
    number = selector.removeprefix("#")
    if number.lstrip("0") != str(found.number):
        _refuse_damaged(store, service, found.number)
    confirmed = store.generations.confirmed(found)
    # In another copy of the store, the selector may name another generation.
    return confirmed if confirmed == found else resolve(store, service, selector)


def find_range(store: Store, service: str, selector: str) -> list[Generation]:
    """Return the generations that `selector` names: one, or for `3-7` the chosen host's with those numbers.

    If a revision begins with `3-7`, the revision is meant. Raises as `find` does.
    """
    numbers = re.fullmatch(r"#?([0-9]{1,10})-#?([0-9]{1,10})", selector)
    if numbers is None or parse_date(selector) is not None:
        return [find(store, service, selector)]
    generations = store.generations.all(service)
    if any(revision_begins(generation.revision, selector) for generation in generations) or not generations:
        return [find(store, service, selector)]
    first, last = int(numbers[1]), int(numbers[2])
    if first > last:
        raise UsageError(f"{service}@{selector}: the range ends before it begins; write {last}-{first}")
    within = [generation for generation in generations if first <= generation.number <= last]
    matching = list(filter(chosen(store, service), within))
    if within and len(matching) < len(within):
        of = store.hosts.groups(within).hosts()
        store.options.say(
            f"{service}@{selector}: of {counted(len(within), 'generation')}, "
            f"{len(within) - len(matching)} of other hosts left out "
            f"(hosts: {', '.join(sorted(of))}; choose with --host)"
        )
    if not matching:
        raise NotFoundError(
            f"no generation of {service!r} has a number from {first} to {last}; "
            f"'castore log {service}' lists them"
        )
    return [store.generations.confirmed(generation) for generation in matching]


def _refuse_damaged(store: Store, service: str, older: int) -> None:
    """Raise the error of a damaged record of the service with a number above `older`, if there is one.

    Records with a signature that is not accepted are ignored, and so are numbers out of sequence.
    """
    if not store.damaged:
        return
    tags = store.keys.writer_key.tags(service)
    highest = store.generations.next_number(service) + MAX_JUMP
    for name in sorted(store.damaged, key=lambda name: name[-10:], reverse=True):
        tag, number = split_generation(name)
        if tag not in tags or not older < number <= highest:
            continue
        try:
            open_generation(name, store.storage.get(name), store.keys.writer_key)
        except ObjectMissingError:
            continue
        except (DamageError, FormatError) as error:
            # An attacker may have replaced a generation that had this name before, to hide it.
            if isinstance(error, RevokedKeyError) and name not in store.keys.writer_key.listed():
                continue
            hint = "it may be the generation that is meant; select another one by its number"
            raise type(error)(f"{error} ({hint})") from None


def undo_of(store: Store, service: str) -> Generation:
    """Return the pre-rollback generation of a service's last rollback. Raises NotFoundError."""
    number = store.state.undo_number(service)
    generation = store.generations.get(service, number) if number is not None else None
    if generation is None:
        raise NotFoundError(
            f"nothing to undo: the last rollback of {service!r} here took no pre-rollback generation"
        )
    return store.generations.confirmed(generation)
