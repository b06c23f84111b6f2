"""Chunks are found with their bases, in packs that stay, and what they use of each pack is counted."""

from __future__ import annotations

import pytest

from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import CHUNK, DELTA, PackEntry
from castore.store.index import Index
from castore.store.index.pack_tables import PackContent

SESSION = SessionId(bytes(16))
FULL, BASE, OF_BASE, MISSING = (RecordId(bytes([n]) * 32) for n in range(4))
FIRST, SECOND = (PackId(bytes([n]) * 32) for n in (8, 9))


def entry(chunk: RecordId, offset: int, bases: tuple[RecordId, ...] = (), group_index: int = 0) -> PackEntry:
    codec = DELTA if bases else 1
    return PackEntry(chunk, CHUNK, codec, 1000 + chunk[0], 100, 1, SESSION, offset, bases, group_index)


@pytest.fixture
def index(tmp_path):
    index = Index(str(tmp_path / "index"), bytes(16))
    index.packs.put([
        PackContent(FIRST, 500, [entry(FULL, 32), entry(BASE, 132)]),
        PackContent(SECOND, 300, [entry(OF_BASE, 32, (BASE,))], b"s" * 32),
    ])
    yield index
    index.close()


def test_a_chunk_counts_its_own_record_and_those_of_its_bases_once(index):
    found = index.locations.find([OF_BASE, OF_BASE, BASE])
    assert found.complete == [True] * 3
    assert sorted(found.pack_bytes.values()) == [100, 100]
    assert sum(index.locations.find([FULL, OF_BASE]).pack_bytes.values()) == 300


def test_a_chunk_is_not_contained_if_a_base_is_in_a_pack_that_does_not_stay(index):
    assert index.locations.contains([FULL, OF_BASE, MISSING]) == [True, True, False]
    assert index.locations.contains([OF_BASE, FULL], without=[FIRST]) == [False, False]
    index.liveness.set_not_referenced([FIRST])
    assert index.locations.contains([OF_BASE, FULL]) == [False, False]
    assert not index.locations.stays(OF_BASE)
    assert index.locations.locate(CHUNK, FULL) is not None


def test_lengths_are_those_of_plain_chunks(index):
    assert index.locations.lengths([OF_BASE, MISSING, FULL]) == [1000 + OF_BASE[0], None, 1000]


def test_a_pack_names_its_signer_and_sessions_until_it_is_removed(index):
    assert {(one.pack, one.length, one.signer) for one in index.packs.owners()} == {
        (FIRST, 500, bytes(32)),
        (SECOND, 300, b"s" * 32),
    }
    assert all(one.sessions == [SESSION] for one in index.packs.owners())
    epoch = index.epoch()
    index.packs.remove([SECOND])
    assert index.epoch() != epoch
    assert [one.pack for one in index.packs.owners()] == [FIRST]
    assert index.locations.contains([FULL, BASE, OF_BASE]) == [True, True, False]


def test_results_of_verification_are_loaded_into_a_rebuilt_index(index, tmp_path):
    index.verification.set_verified([FIRST], 1, 7)
    index.verification.set_damaged([SECOND])
    index.verification.set_begun(2, 5)
    results = index.verification.results()
    index.clear()
    assert not index.verification.is_loaded()
    index.packs.put([PackContent(FIRST, 500, [entry(FULL, 32)]), PackContent(SECOND, 300, [entry(BASE, 32)])])
    index.verification.load(results)
    assert index.verification.is_loaded()
    assert index.verification.verified(1)[FIRST] == 7
    assert index.verification.damaged() == {SECOND}
    assert index.verification.begun(2) == 5


def test_results_of_verification_are_loaded_into_another_index_if_they_are_valid(index, tmp_path):
    index.verification.set_begun(2, 5)
    index.verification.set_verified([FIRST], 2, 7)
    results = index.verification.results()
    other = Index(str(tmp_path / "other"), bytes(16))
    other.packs.put([PackContent(FIRST, 500, [entry(FULL, 32)]), PackContent(SECOND, 300, [entry(BASE, 32)])])
    other.verification.set_verified([SECOND], 1, 3)
    short = {key: value[:-1] for key, value in results.items()}
    other.verification.load(short)
    assert (other.verification.begun(2), other.verification.verified(1)) == (0, {SECOND: 3})
    other.verification.load({**results, bytes(SECOND): results[bytes(FIRST)], b"x" * 32: results[bytes(FIRST)]})
    assert (other.verification.begun(2), other.verification.verified(2)) == (5, {FIRST: 7, SECOND: 0})
    assert other.verification.verified(1) == {FIRST: 7, SECOND: 3}, "what was found since is newer"
    other.close()


def test_what_knew_the_content_of_an_index_does_not_outlive_it(index):
    """Scan caches are valid for an epoch."""
    index.liveness.set_not_referenced([FIRST])
    epoch = index.epoch()
    assert index.epoch() == epoch
    index.clear()
    assert index.epoch() != epoch
    index.packs.put([PackContent(FIRST, 500, [entry(FULL, 32)])])
    assert index.locations.contains([FULL]) == [True]


def test_the_rotation_that_was_applied_outlives_a_rebuild(index):
    assert index.rotation() == 0
    index.set_rotation(3, new_ids=True)
    index.rebuild([], lambda *_: None)
    assert index.rotation() == 3
    assert index.packs.ids() == set()
