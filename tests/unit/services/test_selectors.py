"""SERVICE@SELECTOR:PART/PATH, in every form that a person may write."""

from __future__ import annotations

import datetime as dt
import time

import pytest

from castore.errors import NotFoundError, UsageError
from castore.model.generation import Generation, Part, StoredRef
from castore.model.names import short_revision
from castore.model.refs import RefKind
from castore.services.dates import parse_date
from castore.services.selectors import find, select, split
from tests.support.stores import Sandbox, signed

STORED = StoredRef(RefKind.CHUNK, bytes(32), 1)
GUIX = "/gnu/store/2hjq4w1b7x0c-system"
GUIX_OTHER = "/gnu/store/2hzz0000000a-system"
DIGEST = "sha256:8a47:7f59"


@pytest.fixture(autouse=True)
def berlin(monkeypatch):
    """A time zone with summer time."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def ns(text):
    return int(dt.datetime.fromisoformat(text).astimezone().timestamp()) * 10**9


def part(name, kind="tree"):
    return Part(name, kind, STORED, 0, 0, 0, 0, 0, 0)


class GenerationRecords:
    """A store whose generations are made of nothing but their records."""

    def __init__(self, store):
        self.store = store

    def put(self, revision="", when="2026-01-01 00:00", *, service="web", pre_rollback=False, parts=("sites", "db")):
        number = self.store.generations.next_number(service)
        made = tuple(part(name, "dump" if name == "db" else "tree") for name in parts)
        taken = Generation(service, number, ns(when), revision, "", made, STORED, bytes(16), pre_rollback=pre_rollback)
        self.store.generations.commit(signed(self.store, taken))
        return number

    def number(self, selector, service="web"):
        return find(self.store, service, selector).number

    def meant(self, text):
        found = select(self.store, text)
        return found.generation.number, found.part.name if found.part else None, found.path


@pytest.fixture
def records(tmp_path):
    with Sandbox(tmp_path).open() as store:
        yield GenerationRecords(store)


# Numbers


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("3", 3), ("#1", 1), ("#3", 3), ("#003", 3), ("003", 3), ("latest", 3)]
)
def test_numbers(records, text, number):
    for revision in ("a", "b", "c"):
        records.put(revision)
    assert records.number(text) == number


@pytest.mark.parametrize("text", ["4", "#4", "0", "#0", "99999999999999999999", "#99999999999999999999"])
def test_a_missing_number_is_reported_with_the_newest(records, text):
    for revision in ("a", "b", "c"):
        records.put(revision)
    with pytest.raises(NotFoundError, match=r"no generation \d+ of 'web'; the newest is 3"):
        records.number(text)


@pytest.mark.parametrize("text", ["#", "#x", "#-1", "#1 ", "# 1", "#²", "=", "²"])
def test_what_looks_like_a_number_and_is_none_is_not_found(records, text):
    records.put("a")
    with pytest.raises(NotFoundError):
        records.number(text)


def test_a_number_that_is_also_a_revision_must_be_said_which(records):
    for revision in ("a", "1", "1", "4"):
        records.put(revision)
    with pytest.raises(UsageError, match=r"1 is a generation of 'web' \(of revision a\).*newest generation is 3.*#1 or =1"):
        records.number("1")
    assert records.number("#1") == 1
    assert records.number("=1") == 3
    assert records.number("4") == 4  # the generation is of that revision
    assert records.number("2") == 2


def test_digits_that_are_no_number_may_be_a_revision_or_the_beginning_of_one(records):
    for revision in ("20260101", "777abc", "888", "889"):
        records.put(revision)
    assert records.number("20260101") == 1
    assert records.number("777") == 2
    with pytest.raises(UsageError, match="'88' begins several revisions of 'web': 888, 889"):
        records.number("88")


# Revisions


def test_the_newest_generation_of_a_revision_is_meant(records):
    for revision in ("r1", "r2", "r1", "r2-more"):
        records.put(revision)
    assert records.number("r1") == 3
    assert records.number("=r1") == 3
    assert records.number("r2") == 2, "a whole revision is not the beginning of another"
    assert records.number("r2-") == 4


def test_unique_and_ambiguous_beginnings(records):
    for revision in (GUIX, GUIX_OTHER, DIGEST, "main-12", "main-12"):
        records.put(revision)
    assert records.number("main") == 5
    assert records.number("/gnu/store/2hj") == 1
    assert records.number("sha256:8a") == 3
    with pytest.raises(UsageError) as caught:
        records.number("/gnu/store/2h")
    assert GUIX in str(caught.value)
    assert GUIX_OTHER in str(caught.value)
    with pytest.raises(NotFoundError):
        records.number("=main")  # = is the whole revision
    with pytest.raises(NotFoundError):
        records.number("ain")


def test_of_many_revisions_that_begin_so_a_few_are_named(records):
    for number in range(8):
        records.put(f"r{number}")
    with pytest.raises(UsageError, match=r"r0, r1, r2, r3, r4, \.\.\.$"):
        records.number("r")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("r1-abd", "r1-abc"), ("=r1-ab", "r1-abc"), ("r3", "r2"), ("sha256:9", DIGEST), ("xyz", "r2"), ("r1-abcd", "r1-abc")],
)
def test_the_message_names_the_nearest_revision(records, wrong, nearest):
    for revision, when in (("r1-abc", "2026-01-01 10:00"), ("", "2026-01-02"), (DIGEST, "2026-01-03"), ("r2", "2026-02-04 05:06")):
        records.put(revision, when)
    with pytest.raises(NotFoundError) as caught:
        records.number(wrong)
    assert f"has revision {wrong.removeprefix('=')!r}; nearest: {nearest} (2026-" in str(caught.value)


def test_the_message_shows_the_local_time_of_the_nearest(records):
    records.put("r1", "2026-07-01T10:00Z")
    with pytest.raises(NotFoundError, match=r"nearest: r1 \(2026-07-01 12:00\)"):
        records.number("r2")


def test_where_no_generation_has_a_revision_that_is_said(records):
    records.put("")
    with pytest.raises(NotFoundError, match="none of them has a revision"):
        records.number("r1")
    assert records.number("latest") == 1


def test_an_unknown_service_is_reported_with_the_known_ones(records):
    with pytest.raises(NotFoundError, match="it holds: none"):
        records.number("1")
    records.put("r1", service="mail")
    records.put("r1", service="db")
    with pytest.raises(NotFoundError, match=r"no service 'web'.*it holds: db, mail"):
        records.number("1")


# Dates


@pytest.fixture
def dated(records):
    for when in ("2026-03-01 00:00", "2026-03-01 12:30:20", "2026-03-01 23:59:59", "2026-03-02 08:00", "2026-07-01 12:00"):
        records.put("r", when)
    return records


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2026-03-01", 3),
        ("20260301T1230", 2),
        ("2026-03-02", 4),
        ("2026-W09-7", 3),
        ("2026-06-30", 4),
        ("2027-01-01", 5),
        ("2026-03-01T00:00", 1),
        ("2026-03-01 12:29", 1),
        ("2026-03-01 12:30", 2),
        ("2026-03-01T12:30", 2),
        ("2026-03-01T12:30:19", 1),
        ("2026-03-01T12:30:20", 2),
        ("2026-03-01T11:30Z", 2),
        ("2026-03-01T11:29Z", 1),
        ("2026-03-01T13:30+02:00", 2),
        ("2026-03-01T06:29-05:00", 1),
        ("2026-03-01T06:30-05:00", 2),
        ("2026-03-01T11:30:20+00:00", 2),
        ("2026-07-01T09:59Z", 4),
        ("2026-07-01T10:00Z", 5),
        ("2026-07-01 12:00", 5),
        ("2026-07-01 11:59", 4),
    ],
)
def test_a_date_means_the_newest_at_or_before_its_end(dated, text, number):
    assert dated.number(text) == number
    assert dated.meant(f"web@{text}") == (number, None, "")
    assert dated.meant(f"web@{text}:sites/a:b/12:30") == (number, "sites", "a:b/12:30")


def test_digits_alone_are_a_number_and_never_a_date(dated):
    with pytest.raises(NotFoundError, match="no generation 20260301"):
        dated.number("20260301")


def test_a_date_before_all_is_said(dated):
    with pytest.raises(NotFoundError, match="no generation of 'web' is as old as 2026-02-28"):
        dated.number("2026-02-28")


@pytest.mark.parametrize("text", ["2026-02-30", "12:30", "tomorrow", "2026-13-01", "2026-03-01T25:00"])
def test_what_is_no_date_is_taken_for_a_revision(dated, text):
    assert parse_date(text) is None
    with pytest.raises(NotFoundError, match="has revision"):
        dated.number(text)


def test_a_revision_that_looks_like_a_date_is_a_revision_first(dated):
    number = dated.put("2026-03-01", "2026-08-01")
    assert dated.number("2026-03-01") == number


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("2026-03-29", "2026-03-30T00:00:00+02:00"),  # a day of 23 hours
        ("2026-10-25", "2026-10-26T00:00:00+01:00"),  # and one of 25
        ("2026-05-05 10:15", "2026-05-05T10:16:00+02:00"),
        ("2026-05-05T10:15Z", "2026-05-05T10:16:00+00:00"),
        ("2026-05-05T10:15:30", "2026-05-05T10:15:31+02:00"),
    ],
)
def test_the_last_nanosecond_that_a_date_means(text, end):
    assert parse_date(text) == ns(end) - 1


@pytest.mark.parametrize("text", ["9999-12-31", "0001-01-01", "9999-12-31T23:59:59"])
def test_dates_at_the_ends_of_the_calendar_do_not_break(dated, text):
    try:
        assert dated.number(text) == 5
    except NotFoundError:
        assert text == "0001-01-01" or parse_date(text) is None


# Pre-rollback generations


def test_pre_rollback_generations_are_found_by_number_only(records):
    records.put("r1", "2026-01-01")
    records.put("r2", "2026-01-02", pre_rollback=True)
    records.put("r1", "2026-01-03", pre_rollback=True)
    assert records.number("latest") == 1
    assert records.number("r1") == records.number("=r1") == records.number("r") == 1
    assert records.number("2026-01-05") == 1
    assert records.number("2") == 2
    assert records.number("#3") == 3
    for text in ("r2", "=r2"):
        with pytest.raises(NotFoundError, match="nearest: r1"):
            records.number(text)
    assert records.meant("web@2:db") == (2, "db", "")


def test_only_pre_rollback_generations(records):
    records.put("r1", pre_rollback=True)
    assert records.number("1") == 1
    with pytest.raises(NotFoundError, match=r"no complete generation; select these by number: 1 \(pre-rollback\)"):
        records.number("latest")
    with pytest.raises(NotFoundError):
        records.number("r1")
    with pytest.raises(NotFoundError):
        records.number("2026-05-05")


# Parts and paths


@pytest.mark.parametrize("revision", ["r1", DIGEST, GUIX, "a@b:c", "http://x:80/y", "v 1: final"])
@pytest.mark.parametrize("equals", ["", "="])
def test_any_revision_with_any_part_and_path(records, revision, equals):
    records.put("else")
    records.put(revision)
    whole = f"web@{equals}{revision}"
    assert records.meant(whole) == (2, None, "")
    assert records.meant(whole + ":sites") == (2, "sites", "")
    assert records.meant(whole + ":db") == (2, "db", "")
    assert records.meant(whole + ":sites/default/files") == (2, "sites", "default/files")
    assert records.meant(whole + ":sites/a:db/b@c") == (2, "sites", "a:db/b@c")


@pytest.mark.parametrize(
    ("text", "path"), [("web@1:sites/", ""), ("web@1:sites//a", "/a"), ("web@1:sites/a/", "a/"), ("web@#1:sites/a b", "a b"), ("web@latest:sites/x:y", "x:y")]
)
def test_paths_are_kept_as_they_are_written(records, text, path):
    records.put("r1")
    assert records.meant(text) == (1, "sites", path)


def test_the_shortest_selector_from_the_left_that_names_a_part_is_meant(records):
    records.put("sha256:sites")
    assert records.meant("web@sha256:sites") == (1, "sites", "")
    assert records.meant("web@=sha256:sites") == (1, None, "")
    assert records.meant("web@=sha256:sites:sites/x") == (1, "sites", "x")


def test_an_unknown_part_is_reported_with_the_known_ones(records):
    records.put("r1")
    with pytest.raises(NotFoundError, match="web@1 has no part 'site'; it has sites, db"):
        records.meant("web@1:site")
    with pytest.raises(NotFoundError, match="web@1 has no part 'nope'; it has sites, db"):
        records.meant("web@r1:nope/path")


def test_a_wrong_revision_before_a_part_names_the_nearest(records):
    records.put("r1")
    with pytest.raises(NotFoundError, match="'r2'; nearest: r1 "):
        records.meant("web@r2:sites/a")
    records.put(DIGEST)
    with pytest.raises(NotFoundError, match=f"nearest: {DIGEST} "):
        records.meant("web@sha256:8a48")
    records.put("sha256:9000")
    for text in ("web@sha256:8a48", "web@=sha256:8a48", "web@sha256:8a48:sites/x"):
        with pytest.raises(NotFoundError, match=f"nearest: {DIGEST} "):
            records.meant(text)
    with pytest.raises(UsageError, match="'sha256' begins several"):
        records.meant("web@sha256:sites")


@pytest.mark.parametrize("text", ["web", "web@", "", "@1", "we b@1", "/web@1", "-web@1", "web:sites@1"])
def test_what_names_no_generation_is_a_usage_error(records, text):
    records.put("r1")
    with pytest.raises(UsageError):
        select(records.store, text)


def test_split_takes_the_first_at():
    assert split("web@a@b") == ("web", "a@b")
    with pytest.raises(UsageError, match="SERVICE@latest"):
        split("web")


# Steps back, and dates in words


@pytest.mark.parametrize(
    ("text", "number"),
    [("latest~1", 4), ("latest~", 4), ("latest~0", 6), ("latest~3", 2), ("4~1", 3), ("#4~2", 2), ("a~1", 3), ("=a~2", 1),
     ("latest~1~1", 3), ("a~0", 6)],
)
def test_steps_back_pass_over_pre_rollback_generations_and_stay_with_a_revision(records, text, number):
    for revision in ("a", "b", "a", "c"):
        records.put(revision)
    records.put("a", pre_rollback=True)
    records.put("a")
    assert records.number(text) == number
    assert records.meant(f"web@{text}:sites/x") == (number, "sites", "x")


def test_more_steps_than_there_are_generations_are_not_found(records):
    records.put("a")
    records.put("b")
    for text in ("latest~2", "b~1", "1~1", "latest~999999999"):
        with pytest.raises(NotFoundError, match="castore log web"):
            records.number(text)


def test_a_revision_that_ends_like_steps_back_is_a_revision_first(records):
    records.put("r")
    records.put("r~1")
    records.put("r")
    assert records.number("r~1") == 2


def test_days_and_spans_in_words(records):
    now = dt.datetime.now()  # noqa: DTZ005 - words mean local days
    for days in (3, 1, 0):
        records.put(f"r{days}", (now - dt.timedelta(days=days)).isoformat(" "))
    assert records.number("yesterday") == 2
    assert records.number("today") == 3
    assert records.number("2 days ago") == 1
    assert records.number("47h ago") == 1
    with pytest.raises(NotFoundError):
        records.number("2 weeks ago")


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-11-02 03:00", "2026-11-02T03:00"),
        ("2026-11-02 3:00", "2026-11-02T03:00"),
        ("2026-11-02 03:00:05", "2026-11-02T03:00:05"),
        ("2026-11-02 02:00 UTC", "2026-11-02T03:00"),
        ("2026-11-02T02:00:00Z", "2026-11-02T03:00:00"),
        ("2026-11-02 03:00 +0100", "2026-11-02T03:00"),
    ],
)
def test_a_full_date_may_have_a_time_with_seconds_and_zone(text, same):
    assert parse_date(text) == parse_date(same) is not None


@pytest.mark.parametrize("text", ["9" * 5000, "#" + "9" * 5000, "=" + "9" * 5000, "1~" + "9" * 5000, "\udcff", "\0", "9999999 days ago", "1 year ago"])
def test_hostile_selectors_are_not_found(records, text):
    records.put("a")
    with pytest.raises((NotFoundError, UsageError)):
        records.number(text)


# Paths in the store of Guix or Nix


@pytest.mark.parametrize("sign", ["", "="])
@pytest.mark.parametrize("text", ["2hjq4w1b7x0c", "2hjq4w1b7x0c-system", GUIX])
def test_a_store_path_is_selected_by_its_hash_its_base_name_and_itself(records, text, sign):
    records.put(GUIX)
    records.put(GUIX_OTHER)
    assert records.number(sign + text) == 1
    assert records.meant(f"web@{sign}{text}:sites/a") == (1, "sites", "a")


def test_a_store_path_is_selected_by_the_beginning_of_its_hash(records):
    for revision in (GUIX, GUIX_OTHER, GUIX):
        records.put(revision)
    assert records.number("2hj") == 3
    assert records.number("2hj~1") == 1
    with pytest.raises(UsageError, match="'2h' begins several revisions"):
        records.number("2h")
    with pytest.raises(NotFoundError, match="nearest: 2hjq4w1b7x0c"):
        records.number("2hjx")


def test_what_names_paths_of_two_stores_is_refused(records):
    records.put("/gnu/store/2hjq4w1b7x0c-system")
    records.put("/nix/store/2hjq4w1b7x0c-system")
    with pytest.raises(UsageError, match="several revisions"):
        records.number("2hjq4w1b7x0c-system")


def test_the_shown_form_of_a_long_hash_selects_it(records):
    path = "/nix/store/0v2q8j7k5m3n1p9r6s4w8x2y5z7a0b3c-nixos-system-host-24.05"
    records.put(path)
    assert short_revision(path) == "0v2q8j7k5m3n"
    assert records.number(short_revision(path)) == records.number("=" + short_revision(path)) == 1
    assert records.number("0v2q8j7k5m3n1p9r") == 1
