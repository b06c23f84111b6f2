"""How long things have been seen: nobody's calendar makes them old."""

from __future__ import annotations

import os

import pytest

from castore.state import first_seen
from castore.state.first_seen import FirstSeen

DAY = 86400 * 10**9
WEEK = 7 * DAY


class Machine:
    """Its clocks, which a test sets."""

    def __init__(self, path):
        self.ages = FirstSeen(str(path / "state" / "ages"))
        self.now = ["first start", 1000, 1000 * DAY]

    def pass_time(self, span):
        self.now[1] += span
        self.now[2] += span

    def start_again(self, *, calendar=0):
        self.now = [self.now[0] + "+", 5, self.now[2] + calendar]

    def look(self, *names, kind="things"):
        return self.ages.observe(kind, names, WEEK)


@pytest.fixture
def machine(tmp_path, monkeypatch):
    found = Machine(tmp_path)
    monkeypatch.setattr(first_seen, "_now", lambda: tuple(found.now))
    return found


def test_things_grow_older_from_the_first_look(machine):
    assert machine.look("a") == {"a": 0}
    machine.pass_time(DAY)
    assert machine.look("a", "b") == {"a": DAY, "b": 0}
    machine.pass_time(WEEK)
    assert machine.look("a", "b") == {"a": DAY + WEEK, "b": WEEK}


def test_what_is_missing_once_is_new_when_it_returns(machine):
    machine.look("a")
    machine.pass_time(DAY)
    assert machine.look() == {}
    assert machine.look("a") == {"a": 0}


def test_kinds_are_kept_apart(machine):
    machine.look("a")
    machine.pass_time(DAY)
    assert machine.look("a", kind="others") == {"a": 0}
    machine.pass_time(DAY)
    assert machine.look("a") == {"a": 2 * DAY}


@pytest.mark.parametrize("step", [-20_000 * DAY, -DAY, DAY, 20_000 * DAY])
def test_a_calendar_that_is_set_changes_nothing_while_the_machine_runs(machine, step):
    machine.look("a")
    machine.now[2] += step
    machine.pass_time(DAY)
    assert machine.look("a") == {"a": DAY}


def test_a_calendar_that_was_wrong_for_one_look_makes_nothing_old(machine):
    machine.look("a")
    machine.start_again(calendar=-1000 * DAY)  # a machine without a clock of its own
    assert machine.look("a", "b") == {"a": 0, "b": 0}
    machine.start_again(calendar=1000 * DAY)
    found = machine.look("a", "b")
    assert max(found.values()) < WEEK


def test_across_starts_it_takes_a_few_looks(machine):
    machine.look("a")
    for _ in range(10):
        machine.start_again(calendar=DAY)
        age = machine.look("a")["a"]
    assert age == 10 * DAY


def test_where_nothing_distinguishes_boots_the_calendar_is_used(machine):
    machine.now[0] = ""
    machine.look("a")
    machine.pass_time(2 * DAY)
    assert machine.look("a") == {"a": 2 * DAY}
    machine.pass_time(20 * DAY)
    assert machine.look("a") == {"a": 2 * DAY + WEEK // 2}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"things": 5}', b"\xff\xfe"])
def test_a_damaged_file_is_recreated(machine, tmp_path, content):
    machine.look("a")
    machine.pass_time(DAY)
    (tmp_path / "state" / "ages").write_bytes(content)
    assert machine.look("a") == {"a": 0}
    machine.pass_time(DAY)
    assert machine.look("a") == {"a": DAY}


def test_where_it_cannot_be_written_nothing_grows_old(tmp_path):
    os.symlink("nowhere/at/all", tmp_path / "state")
    assert FirstSeen(str(tmp_path / "state" / "ages")).observe("things", ["a"], WEEK) == {"a": 0}


def test_the_clocks_of_this_machine():
    start, boot, calendar = first_seen._now()
    assert len(start) == 36
    assert 0 < boot < calendar
