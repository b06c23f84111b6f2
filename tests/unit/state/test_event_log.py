"""Events, drill results and verification results are state: deleting the cache loses none of them."""

from __future__ import annotations

import os
import shutil

import castore
from castore.errors import StorageError
from castore.maintenance.verify import verify
from castore.maintenance.verify_packs import PACKS
from castore.model.events import Event
from castore.services.events import drills, event
from castore.services.sources import file_source
from castore.state import event_log
from castore.state.event_log import EventLog
from tests.support.stores import Sandbox


def take(sandbox):
    (sandbox.folder / "dump").write_bytes(os.urandom(200_000))
    return sandbox.snapshot("web", {"d": file_source(str(sandbox.folder / "dump"))})


def test_deleting_the_cache_keeps_events_drills_and_verification(tmp_path):
    sandbox = Sandbox(tmp_path)
    for _ in range(3):
        take(sandbox)
    with sandbox.open() as store:
        verify(store, castore.Progress(), packs=True)
        with event(store, "drill", "web") as note:
            note.of(store.generations.newest("web"))
        packs = sorted(pack for pack, _ in store.index.packs.lengths())
        store.index.verification.set_damaged(packs[:1])
        store.updater.record_verified()
        before = store.state.event_log.read(), store.index.verification.verified(PACKS), drills(store)
    assert before[2]
    for rebuild in (False, True):
        if not rebuild:
            shutil.rmtree(sandbox.places.cache)
        with sandbox.open() as store:
            store.updater.rebuild() if rebuild else store.sync()
            assert (store.state.event_log.read(), store.index.verification.verified(PACKS), drills(store)) == before
            assert store.index.verification.damaged() == set(packs[:1])


def made(number, kind="snapshot", text=""):
    return Event(kind, "web", number, 1, True, number, "", text)


def test_a_text_with_a_line_separator_is_one_event(tmp_path):
    log = EventLog(str(tmp_path / "events"))
    log.append(made(1, text="a\u2028b\u2029c\x85d"))
    assert [one.text for one in log.read()] == ["a\u2028b\u2029c\x85d"]


def test_a_log_is_bounded_and_keeps_the_last_drills(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "_MOST_BYTES", 20_000)
    monkeypatch.setattr(event_log, "_MOST_EVENTS", 20)
    log = EventLog(str(tmp_path / "state" / "events"))
    log.append(made(1, "drill"))
    for number in range(2, 500):
        log.append(made(number, text="x" * 50))
    assert os.path.getsize(tmp_path / "state" / "events") < 25_000
    assert log.read()[0].number == 499
    assert log.read()[-1].kind == "drill"


def test_a_cut_line_costs_one_event_and_invalid_text_none(tmp_path):
    log = EventLog(str(tmp_path / "events"))
    log.append(made(1, text="caf\udce9"))
    with open(tmp_path / "events", "ab") as file:
        file.write(b'{"kind": "sna')
    log.append(made(2))
    assert [one.number for one in log.read()] == [2, 1]
    assert "udce9" in log.read("web")[1].text


def test_a_log_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    sandbox = Sandbox(tmp_path)

    def refused(self, event):
        raise StorageError("no space left")

    monkeypatch.setattr(EventLog, "append", refused)
    assert take(sandbox).number == 1
