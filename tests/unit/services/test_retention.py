"""Which generations the rules keep."""

from __future__ import annotations

import datetime as dt

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from castore.model.generation import Generation, StoredRef
from castore.model.refs import RefKind
from castore.services.config import Keep
from castore.services.retention import apply_policy

SECOND = 10**9
DAY = 86400 * SECOND
NOW = int(dt.datetime(2026, 3, 20, 12, tzinfo=dt.UTC).timestamp()) * SECOND
DETAILS = StoredRef(RefKind.CHUNK, bytes(32), 1)


def generation(
    number: int, time: int, revision: str = "", host: str = "a", *, pre_rollback: bool = False, missing_parts: tuple[str, ...] = ()
) -> Generation:
    return Generation("s", number, time, revision, host, (), DETAILS, b"", pre_rollback=pre_rollback, missing_parts=missing_parts)


def kept(generations: list[Generation], keep: Keep | None, **options) -> dict[int, tuple[str, ...]]:
    found = apply_policy(generations, keep, NOW, zone=dt.UTC, **options)
    return {verdict.generation.number: verdict.rules for verdict in found if verdict.rules}


def nightly(count: int, host: str = "a", first: int = 1) -> list[Generation]:
    return [generation(first + n, NOW - (count - n) * DAY, f"r{n // 10}", host) for n in range(count)]


def test_without_rules_all_stay():
    assert len(kept(nightly(20), None)) == 20


def test_rules_add_up():
    found = kept(nightly(400), Keep(last=3, daily=7, weekly=4, monthly=6, yearly=2, per_revision=0))
    assert {400, 399, 398} <= {number for number, rules in found.items() if "last" in rules}
    assert sum("daily" in rules for rules in found.values()) == 7
    assert sum("weekly" in rules for rules in found.values()) == 4
    assert sum("monthly" in rules for rules in found.values()) == 6
    assert sum("yearly" in rules for rules in found.values()) == 2
    assert "newest" in found[400]


def test_the_newest_of_a_bucket_is_kept():
    hours = [generation(n, NOW - DAY + n * 3600 * SECOND) for n in range(1, 10)]
    assert kept(hours, Keep(daily=1, per_revision=0)) == {9: ("newest", "daily")}


def test_the_newest_of_each_revision_is_kept_and_of_those_that_live():
    generations = [generation(n, NOW - (10 - n) * DAY, "ab"[n % 2]) for n in range(1, 9)]
    assert set(kept(generations, Keep(per_revision=1))) == {7, 8}
    assert set(kept(generations, Keep(per_revision=0), live=["b"])) == {7, 8}
    assert set(kept(generations, Keep(per_revision=2))) == {5, 6, 7, 8}


def test_what_is_pinned_is_kept_and_the_last_safety():
    generations = [generation(n, NOW - (10 - n) * DAY, pre_rollback=n in {2, 4}) for n in range(1, 7)]
    assert set(kept(generations, Keep(per_revision=0), pinned=frozenset({1}))) == {1, 4, 6}


def test_within_keeps_what_is_young():
    assert set(kept(nightly(30), Keep(within="3d", per_revision=0))) == {28, 29, 30}


def test_a_host_that_floods_the_store_pushes_no_other_out():
    flood = [generation(100 + n, NOW - n, "x", "evil") for n in range(1000, 0, -1)]
    mine = nightly(5)
    keep = Keep(last=2, daily=3, per_revision=0)
    both = kept([*mine, *[msgspec.structs.replace(one, number=5 + at) for at, one in enumerate(flood, 1)]], keep)
    assert {3, 4, 5} <= set(both)


def test_a_clock_that_ran_wrong_costs_space_not_history():
    mine = nightly(5)
    future = [generation(6 + n, NOW + (n + 1) * DAY) for n in range(10)]
    past = [generation(16 + n, NOW - 1000 * DAY + n) for n in range(10)]
    found = kept([*mine, *future, *past], Keep(last=2, daily=3, per_revision=0))
    assert {3, 4, 5} <= set(found)
    assert all("clock" in found[number] for number in range(6, 26))


@given(
    st.lists(
        st.tuples(st.integers(0, 900), st.sampled_from("ab"), st.sampled_from(["", "r1", "r2"]), st.booleans()),
        max_size=40,
    ),
    st.builds(
        Keep,
        last=st.integers(0, 5),
        hourly=st.integers(0, 5),
        daily=st.integers(0, 5),
        weekly=st.integers(0, 5),
        monthly=st.integers(0, 5),
        yearly=st.integers(0, 5),
        per_revision=st.integers(0, 2),
    ),
)
def test_more_is_never_kept_for_less_and_each_represents_its_bucket(drawn, keep):
    ordered = sorted(drawn)
    generations = [
        generation(n, NOW - (900 - hour) * 3600 * SECOND, revision, host, pre_rollback=pre_rollback)
        for n, (hour, host, revision, pre_rollback) in enumerate(ordered, 1)
    ]
    found = kept(generations, keep)
    for host in "ab":
        own = [one for one in generations if one.host == host and not one.pre_rollback]
        days = sorted({one.time // DAY for one in own}, reverse=True)[: keep.daily]
        for day in days:
            newest = [one for one in own if one.time // DAY == day][-1]
            assert "daily" in found[newest.number]
        count = sum("daily" in found.get(one.number, ()) for one in own)
        assert count == len(days)
    more = kept(generations, msgspec.structs.replace(keep, daily=keep.daily + 1, last=keep.last + 1))
    assert set(found) <= set(more)


def test_a_partial_generation_never_takes_the_place_of_a_complete_one():
    complete = [generation(n, NOW - (10 - n) * DAY, "r") for n in range(1, 5)]
    partial = [generation(n, NOW - (10 - n) * DAY, "r", missing_parts=("two",)) for n in range(5, 9)]
    every = [
        Keep(last=2, per_revision=0), Keep(daily=2, per_revision=0), Keep(yearly=1, per_revision=0),
        Keep(per_revision=1), Keep(within="1h", per_revision=0),
    ]
    for keep in every:
        alone = kept(complete, keep, live=["r"])
        both = kept([*complete, *partial], keep, live=["r"])
        assert alone.keys() <= both.keys()
        assert "live revision" in both[4]


def test_a_partial_generation_is_kept_as_long_as_a_complete_one_would_be():
    nights = nightly(20)
    partial = msgspec.structs.replace(nights[15], missing_parts=("two",))
    mixed = [*nights[:15], partial, *nights[16:]]
    assert "daily" in kept(mixed, Keep(daily=5, per_revision=0))[16]
    assert 16 not in kept(mixed, Keep(daily=4, per_revision=0))
    assert sum("daily" in rules for rules in kept(mixed, Keep(daily=5, per_revision=0)).values()) == 6
