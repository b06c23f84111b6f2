"""Decide which generations are kept, and by which rule.

Rules count the generations of each host separately, and only those with a plausible time. A host that
forges times, or floods the store, cannot displace another host's generations. A clock that ran backwards or
ahead costs space, not history.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Final, NamedTuple

from castore.model.hosts import HostGroups, host_key
from castore.services.config import parse_span

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from castore.model.generation import Generation
    from castore.services.config import Keep

_SECOND: Final = 10**9
_AHEAD: Final = 3600 * _SECOND
"""Nanoseconds that another machine's clock may be ahead of this one's."""

_BUCKETS: Final[dict[str, Callable[[dt.datetime], tuple[int, ...]]]] = {
    "hourly": lambda t: (t.year, t.month, t.day, t.hour),
    "daily": lambda t: (t.year, t.month, t.day),
    "weekly": lambda t: tuple(t.isocalendar()[:2]),
    "monthly": lambda t: (t.year, t.month),
    "yearly": lambda t: (t.year,),
}

Rules = dict[int, list[str]]
"""The rules that keep a generation, by its number."""


class RetentionDecision(NamedTuple):
    """Whether a generation is kept, and why."""

    generation: Generation
    rules: tuple[str, ...]
    """The rules that keep the generation; empty: it expires."""


def apply_policy(
    generations: Iterable[Generation],
    keep: Keep | None,
    now: int,
    *,
    live: Sequence[str] = (),
    pinned: frozenset[int] = frozenset(),
    zone: dt.tzinfo | None = None,
    key: Callable[[Generation], str] = host_key,
) -> list[RetentionDecision]:
    """Return a decision for each generation of one service, newest first.

    keep: the rules; None keeps all. now: ns since 1970. live: revisions in use; the newest generation of each
    is kept. pinned: numbers of generations that are always kept. zone: the time zone of days and hours; None:
    this machine's. key: returns what identifies the host of a generation.
    """
    by_number = sorted(generations, key=lambda generation: generation.number)
    rules: Rules = {generation.number: [] for generation in by_number}
    if keep is None:
        for names in rules.values():
            names.append("no rule")
    for number in pinned & rules.keys():
        rules[number].append("pinned")
    groups = HostGroups(by_number, key)
    for host in sorted(groups.hosts()):
        own = [generation for generation in by_number if groups.key(generation) == host]
        _always(own, live, rules)
        plausible = _plausible(own, now, rules)
        if keep is not None:
            _Counting(keep, now, zone).count(plausible, rules)
    return [
        RetentionDecision(generation, tuple(rules[generation.number])) for generation in reversed(by_number)
    ]


def _always(own: list[Generation], live: Sequence[str], rules: Rules) -> None:
    """Keep what every host keeps regardless of the rules; own: the host's generations, oldest first."""
    complete = [generation for generation in own if not generation.number_only]
    for number in {generation.number for generation in (*own[-1:], *complete[-1:])}:
        rules[number].append("newest")
    safeties = [
        generation.number for generation in own if generation.pre_rollback and not generation.interrupted
    ]
    if safeties:
        rules[safeties[-1]].append("undo")
    for revision in live:
        newest = next(
            (generation for generation in reversed(complete) if generation.revision == revision), None
        )
        if newest is not None:
            rules[newest.number].append("live revision")


def _plausible(own: list[Generation], now: int, rules: Rules) -> list[Generation]:
    """Return the generations with a plausible time; the others are kept. own: oldest first."""
    plausible = []
    latest = 0
    for generation in own:
        if generation.time < latest or generation.time > now + _AHEAD:
            rules[generation.number].append("clock")
        else:
            latest = generation.time
            plausible.append(generation)
    return plausible


class _Counting:
    """Applies the rules that count generations, or the time since them."""

    def __init__(self, keep: Keep, now: int, zone: dt.tzinfo | None) -> None:
        self._keep = keep
        self._zone = zone
        span = parse_span(keep.within) if keep.within is not None else None
        self._since = now - span * _SECOND if span is not None else None

    def count(self, generations: list[Generation], rules: Rules) -> None:
        """Note which rules keep which generations of one host. generations: oldest first."""
        # A pre-rollback generation never takes the place of a regular one, say as that of a day.
        regular = [generation for generation in generations if not generation.pre_rollback]
        for generation in generations:
            if generation.pre_rollback and self._is_within(generation):
                rules[generation.number].append("within")
        complete = [generation for generation in regular if not generation.partial]
        self._count(complete[::-1], rules)
        if len(complete) < len(regular):
            # A partial generation is kept as long as it would be kept if it were complete. Complete ones are
            # counted without the partial ones, so that a partial one never displaces them.
            both: Rules = {generation.number: [] for generation in regular}
            self._count(regular[::-1], both)
            for generation in regular:
                if generation.partial:
                    rules[generation.number] += both[generation.number]

    def _is_within(self, generation: Generation) -> bool:
        return self._since is not None and generation.time >= self._since

    def _count(self, newest_first: list[Generation], rules: Rules) -> None:
        for generation in newest_first[: self._keep.last]:
            rules[generation.number].append("last")
        for generation in newest_first:
            if self._is_within(generation):
                rules[generation.number].append("within")
        times = {
            generation.number: dt.datetime.fromtimestamp(generation.time / _SECOND, dt.UTC).astimezone(
                self._zone
            )
            for generation in newest_first
        }
        for name, bucket in _BUCKETS.items():
            seen: set[tuple[int, ...]] = set()
            for generation in newest_first:
                key = bucket(times[generation.number])
                if len(seen) < getattr(self._keep, name) and key not in seen:
                    seen.add(key)
                    rules[generation.number].append(name)
        revisions: dict[str, int] = {}
        for generation in newest_first:
            count = revisions.get(generation.revision, 0)
            if generation.revision and count < self._keep.per_revision:
                revisions[generation.revision] = count + 1
                rules[generation.number].append("per-revision")
