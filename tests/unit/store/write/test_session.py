"""A session: what it counts, and what remains of it after an error."""

from __future__ import annotations

import contextlib
import os
import resource
import threading

import pytest

from castore.errors import StorageError
from castore.model.refs import Ref, RefKind
from castore.store import NewChunk
from castore.store.format import pack as packs
from tests.support.stores import Sandbox


@pytest.fixture
def store(tmp_path):
    with Sandbox(tmp_path).open(identity=False) as store:
        yield store


@contextlib.contextmanager
def no_room():
    """Let no file of this process grow."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def seal(session, content):
    chunk = NewChunk(session.chunk_id(content), 0, len(content))
    return session.seal(bytearray(content), [chunk])[0]


def ref_of(session, content):
    return Ref(RefKind.CHUNK, session.chunk_id(content), len(content))


def used(session):
    return sum(session.pack_usage.values())


def test_a_node_is_stored_once_before_and_after_it_is_indexed(store):
    with store.session() as session:
        session.append(seal(session, b"content"))
        node, length = session.put_node([ref_of(session, b"content")])
        assert length > 0
        assert session.put_node([ref_of(session, b"content")]) == (node, 0)
        session._close_pack(full=False)
        session._wait_for_packs()
        assert session.put_node([ref_of(session, b"content")]) == (node, 0)


def test_what_is_added_and_what_is_used_again_counts_as_used(store):
    with store.session() as session:
        session.append(seal(session, b"old" * 1000))
    old = used(session)
    assert old > 0
    with store.session() as session:
        assert session.use_stored([session.chunk_id(b"old" * 1000), session.chunk_id(b"new")]) == [True, False]
        assert used(session) == old
        session.append(seal(session, b"new"))
        assert session.use_stored([session.chunk_id(b"new")]) == [True], "it is in the open pack"
    assert used(session) > old


def test_a_session_without_room_stores_nothing_and_refuses_all_else_with_the_reason(store):
    content = os.urandom(2 << 20)
    with pytest.raises(StorageError) as caught, store.session() as session:
        sealed = seal(session, content)
        with no_room():
            session.append(sealed)
    with pytest.raises(StorageError) as again:
        session.append(sealed)
    assert again.value is caught.value
    assert list(store.storage.list("packs")) == list(store.storage.list("sessions")) == []
    assert not store.index.locations.contains([session.chunk_id(content)])[0]
    assert os.listdir(os.path.join(store.storage.location, "tmp")) == []


def test_a_pack_that_cannot_be_finished_is_not_indexed(store):
    with pytest.raises(StorageError) as caught, store.session() as session:
        session.append(seal(session, b"content"))
        with no_room():
            session.finish()
    with pytest.raises(StorageError) as again:
        session.put_node([])
    assert again.value is caught.value
    assert not store.index.locations.contains([session.chunk_id(b"content")])[0]
    with store.session() as session:
        session.append(seal(session, b"content"))
    assert store.index.locations.contains([session.chunk_id(b"content")])[0]


def test_after_an_error_elsewhere_a_pack_that_cannot_be_finished_does_not_replace_it(store):
    with pytest.raises(ZeroDivisionError), no_room(), store.session() as session:
        session.append(seal(session, b"content"))
        raise ZeroDivisionError
    assert list(store.storage.list("packs")) == []


def test_a_fault_in_a_pack_is_not_hidden_by_an_error_elsewhere(store, monkeypatch):
    monkeypatch.setattr(packs.PackWriter, "commit", lambda self, *, full: 1 / 0)
    with pytest.raises(ZeroDivisionError), store.session() as session:
        session.append(seal(session, b"content"))
        raise ValueError
    assert list(store.storage.list("packs")) == []


def test_an_error_of_the_session_itself_is_reported_once(store, monkeypatch):
    monkeypatch.setattr(packs.PackWriter, "add", lambda self, entries, record: 1 / 0)
    with pytest.raises(ZeroDivisionError) as caught, store.session() as session:
        session.append(seal(session, b"content"))
    assert caught.value is session._error
    assert caught.value.__context__ is None


def test_after_a_pack_that_cannot_be_finished_no_later_one_is_added(store, monkeypatch):
    """A node in the later pack may reference chunks of the first."""
    monkeypatch.setattr(packs, "PACK_BYTES", 1 << 18)
    begun, committed = threading.Event(), []

    def failing(pack, *, full):
        begun.wait(30)
        committed.append(pack)
        raise StorageError("the disk is full")

    monkeypatch.setattr(packs.PackWriter, "commit", failing)
    with pytest.raises(StorageError, match="the disk is full"), store.session() as session:
        while len(session._finishing) < 2:
            session.append(seal(session, os.urandom(60_000)))
        begun.set()
        session.finish()
    assert len(committed) == 1
    assert os.listdir(os.path.join(store.storage.location, "tmp")) == []


def test_without_the_base_cache_no_chunk_is_looked_up_for_deltas(store):
    content = os.urandom(100_000)
    store.base_cache.limit = 0
    with store.session() as session:
        chunk = NewChunk(session.chunk_id(content), 0, len(content))
        assert session.find_similar(bytearray(content), [chunk]) == [chunk]
        assert seal(session, content).payload == b""
