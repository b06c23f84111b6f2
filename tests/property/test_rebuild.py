"""An index made at once of all packs answers as one that took them in one by one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from castore.errors import DamageError, StorageError
from castore.kernel import index_rows as kernel_rows
from castore.kernel.index_rows import Rows
from castore.model.refs import PackId, RecordId
from castore.store.format.pack import _ENTRY, BASES, CHUNK, DELTA, NODE, RECORDS, Footer
from castore.store.index import Index, bulk_load
from castore.store.index.pack_tables import PackContent
from castore.store.index.schema import TABLES
from tests.support.checkout import ROOT

STORE = bytes(16)
_SESSION = 44
"""Where an entry has the lower byte of its session's position."""
# Few ids, so that packs share them; some begin with the same bytes.
IDS = [bytes([n % 3]) * 8 + bytes([n]) * 24 for n in range(12)]


@st.composite
def footers(draw):
    """Return a well-formed footer."""
    sessions = draw(st.lists(st.sampled_from([bytes([n]) * 16 for n in range(4)]), min_size=1, max_size=3, unique=True))
    entries, bases = [], []
    offset = RECORDS
    for counter in range(draw(st.integers(0, 8))):
        session = draw(st.integers(0, len(sessions) - 1))
        codec = draw(st.integers(0, len(BASES) - 1))
        kind = CHUNK if codec >= DELTA else draw(st.sampled_from([CHUNK, NODE]))
        sealed = draw(st.integers(1, 1000))
        members = draw(st.integers(1, 4)) if codec >= DELTA else 1
        for member in range(members):
            own = draw(st.integers(DELTA, len(BASES) - 1)) if member else codec
            fields = (draw(st.sampled_from(IDS)), 0 if member else sealed, draw(st.integers(0, 99)), counter)
            entries.append(_ENTRY.pack(*fields, session, kind, own))
            bases += [draw(st.sampled_from(IDS)) for _ in range(BASES[own])]
        offset += sealed
    # A writer lists the sessions of its records only.
    used = sorted({entry[_SESSION] for entry in entries})
    entries = [entry[:_SESSION] + bytes([used.index(entry[_SESSION])]) + entry[_SESSION + 1 :] for entry in entries]
    sessions = [sessions[one] for one in used]
    plain = len(sessions).to_bytes(2, "little") + b"".join([*sessions, *entries, *bases])
    return Footer(plain, len(entries), offset + draw(st.integers(0, 9)), offset + 100, draw(st.binary(min_size=32, max_size=32)))


def dump(index: Index) -> dict[str, object]:
    """Return what an index holds, in terms that do not depend on how it numbers sessions."""
    found: dict[str, object] = {}
    with index.tables.reading() as txn:
        for name in TABLES:
            if name not in {"meta", "sessions", "session_numbers"}:
                found[name] = list(txn.cursor(index.tables.by_name[name]))
        sessions = dict(txn.cursor(index.tables.by_name["sessions"]))
        for name in ("chunks", "nodes", "copies"):
            found[name] = [(key, v[:20], sessions[v[20:24][::-1]], v[24:]) for key, v in found[name]]
        found["owners"] = [
            (key, v[:32], {sessions[v[at : at + 4]] for at in range(32, len(v), 4)}) for key, v in found["owners"]
        ]
        numbers = dict(txn.cursor(index.tables.by_name["session_numbers"]))
        assert numbers == {session: number for number, session in sessions.items()}
        for counter, table in ((b"next pack", "packs"), (b"next session", "sessions")):
            following = int.from_bytes(txn.get(counter, bytes(4), db=index.tables.by_name["meta"]), "big")
            assert following >= txn.stat(index.tables.by_name[table])["entries"]
    return found


def answers(index: Index) -> list[object]:
    ids = [RecordId(one) for one in IDS]
    locations = index.locations
    places = [(locations.locate(kind, one), locations.copies(one)) for kind in (0, 1) for one in ids]
    nodes = [locations.has_node(one) for one in ids]
    return [places, locations.find(ids), nodes, list(locations.records()), locations.locate_chunks(ids)]


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(found=st.lists(footers(), max_size=6), more=footers(), most=st.sampled_from([1, 3, 1000]), block=st.sampled_from([1, 5, 4096]))
def test_both_ways_give_one_index(found, more, most, block):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk_load, "_BLOCK", block)
        patch.setattr(bulk_load, "_COMMIT", 2)
        patch.setattr(bulk_load, "Rows", lambda folder: Rows(folder, most))
        packs = [(PackId(os.urandom(32)), footer) for footer in found]
        one, other = (Index(os.path.join(folder, name, "index"), STORE) for name in ("one", "other"))
        one.packs.put([PackContent(pack, footer.size, footer.entries(), footer.signer) for pack, footer in packs])
        other.rebuild(packs, None)
        assert dump(one) == dump(other)
        assert answers(one) == answers(other)
        # And it goes on from there.
        last = PackId(os.urandom(32))
        for index in (one, other):
            sketches = [(RecordId(one), (one[-4:], one[-4:-1] + b"f")) for one in IDS[::2]]
            index.packs.put([PackContent(last, more.size, more.entries())], sketches)
        assert dump(one) == dump(other)
        gone = dict(packs[::2])
        one.packs.remove(gone)
        other.packs.remove(gone, {pack: [entry.id for entry in footer.entries()] for pack, footer in gone.items()})
        assert dump(one) == dump(other)
        assert answers(one) == answers(other)
        for index in (one, other):
            index.close()
        assert os.listdir(os.path.join(folder, "other")) == ["index"]


@settings(max_examples=300)
@given(footer=footers(), data=st.data())
def test_a_footer_is_whole_for_the_kernel_where_it_is_for_its_twin(footer, data, tmp_path_factory):
    plain = bytearray(footer.plain)
    count, end = footer.entry_count, footer.end
    match data.draw(st.integers(0, 4)):
        case 0:
            plain[data.draw(st.integers(0, len(plain) - 1))] = data.draw(st.integers(0, 255))
        case 1:
            del plain[data.draw(st.integers(0, len(plain))) :]
        case 2:
            count = data.draw(st.integers(0, 20))
        case 3:
            end = data.draw(st.integers(0, footer.end))
        case 4:
            plain += bytes(data.draw(st.integers(0, 100)))
    harmed = Footer(bytes(plain), count, end, footer.size)
    collected = Rows(str(tmp_path_factory.getbasetemp()))
    size = collected.add(harmed.plain, count, (RECORDS, end), 7, range(len(harmed.sessions)))
    try:
        entries = harmed.entries()
    except DamageError:
        assert size is None
        assert collected.chunks.rows.count == collected.nodes.rows.count == collected.bases.rows.count == 0
        return
    firsts = {entry.id: entry for entry in reversed(entries)}
    assert size == sum({entry.offset: entry.sealed_length for entry in entries}.values())
    assert collected.chunks.rows.count == sum(entry.kind == CHUNK for entry in firsts.values())
    assert collected.bases.rows.count == sum(bool(entry.bases) for entry in firsts.values())


def test_a_rebuild_that_fails_leaves_the_index_as_it_was(tmp_path):
    index = Index(str(tmp_path / "index"), STORE)
    index.set_rotation(5, new_ids=False)

    def failing():
        yield from ()
        raise StorageError("gone")

    with pytest.raises(StorageError, match="gone"):
        index.rebuild(failing(), None)
    assert index.rotation() == 5
    assert os.listdir(tmp_path) == ["index"]
    (tmp_path / "index.0123").mkdir()
    index.rebuild([], None)
    assert os.listdir(tmp_path) == ["index"]
    index.close()


def test_listed_numbers_are_found():
    listed = b"".join(sorted(os.urandom(4) for _ in range(100)))
    numbers = [listed[:4], b"none", listed[-4:], listed[200:204]]
    assert kernel_rows.are_listed(b"".join(numbers), 4, listed) == (3, b"\1\0\1\1")
    assert kernel_rows.are_listed(b"".join(numbers), 4, b"") == (0, bytes(4))


REBUILD = """
import os, sys, time
sys.path.insert(0, sys.argv[3])
from castore.store.index import Index
from castore.store.format.pack import Footer
index = Index(sys.argv[1], bytes(16))
def footers():
    for n in range(50):
        yield bytes([n]) * 32, Footer(bytes(2), 0, 32, 100 + n)
        if sys.argv[2] == "wait" and n == 20:
            print("begun", flush=True)
            time.sleep(600)
for _ in range(1 if sys.argv[2] == "wait" else 10):
    index.rebuild(footers(), None)
    assert index.count("packs") == 50
"""


def rebuilding(path, how: str) -> subprocess.Popen:
    root = str(ROOT)
    return subprocess.Popen([sys.executable, "-c", REBUILD, str(path), how, root], stdout=subprocess.PIPE, text=True)


def test_a_rebuild_that_is_killed_leaves_the_index_as_it_was(tmp_path):
    path = tmp_path / "index"
    index = Index(str(path), STORE)
    index.packs.put([PackContent(PackId(bytes(32)), 5, [])])
    one = rebuilding(path, "wait")
    assert one.stdout.readline() == "begun\n"
    assert len(os.listdir(tmp_path)) == 2
    one.kill()
    one.communicate()
    assert index.packs.lengths() == [(bytes(32), 5)]
    index.rebuild([], None)
    assert os.listdir(tmp_path) == ["index"]
    assert index.packs.lengths() == []
    index.close()


def test_processes_that_rebuild_at_once_leave_one_whole_index(tmp_path):
    path = tmp_path / "index"
    running = [rebuilding(path, "go") for _ in range(3)]
    for one in running:
        one.communicate()
    assert [one.returncode for one in running] == [0, 0, 0]
    index = Index(str(path), STORE)
    assert index.count("packs") == 50
    index.close()
    assert os.listdir(tmp_path) == ["index"]
