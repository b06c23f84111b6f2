"""Packs: the footer has what was added; a pack is never longer than a full one."""

from __future__ import annotations

import os

import pytest

from castore.errors import DamageError
from castore.kernel import padme
from castore.model.refs import RecordId, SessionId
from castore.storage import LocalStorage
from castore.store.format import pack as packs
from castore.store.format.names import pack_name
from castore.store.format.pack import (
    CHUNK,
    DELTA,
    NODE,
    RECORDS,
    ZSTD,
    PackEntry,
    PackWriter,
    open_footer,
    read_footer,
)
from tests.support.stores import certified

SESSIONS = [SessionId(bytes([number]) * 16) for number in (1, 2)]
IDS = [RecordId(bytes([number]) * 32) for number in range(20)]


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path / "store"), create=True)


@pytest.fixture
def writer():
    return certified()


def entry(number, length, session=SESSIONS[0], kind=CHUNK, codec=ZSTD, counter=0, **more):
    return PackEntry(IDS[number], kind, codec, 1000 + number, length, counter, session, **more)


def test_a_footer_has_the_entries_of_all_records_in_order(storage, writer):
    pack = PackWriter(storage, writer)
    records = [
        [entry(1, 50)],
        [entry(2, 60, kind=NODE, session=SESSIONS[1], counter=7)],
        [
            entry(3, 70, codec=DELTA, counter=8, bases=(IDS[1],)),
            entry(4, 70, codec=DELTA + 1, counter=8, bases=(IDS[1], IDS[9]), group_index=1),
        ],
        [entry(5, 80, session=SESSIONS[1], codec=DELTA, counter=9, bases=(IDS[3],))],
    ]
    for record in records:
        pack.add(record, os.urandom(record[0].sealed_length))
    pack_id, size = pack.commit(full=False)
    name = pack_name(pack_id)
    offsets = [RECORDS, RECORDS + 50, RECORDS + 110, RECORDS + 180]
    added = [one._replace(offset=at) for at, record in zip(offsets, records, strict=True) for one in record]
    assert read_footer(storage, name, writer) == (added, size)
    footer = open_footer(storage, name, writer)
    assert footer.sessions == SESSIONS
    assert (footer.signer, footer.size) == (writer.signer.public, storage.size(name))


@pytest.mark.parametrize("length", [1, 1000, 70_000])
def test_a_pack_has_a_padded_length_that_hides_its_own(storage, writer, length):
    pack = PackWriter(storage, writer)
    pack.add([entry(1, length)], os.urandom(length))
    pack_id, size = pack.commit(full=False)
    name = pack_name(pack_id)
    footer = open_footer(storage, name, writer)
    assert size == storage.size(name) == padme(size)
    assert footer.end - RECORDS - length <= 0.12 * size, "padding is between the records and the footer"


def largest(pack, make):
    """Return the length of the largest record that fits."""
    low, high = 0, packs.PACK_BYTES
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if pack.fits([make(middle)]) else (low, middle)
    return low


@pytest.mark.parametrize("bases", [(), (IDS[1],), (IDS[1], IDS[2])], ids=len)
@pytest.mark.parametrize("session", SESSIONS, ids=["known", "new"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_record_fits_up_to_the_last_byte_of_a_full_pack(storage, writer, monkeypatch, session, bases, missing):
    monkeypatch.setattr(packs, "PACK_BYTES", 1 << 17)
    pack = PackWriter(storage, writer)
    pack.add([entry(1, 500)], os.urandom(500))
    pack.add([entry(2, 500, codec=DELTA, bases=(IDS[1],))], os.urandom(500))

    def make(length):
        return entry(3, length, session, codec=DELTA + len(bases) - 1 if bases else ZSTD, bases=bases)

    length = largest(pack, make) - missing
    assert length > 1 << 16
    pack.add([make(length)], os.urandom(length))
    pack_id, size = pack.commit(full=True)
    assert size == storage.size(pack_name(pack_id)) == packs.PACK_BYTES
    found = read_footer(storage, pack_name(pack_id), writer)[0]
    assert found[-1] == make(length)._replace(offset=RECORDS + 1000)
    assert open_footer(storage, pack_name(pack_id), writer).end == RECORDS + 1000 + length + missing


@pytest.mark.parametrize(("kind", "codec"), [(CHUNK, len(packs.BASES)), (CHUNK, 255), (NODE, DELTA), (NODE + 1, ZSTD)])
def test_an_entry_of_an_unknown_kind_or_codec_is_damage(storage, writer, kind, codec):
    pack = PackWriter(storage, writer)
    pack.add([entry(1, 10, kind=kind, codec=codec)], os.urandom(10))
    pack_id, _ = pack.commit(full=False)
    with pytest.raises(DamageError, match=f"{pack_id.hex()} is damaged: .*kind {kind}, codec {codec}"):
        read_footer(storage, pack_name(pack_id), writer)


def test_a_full_pack_has_one_length_however_much_it_has(storage, writer, monkeypatch):
    monkeypatch.setattr(packs, "PACK_BYTES", 3 << 20)
    pack = PackWriter(storage, writer)
    pack.add([entry(1, 10)], os.urandom(10))
    pack_id, size = pack.commit(full=True)
    assert size == storage.size(pack_name(pack_id)) == 3 << 20
    assert read_footer(storage, pack_name(pack_id), writer)[0] == [entry(1, 10, offset=RECORDS)]


def test_a_pack_has_as_many_sessions_as_its_footer_can_name(storage, writer, monkeypatch):
    monkeypatch.setattr(packs, "_MAX_SESSIONS", 1)
    pack = PackWriter(storage, writer)
    pack.add([entry(1, 10)], os.urandom(10))
    assert pack.fits([entry(2, 10)])
    assert not pack.fits([entry(2, 10, SESSIONS[1])])
    pack.abort()
    assert list(storage.list("packs")) == []


def test_a_pack_of_an_impossible_length_is_named(storage, writer):
    name = pack_name(bytes(32))
    storage.put(name, bytes(RECORDS))
    with pytest.raises(DamageError, match=f"{name} is damaged: {RECORDS} bytes is not a valid length of a pack"):
        open_footer(storage, name, writer)
