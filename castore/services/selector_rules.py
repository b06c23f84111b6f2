"""The rules of selectors: which generation of a service `latest`, a number, a revision or a time names."""

from __future__ import annotations

import datetime as dt
import re
from typing import TYPE_CHECKING

from castore.errors import NotFoundError, UsageError
from castore.model.names import revision_begins, revision_is, revision_names, short_revision
from castore.services.dates import parse_date
from castore.services.hosts import chosen, own

if TYPE_CHECKING:
    from castore.model.generation import Generation
    from castore.services.hosts import Predicate
    from castore.store import Store

_SHOWN = 5
_MAX_DIGITS = 100
"""Longer numbers name no generation; Python refuses to convert thousands of digits."""


def resolve(store: Store, service: str, selector: str) -> Generation:
    """Return the one generation of `service` that `selector` names, of those that are readable.

    A selector is one of:

    - `latest`
    - a number, or `#NUMBER`
    - a revision, `=REVISION`, or a unique beginning of a revision: its newest generation. For a path in the
      store of Guix or Nix, the base name counts as a revision, too.
    - a date or time (`dates.parse_date`): the newest generation at or before it
    - any of these with `~N`: N generations earlier; of the same revision if a revision was named

    Only numbers select pre-rollback and partial generations. Raises NotFoundError, or UsageError if several
    generations match.
    """
    chosen_host = _Chosen(store, service)
    quick = _found_at_once(store, service, selector, chosen_host)
    if quick is not None:
        return quick
    generations = store.generations.all(service)
    if not generations:
        raise unknown_service(store, service)
    by_number = _is_number(selector) and store.options.chosen_host is None
    wanted: Predicate = own(store, service) if by_number else chosen_host
    regular = [generation for generation in generations if not generation.number_only and wanted(generation)]
    try:
        return _meant(store, service, selector, generations, regular)
    except NotFoundError as error:
        hint = _hint(generations, selector) or _other_hosts(generations, regular, selector)
        raise NotFoundError(f"{error}{hint}") from None


def unknown_service(store: Store, service: str) -> NotFoundError:
    """Return the error for a service that has no generation in the store."""
    known = ", ".join(store.generations.services()) or "none"
    hint = "a service is named here, without @ and a selector; " if "@" in service else ""
    return NotFoundError(f"there is no service {service!r} in {store.location}; {hint}it holds: {known}")


class _Chosen:
    """Whether a generation is of the chosen host; determined at the first call."""

    def __init__(self, store: Store, service: str) -> None:
        self._store = store
        self._service = service
        self._found: Predicate | None = None

    def __call__(self, generation: Generation) -> bool:
        if self._found is None:
            self._found = chosen(self._store, self._service)
        return self._found(generation)


def _is_number(selector: str) -> bool:
    number = selector.removeprefix("#")
    return number.isascii() and number.isdecimal()


def _other_hosts(generations: list[Generation], regular: list[Generation], selector: str) -> str:
    """Return a hint at other hosts that have a revision which the chosen host does not have."""
    if selector == "latest":
        return ""
    seen = {generation.number for generation in regular}
    others = (
        generation
        for generation in generations
        if not generation.number_only and generation.number not in seen
    )
    names = {other.host for other in others if revision_begins(other.revision, selector.removeprefix("="))}
    return f"; other hosts have it: {', '.join(sorted(names))} (choose one with --host NAME)" if names else ""


def _hint(generations: list[Generation], selector: str) -> str:
    """Return a hint at the generations that only numbers select and that a selector could mean."""
    revision = "" if selector == "latest" else selector.removeprefix("=")
    hidden = [
        generation
        for generation in generations
        if generation.number_only and revision_begins(generation.revision, revision)
    ]
    if not hidden:
        return ""
    shown = ", ".join(
        f"{generation.number} ({'pre-rollback' if generation.pre_rollback else 'partial'})"
        for generation in hidden[:_SHOWN]
    )
    return f"; select these by number: {shown}{', ...' if len(hidden) > _SHOWN else ''}"


def _meant(
    store: Store,
    service: str,
    selector: str,
    generations: list[Generation],
    regular: list[Generation],
) -> Generation:
    """Return what `selector` names, as `resolve` does; regular: those that not only numbers select."""
    counted = re.fullmatch(r"(.+)~([0-9]{0,9})", selector, re.DOTALL)
    if counted and not _has_revision(regular, selector.removeprefix("=")):
        return _earlier(store, service, counted[1], int(counted[2] or "1"))
    if selector.startswith("#"):
        return _numbered(generations, service, selector[1:])
    if selector.startswith("="):
        return _of_revision(regular, service, selector[1:])
    if selector == "latest":
        return _newest(regular, f"{service!r} has no complete generation")
    if selector.isascii() and selector.isdigit():
        return _number_or_revision(generations, regular, service, selector)
    if _has_revision(regular, selector):
        return _of_revision(regular, service, selector)
    if (before := parse_date(selector)) is not None:
        early = [generation for generation in regular if generation.time <= before]
        return _newest(early, f"no generation of {service!r} is as old as {selector}")
    return _of_prefix(regular, service, selector)


def _earlier(store: Store, service: str, selector: str, steps: int) -> Generation:
    """Return the generation that is `steps` generations before the one that `selector` names."""
    named = resolve(store, service, selector)
    generations = store.generations.all(service)
    groups = store.hosts.groups(generations)
    host = groups.key(named)
    # This host's generations include those that it took over from another host.
    same = store.hosts.is_own if store.hosts.is_own(named) else lambda one: groups.key(one) == host
    earlier = [g for g in generations if not g.number_only and g.number <= named.number and same(g)]
    what = f"generation {named.number}"
    if _names_revision(selector, named):
        earlier = [generation for generation in earlier if generation.revision == named.revision]
        what += f" that have revision {short_revision(named.revision)}"
    if named.number_only:
        earlier.append(named)
    earlier.sort(key=lambda generation: generation.number, reverse=True)
    if steps < len(earlier):
        return earlier[steps]
    raise NotFoundError(
        f"there is no generation {selector}~{steps} of {service!r}: it has {len(earlier) - 1} before {what}; "
        f"'castore log {service}' lists them"
    )


def _names_revision(selector: str, generation: Generation) -> bool:
    """Whether `selector`, which names a generation, is a revision or the beginning of one."""
    if selector.startswith("="):
        return True
    by_number = selector.lstrip("#").lstrip("0") == str(generation.number)
    return not by_number and selector != "latest" and revision_begins(generation.revision, selector)


def _found_at_once(store: Store, service: str, selector: str, chosen_host: Predicate) -> Generation | None:
    """Return what is meant if the index can answer without reading every generation of the service."""
    if selector == "latest":
        newest_first = (
            generation for generation in store.generations.newest_first(service) if not generation.number_only
        )
        return next((generation for generation in newest_first if chosen_host(generation)), None)
    if selector.startswith("#") and (number := selector[1:]).isascii() and number.isdecimal():
        return store.generations.get(service, int(number)) if len(number) <= _MAX_DIGITS else None
    revision = selector.removeprefix("=")
    if selector.startswith("=") or not (selector.isascii() and selector.isdigit()):
        numbers = store.index.generations.numbers_by_revision(service, revision)
        matching = (store.generations.get(service, number) for number in numbers)
        exact = (
            generation
            for generation in matching
            if generation is not None and generation.revision == revision
        )
        return next((generation for generation in exact if chosen_host(generation)), None)
    return None


def _newest(generations: list[Generation], otherwise: str) -> Generation:
    if not generations:
        raise NotFoundError(otherwise)
    return max(generations, key=lambda generation: generation.number)


def _numbered(generations: list[Generation], service: str, text: str) -> Generation:
    numbered = [g for g in generations if str(g.number) == text.lstrip("0")]
    newest = max(generation.number for generation in generations)
    return _newest(numbered, f"there is no generation {text} of {service!r}; the newest is {newest}")


def _of_revision(generations: list[Generation], service: str, revision: str) -> Generation:
    """Return the newest generation of exactly this revision, or of the store path with this base name."""
    exact = [generation for generation in generations if generation.revision == revision]
    named = exact or [generation for generation in generations if revision_is(generation.revision, revision)]
    return _only_revision(named, generations, service, revision)


def _has_revision(generations: list[Generation], revision: str) -> bool:
    return any(revision_is(generation.revision, revision) for generation in generations)


def _number_or_revision(
    generations: list[Generation], regular: list[Generation], service: str, text: str
) -> Generation:
    """Return the generation with a number, or of a revision that is a number.

    Raises UsageError if both exist and differ: a wrong guess would restore the wrong state.
    """
    named = [generation for generation in regular if generation.revision == text]
    numbered = [generation for generation in generations if str(generation.number) == text.lstrip("0")]
    if named and numbered and numbered[0].revision != text:
        newest = _newest(named, "")
        of = short_revision(numbered[0].revision) or "-"
        raise UsageError(
            f"{text} is a generation of {service!r} (of revision {of}) and a revision "
            f"(its newest generation is {newest.number}): write #{text} or ={text}"
        )
    if numbered:
        return numbered[0]
    if named:
        return _newest(named, "")
    if any(revision_begins(generation.revision, text) for generation in regular):
        return _of_prefix(regular, service, text)
    return _numbered(generations, service, text)


def _of_prefix(generations: list[Generation], service: str, prefix: str) -> Generation:
    exact = [generation for generation in generations if revision_is(generation.revision, prefix)]
    matching = exact or [
        generation for generation in generations if revision_begins(generation.revision, prefix)
    ]
    return _only_revision(matching, generations, service, prefix)


def _only_revision(
    matching: list[Generation], generations: list[Generation], service: str, prefix: str
) -> Generation:
    """Return the newest of `matching`.

    Raises UsageError if they are of several revisions, NotFoundError if there are none.
    """
    revisions = sorted({generation.revision for generation in matching})
    if len(revisions) > 1:
        shown = ", ".join(revisions[:_SHOWN]) + (", ..." if len(revisions) > _SHOWN else "")
        raise UsageError(f"{prefix!r} begins several revisions of {service!r}: {shown}")
    return _newest(matching, _no_revision(generations, service, prefix))


def _no_revision(generations: list[Generation], service: str, revision: str) -> str:
    """Return the message that a revision does not exist, with the one that is most likely meant."""
    known = {generation.revision: generation for generation in reversed(generations)}
    known.pop("", None)
    if not known:
        return f"no generation of {service!r} has revision {revision!r}: none of them has a revision"

    def shared(name: str) -> int:
        return max(_shared(revision_name, revision) for revision_name in revision_names(name))

    nearest = max(known, key=lambda name: (shared(name), known[name].number))
    when = dt.datetime.fromtimestamp(known[nearest].time / 1e9).astimezone()
    return (
        f"no generation of {service!r} has revision {revision!r}; nearest: {short_revision(nearest)} "
        f"({when:%Y-%m-%d %H:%M})"
    )


def _shared(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
