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
from tests.support.stores import Lab, signed

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


class Shelf:
    """A store whose generations are made of nothing but their records."""

    def __init__(self, store):
        self.store = store

    def put(self, revision="", when="2026-01-01 00:00", *, service="web", pre_rollback=False, parts=("sites", "db")):
        number = self.store.next_number(service)
        made = tuple(part(name, "dump" if name == "db" else "tree") for name in parts)
        taken = Generation(service, number, ns(when), revision, "", made, STORED, bytes(16), pre_rollback=pre_rollback)
        self.store.commit(signed(self.store, taken))
        return number

    def number(self, selector, service="web"):
        return find(self.store, service, selector).number

    def meant(self, text):
        found = select(self.store, text)
        return found.generation.number, found.part.name if found.part else None, found.path


@pytest.fixture
def shelf(tmp_path):
    with Lab(tmp_path).open() as store:
        yield Shelf(store)


# Numbers


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("3", 3), ("#1", 1), ("#3", 3), ("#003", 3), ("003", 3), ("latest", 3)]
)
def test_numbers(shelf, text, number):
    for revision in ("a", "b", "c"):
        shelf.put(revision)
    assert shelf.number(text) == number


@pytest.mark.parametrize("text", ["4", "#4", "0", "#0", "99999999999999999999", "#99999999999999999999"])
def test_a_number_that_is_not_there_is_told_with_the_newest(shelf, text):
    for revision in ("a", "b", "c"):
        shelf.put(revision)
    with pytest.raises(NotFoundError, match=r"no generation \d+ of 'web'; the newest is 3"):
        shelf.number(text)


@pytest.mark.parametrize("text", ["#", "#x", "#-1", "#1 ", "# 1", "#²", "=", "²"])
def test_what_looks_like_a_number_and_is_none_is_not_found(shelf, text):
    shelf.put("a")
    with pytest.raises(NotFoundError):
        shelf.number(text)


def test_a_number_that_is_also_a_revision_must_be_said_which(shelf):
    for revision in ("a", "1", "1", "4"):
        shelf.put(revision)
    with pytest.raises(UsageError, match=r"1 is a generation of 'web' \(of revision a\).*newest generation is 3.*#1 or =1"):
        shelf.number("1")
    assert shelf.number("#1") == 1
    assert shelf.number("=1") == 3
    assert shelf.number("4") == 4  # the generation is of that revision
    assert shelf.number("2") == 2


def test_digits_that_are_no_number_may_be_a_revision_or_the_beginning_of_one(shelf):
    for revision in ("20260101", "777abc", "888", "889"):
        shelf.put(revision)
    assert shelf.number("20260101") == 1
    assert shelf.number("777") == 2
    with pytest.raises(UsageError, match="'88' begins several revisions of 'web': 888, 889"):
        shelf.number("88")


# Revisions


def test_the_newest_generation_of_a_revision_is_meant(shelf):
    for revision in ("r1", "r2", "r1", "r2-more"):
        shelf.put(revision)
    assert shelf.number("r1") == 3
    assert shelf.number("=r1") == 3
    assert shelf.number("r2") == 2, "a whole revision is not the beginning of another"
    assert shelf.number("r2-") == 4


def test_unique_and_ambiguous_beginnings(shelf):
    for revision in (GUIX, GUIX_OTHER, DIGEST, "main-12", "main-12"):
        shelf.put(revision)
    assert shelf.number("main") == 5
    assert shelf.number("/gnu/store/2hj") == 1
    assert shelf.number("sha256:8a") == 3
    with pytest.raises(UsageError) as caught:
        shelf.number("/gnu/store/2h")
    assert GUIX in str(caught.value)
    assert GUIX_OTHER in str(caught.value)
    with pytest.raises(NotFoundError):
        shelf.number("=main")  # = is the whole revision
    with pytest.raises(NotFoundError):
        shelf.number("ain")


def test_of_many_revisions_that_begin_so_a_few_are_named(shelf):
    for number in range(8):
        shelf.put(f"r{number}")
    with pytest.raises(UsageError, match=r"r0, r1, r2, r3, r4, \.\.\.$"):
        shelf.number("r")


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("r1-abd", "r1-abc"), ("=r1-ab", "r1-abc"), ("r3", "r2"), ("sha256:9", DIGEST), ("xyz", "r2"), ("r1-abcd", "r1-abc")],
)
def test_the_message_names_the_nearest_revision(shelf, wrong, nearest):
    for revision, when in (("r1-abc", "2026-01-01 10:00"), ("", "2026-01-02"), (DIGEST, "2026-01-03"), ("r2", "2026-02-04 05:06")):
        shelf.put(revision, when)
    with pytest.raises(NotFoundError) as caught:
        shelf.number(wrong)
    assert f"has revision {wrong.removeprefix('=')!r}; nearest: {nearest} (2026-" in str(caught.value)


def test_the_message_tells_the_local_time_of_the_nearest(shelf):
    shelf.put("r1", "2026-07-01T10:00Z")
    with pytest.raises(NotFoundError, match=r"nearest: r1 \(2026-07-01 12:00\)"):
        shelf.number("r2")


def test_where_no_generation_has_a_revision_that_is_said(shelf):
    shelf.put("")
    with pytest.raises(NotFoundError, match="none of them has a revision"):
        shelf.number("r1")
    assert shelf.number("latest") == 1


def test_an_unknown_service_is_told_with_those_there_are(shelf):
    with pytest.raises(NotFoundError, match="it holds: none"):
        shelf.number("1")
    shelf.put("r1", service="mail")
    shelf.put("r1", service="db")
    with pytest.raises(NotFoundError, match="no service 'web'.*it holds: db, mail"):
        shelf.number("1")


# Dates


@pytest.fixture
def dated(shelf):
    for when in ("2026-03-01 00:00", "2026-03-01 12:30:20", "2026-03-01 23:59:59", "2026-03-02 08:00", "2026-07-01 12:00"):
        shelf.put("r", when)
    return shelf


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


# Safety generations


def test_safety_generations_are_found_by_number_only(shelf):
    shelf.put("r1", "2026-01-01")
    shelf.put("r2", "2026-01-02", pre_rollback=True)
    shelf.put("r1", "2026-01-03", pre_rollback=True)
    assert shelf.number("latest") == 1
    assert shelf.number("r1") == shelf.number("=r1") == shelf.number("r") == 1
    assert shelf.number("2026-01-05") == 1
    assert shelf.number("2") == 2
    assert shelf.number("#3") == 3
    for text in ("r2", "=r2"):
        with pytest.raises(NotFoundError, match="nearest: r1"):
            shelf.number(text)
    assert shelf.meant("web@2:db") == (2, "db", "")


def test_only_safety_generations(shelf):
    shelf.put("r1", pre_rollback=True)
    assert shelf.number("1") == 1
    with pytest.raises(NotFoundError, match=r"no complete generation; select these by number: 1 \(pre-rollback\)"):
        shelf.number("latest")
    with pytest.raises(NotFoundError):
        shelf.number("r1")
    with pytest.raises(NotFoundError):
        shelf.number("2026-05-05")


# Parts and paths


@pytest.mark.parametrize("revision", ["r1", DIGEST, GUIX, "a@b:c", "http://x:80/y", "v 1: final"])
@pytest.mark.parametrize("equals", ["", "="])
def test_any_revision_with_any_part_and_path(shelf, revision, equals):
    shelf.put("else")
    shelf.put(revision)
    whole = f"web@{equals}{revision}"
    assert shelf.meant(whole) == (2, None, "")
    assert shelf.meant(whole + ":sites") == (2, "sites", "")
    assert shelf.meant(whole + ":db") == (2, "db", "")
    assert shelf.meant(whole + ":sites/default/files") == (2, "sites", "default/files")
    assert shelf.meant(whole + ":sites/a:db/b@c") == (2, "sites", "a:db/b@c")


@pytest.mark.parametrize(
    ("text", "path"), [("web@1:sites/", ""), ("web@1:sites//a", "/a"), ("web@1:sites/a/", "a/"), ("web@#1:sites/a b", "a b"), ("web@latest:sites/x:y", "x:y")]
)
def test_paths_are_kept_as_they_are_written(shelf, text, path):
    shelf.put("r1")
    assert shelf.meant(text) == (1, "sites", path)


def test_the_shortest_selector_from_the_left_that_names_a_part_is_meant(shelf):
    shelf.put("sha256:sites")
    assert shelf.meant("web@sha256:sites") == (1, "sites", "")
    assert shelf.meant("web@=sha256:sites") == (1, None, "")
    assert shelf.meant("web@=sha256:sites:sites/x") == (1, "sites", "x")


def test_an_unknown_part_is_told_with_those_there_are(shelf):
    shelf.put("r1")
    with pytest.raises(NotFoundError, match="web@1 has no part 'site'; it has sites, db"):
        shelf.meant("web@1:site")
    with pytest.raises(NotFoundError, match="web@1 has no part 'nope'; it has sites, db"):
        shelf.meant("web@r1:nope/path")


def test_a_wrong_revision_before_a_part_names_the_nearest(shelf):
    shelf.put("r1")
    with pytest.raises(NotFoundError, match="'r2'; nearest: r1 "):
        shelf.meant("web@r2:sites/a")
    shelf.put(DIGEST)
    with pytest.raises(NotFoundError, match=f"nearest: {DIGEST} "):
        shelf.meant("web@sha256:8a48")
    shelf.put("sha256:9000")
    for text in ("web@sha256:8a48", "web@=sha256:8a48", "web@sha256:8a48:sites/x"):
        with pytest.raises(NotFoundError, match=f"nearest: {DIGEST} "):
            shelf.meant(text)
    with pytest.raises(UsageError, match="'sha256' begins several"):
        shelf.meant("web@sha256:sites")


@pytest.mark.parametrize("text", ["web", "web@", "", "@1", "we b@1", "/web@1", "-web@1", "web:sites@1"])
def test_what_names_no_generation_is_a_usage_error(shelf, text):
    shelf.put("r1")
    with pytest.raises(UsageError):
        select(shelf.store, text)


def test_split_takes_the_first_at():
    assert split("web@a@b") == ("web", "a@b")
    with pytest.raises(UsageError, match="SERVICE@latest"):
        split("web")


def test_the_public_name_is_this_one():
    assert select is select


# Steps back, and dates in words


@pytest.mark.parametrize(
    ("text", "number"),
    [("latest~1", 4), ("latest~", 4), ("latest~0", 6), ("latest~3", 2), ("4~1", 3), ("#4~2", 2), ("a~1", 3), ("=a~2", 1),
     ("latest~1~1", 3), ("a~0", 6)],
)
def test_steps_back_pass_over_safety_generations_and_stay_with_a_revision(shelf, text, number):
    for revision in ("a", "b", "a", "c"):
        shelf.put(revision)
    shelf.put("a", pre_rollback=True)
    shelf.put("a")
    assert shelf.number(text) == number
    assert shelf.meant(f"web@{text}:sites/x") == (number, "sites", "x")


def test_more_steps_than_there_are_generations_are_not_found(shelf):
    shelf.put("a")
    shelf.put("b")
    for text in ("latest~2", "b~1", "1~1", "latest~999999999"):
        with pytest.raises(NotFoundError, match="castore log web"):
            shelf.number(text)


def test_a_revision_that_ends_like_steps_back_is_a_revision_first(shelf):
    shelf.put("r")
    shelf.put("r~1")
    shelf.put("r")
    assert shelf.number("r~1") == 2


def test_days_and_spans_in_words(shelf):
    now = dt.datetime.now()
    for days in (3, 1, 0):
        shelf.put(f"r{days}", (now - dt.timedelta(days=days)).isoformat(" "))
    assert shelf.number("yesterday") == 2
    assert shelf.number("today") == 3
    assert shelf.number("2 days ago") == 1
    assert shelf.number("47h ago") == 1
    with pytest.raises(NotFoundError):
        shelf.number("2 weeks ago")


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
def test_hostile_selectors_are_not_found(shelf, text):
    shelf.put("a")
    with pytest.raises((NotFoundError, UsageError)):
        shelf.number(text)


# Paths in the store of Guix or Nix


@pytest.mark.parametrize("sign", ["", "="])
@pytest.mark.parametrize("text", ["2hjq4w1b7x0c", "2hjq4w1b7x0c-system", GUIX])
def test_a_store_path_is_selected_by_its_hash_its_base_name_and_itself(shelf, text, sign):
    shelf.put(GUIX)
    shelf.put(GUIX_OTHER)
    assert shelf.number(sign + text) == 1
    assert shelf.meant(f"web@{sign}{text}:sites/a") == (1, "sites", "a")


def test_a_store_path_is_selected_by_the_beginning_of_its_hash(shelf):
    for revision in (GUIX, GUIX_OTHER, GUIX):
        shelf.put(revision)
    assert shelf.number("2hj") == 3
    assert shelf.number("2hj~1") == 1
    with pytest.raises(UsageError, match="'2h' begins several revisions"):
        shelf.number("2h")
    with pytest.raises(NotFoundError, match="nearest: 2hjq4w1b7x0c"):
        shelf.number("2hjx")


def test_what_names_paths_of_two_stores_is_refused(shelf):
    shelf.put("/gnu/store/2hjq4w1b7x0c-system")
    shelf.put("/nix/store/2hjq4w1b7x0c-system")
    with pytest.raises(UsageError, match="several revisions"):
        shelf.number("2hjq4w1b7x0c-system")


def test_the_shown_form_of_a_long_hash_selects_it(shelf):
    path = "/nix/store/0v2q8j7k5m3n1p9r6s4w8x2y5z7a0b3c-nixos-system-host-24.05"
    shelf.put(path)
    assert short_revision(path) == "0v2q8j7k5m3n"
    assert shelf.number(short_revision(path)) == shelf.number("=" + short_revision(path)) == 1
    assert shelf.number("0v2q8j7k5m3n1p9r") == 1
