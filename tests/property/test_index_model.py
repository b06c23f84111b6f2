"""An index to which packs are added, and from which they are removed, answers as a slow model in Python does."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from castore.kernel.id_set import IdSet
from castore.model.refs import PackId, RecordId, SessionId
from castore.store.format.pack import BASES, CHUNK, DELTA, MAX_CHAIN, NODE, PackEntry
from castore.store.index import Index
from castore.store.index.pack_tables import PackContent

# Few ids, so that packs share them; some begin with the same eight bytes.
CHUNKS = [RecordId(bytes([n % 3]) * 8 + bytes([n]) * 24) for n in range(14)]
NODES = [RecordId(bytes([n]) * 32) for n in range(100, 104)]
SESSIONS = [SessionId(bytes([n]) * 16) for n in range(5)]
FEATURES = [bytes([n]) * 4 for n in range(6)]


class Model:
    """Packs in the order in which they were added."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.packs: dict[PackId, PackContent] = {}
        self.not_referenced: set[PackId] = set()

    def draw(self) -> PackContent:
        """Return a pack whose deltas have bases of lower numbers, so that none is its own base."""
        draw, entries, offset = self.random, [], 32
        for counter in range(draw.randrange(1, 6)):
            session, size, share = draw.choice(SESSIONS), draw.randrange(1, 1000), draw.random()
            if share < 0.2:
                entries.append(PackEntry(draw.choice(NODES), NODE, 1, 9, size, counter, session, offset))
            elif share < 0.6:
                chunk, codec, length = draw.choice(CHUNKS), draw.randrange(2), draw.randrange(100)
                entries.append(PackEntry(chunk, CHUNK, codec, length, size, counter, session, offset))
            else:
                for group_index in range(draw.choice((1, 2, 3))):
                    number, codec = draw.randrange(1, len(CHUNKS)), draw.randrange(DELTA, len(BASES))
                    bases = tuple(draw.choice(CHUNKS[:number]) for _ in range(BASES[codec]))
                    place = (size, counter, session, offset, bases, group_index)
                    entries.append(PackEntry(CHUNKS[number], CHUNK, codec, draw.randrange(100), *place))
            offset += size
        return PackContent(PackId(draw.randbytes(32)), offset + 50, entries, draw.randbytes(32))

    def places(self, kind: int, record: RecordId) -> list[tuple[PackId, PackEntry]]:
        """Return where a record is, the oldest pack first, once in each pack."""
        found = []
        for pack in self.packs.values():
            own = [one for one in pack.entries if (one.kind, one.id) == (kind, record)]
            if own:
                found.append((pack.id, min(own, key=lambda one: (one.offset, one.group_index))))
        return found

    def entries(self, pack: PackContent) -> list[PackEntry]:
        """Return the entries of the records of a pack of which each member is the first with its id."""
        firsts: dict[RecordId, PackEntry] = {}
        for entry in pack.entries:
            firsts.setdefault(entry.id, entry)
        groups = [list(group) for _, group in itertools.groupby(pack.entries, lambda entry: entry.offset)]
        return [entry for group in groups if all(firsts[one.id] == one for one in group) for entry in group]

    def chosen(self, absent: set[PackId]) -> dict[tuple[int, RecordId], tuple[PackId, PackEntry]]:
        """Return from which place each record is read: the first from which it can be reconstructed.

        absent: packs that are not used.
        """
        found: dict[tuple[int, RecordId], tuple[PackId, PackEntry]] = {}
        heights: dict[RecordId, int] = {}
        for chunk in CHUNKS:  # its bases have lower numbers
            for pack, entry in self.places(CHUNK, chunk):
                height = max((heights.get(base, MAX_CHAIN) + 1 for base in entry.bases), default=0)
                if pack not in absent and height <= MAX_CHAIN:
                    found[CHUNK, chunk], heights[chunk] = (pack, entry), height
                    break
        for node in NODES:
            for place in self.places(NODE, node):
                if place[0] not in absent:
                    found.setdefault((NODE, node), place)
        return found

    def beginning_as(self, chunk: RecordId) -> list[RecordId]:
        """Return the chunks of packs that begin with the same eight bytes as one."""
        return [one for one in CHUNKS if one[:8] == chunk[:8] and self.places(CHUNK, one)]

    def bases_of(self, chunks: set[RecordId]) -> set[RecordId]:
        """Return chunks and all their bases, at all places."""
        found, todo = set(), list(chunks)
        while todo:
            chunk = todo.pop()
            if chunk not in found:
                found.add(chunk)
                todo += [base for _, entry in self.places(CHUNK, chunk) for base in entry.bases]
        return found


def compare(model: Model, index: Index) -> None:
    packs, draw = model.packs, model.random
    assert index.packs.ids() == packs.keys()
    assert sorted(index.packs.lengths()) == sorted((one.id, one.length) for one in packs.values())
    entries = [entry for pack in packs.values() for entry in pack.entries]
    assert {one.pack: (one.length, one.signer, set(one.sessions)) for one in index.packs.owners()} == {
        one.id: (one.length, one.signer, {entry.session for entry in one.entries}) for one in packs.values()
    }
    for pack in packs.values():
        assert index.packs.entries(pack.id) == model.entries(pack)
    indexed = {(one.kind, one.id): (one.sealed_length, one.bases) for one in index.locations.records()}
    assert indexed.keys() == {(entry.kind, entry.id) for entry in entries}
    for kind, record in itertools.chain(((CHUNK, one) for one in CHUNKS), ((NODE, one) for one in NODES)):
        places = model.places(kind, record)
        first = index.locations.locate(kind, record)
        found = [first, *index.locations.copies(record)] if first is not None else []
        assert [(one.pack, one.offset, one.plain_length, one.session, one.bases, one.group_index) for one in found] == [
            (pack, one.offset, one.plain_length, one.session, one.bases, one.group_index) for pack, one in places
        ]
        if places:
            entry = places[0][1]
            assert indexed[kind, record] == (0 if entry.group_index else entry.sealed_length, entry.bases)
    absent = {one for one in packs if draw.random() < 0.3}
    for without in (set(), absent):
        chosen = model.chosen(without | model.not_referenced)
        assert index.locations.contains(CHUNKS, without=without) == [(CHUNK, one) in chosen for one in CHUNKS]
        assert [index.locations.has_node(one, without=without) for one in NODES] == [(NODE, one) in chosen for one in NODES]
    chosen = model.chosen(model.not_referenced)
    for pack in packs.values():
        places = [chosen.get((entry.kind, entry.id), (pack.id, entry)) for entry in pack.entries]
        are_chosen = [place == (pack.id, entry) for place, entry in zip(places, pack.entries, strict=True)]
        assert index.liveness.are_chosen(pack.id, pack.entries) == are_chosen
    complete = model.chosen(set())
    for chunk in CHUNKS:
        missing = index.locations.missing_base(chunk)
        assert (missing is None) == ((CHUNK, chunk) in complete)
        assert (CHUNK, missing) not in complete
    marked = {chunk for chunk in CHUNKS if draw.random() < 0.2}
    marks = IdSet()
    marks.add(b"".join(marked))
    index.liveness.mark_bases(marks)
    assert {chunk for chunk in CHUNKS if chunk in marks} == model.bases_of(marked)


def compare_features(model: Model, index: Index, features: dict[bytes, RecordId]) -> None:
    """Compare what is similar: a feature leads to the first chunk that begins as the one that has it."""
    assert index.count("features") == len(features), "those of missing chunks are deleted"
    for feature, chunk in features.items():
        assert index.locations.similar([(feature,)]) == [model.beginning_as(chunk)[:1]]


@pytest.mark.parametrize("seed", range(4))
def test_an_index_answers_as_a_model_while_packs_come_and_go(tmp_path, seed):
    model, index = Model(seed), Index(str(tmp_path / "index"), bytes(16))
    features: dict[bytes, RecordId] = {}
    for _ in range(10):
        draw = model.random
        if model.packs and draw.random() < 0.45:
            gone = draw.sample(sorted(model.packs), draw.randrange(1, 2 + len(model.packs) // 2))
            known = {pack: [entry.id for entry in model.packs[pack].entries] for pack in gone}
            epoch = index.epoch()
            index.packs.remove([*gone, PackId(b"none".ljust(32))], known if draw.random() < 0.5 else None)
            assert index.epoch() != epoch
            for pack in gone:
                del model.packs[pack]
                model.not_referenced.discard(pack)
            features = {one: chunk for one, chunk in features.items() if model.beginning_as(chunk)}
        else:
            added = [model.draw() for _ in range(draw.randrange(1, 4))]
            chunks = [entry.id for pack in added for entry in pack.entries if entry.kind == CHUNK]
            sketches = [(chunk, (draw.choice(FEATURES),)) for chunk in chunks[:2]]
            index.packs.put(added, sketches)
            model.packs |= {pack.id: pack for pack in added}
            features |= {sketch[0]: chunk for chunk, sketch in sketches}
        model.not_referenced = {one for one in model.packs if draw.random() < 0.1}
        index.liveness.set_not_referenced(model.not_referenced)
        compare(model, index)
        compare_features(model, index, features)
    index.close()


def test_the_bytes_that_chunks_use_are_those_of_their_records(tmp_path):
    model, index = Model(7), Index(str(tmp_path / "index"), bytes(16))
    packs = [model.draw() for _ in range(6)]
    index.packs.put(packs)
    model.packs = {pack.id: pack for pack in packs}
    chosen = model.chosen(set())
    complete = [chunk for chunk in CHUNKS if (CHUNK, chunk) in chosen]
    used = Counter(index.locations.find(complete).pack_bytes.values())
    records = set()
    for chunk in complete:
        pack, entry = chosen[CHUNK, chunk]
        records.add((pack, entry.offset, entry.sealed_length))
    sizes: Counter[PackId] = Counter()
    for pack, _, size in records:
        sizes[pack] += size
    assert used == Counter(sizes.values())
    index.close()
