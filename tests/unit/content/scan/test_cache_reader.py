"""What a scan learns from the scan cache, and when it asks the store."""

from __future__ import annotations

import pytest

from castore.content.scan import cache, cache_reader
from castore.content.scan.cache_reader import ScanCacheReader
from castore.services.sources import Tree
from castore.store.read.content_reader import ContentReader
from tests.support.stores import Sandbox


@pytest.fixture
def sandbox(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "_RACY_NS", 0)  # the tests do not wait until a change is old
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    for folder in ("a", "b", "c"):
        (top / folder / "below").mkdir(parents=True)
        (top / folder / "large").write_bytes(b"".join(b"%d\n" % number for number in range(20_000)))
        for number in range(10):
            (top / folder / "below" / f"{number}").write_text(f"{folder}{number}" * 500)
    return top


def take(sandbox, tree):
    return sandbox.snapshot("s", {"t": Tree(str(tree))})


def test_a_snapshot_of_a_changed_tree_reads_no_node_of_directories(sandbox, tree, monkeypatch, tmp_path):
    take(sandbox, tree)
    (tree / "a" / "below" / "3").write_text("changed")
    (tree / "a" / "new").write_text("new")
    (tree / "b" / "below" / "4").unlink()
    read = []
    original = ContentReader.read_node
    monkeypatch.setattr(ContentReader, "read_node", lambda self, node: read.append(node) or original(self, node))
    taken = take(sandbox, tree)
    assert read == []
    monkeypatch.undo()
    sandbox.restore("s@latest:t", tmp_path / "out")
    for path in tree.rglob("*"):
        if path.is_file():
            assert (tmp_path / "out" / path.relative_to(tree)).read_bytes() == path.read_bytes()
    full = sandbox.snapshot("other", {"t": Tree(str(tree))})
    assert (taken.parts[0].size, taken.parts[0].files) == (full.parts[0].size, full.parts[0].files)


def test_a_scan_notices_that_the_index_has_lost_a_pack(sandbox, tree, monkeypatch):
    monkeypatch.setattr(cache_reader, "_LOOK_SECONDS", 0)
    root = take(sandbox, tree).parts[0].root
    (path,) = [path for path in sandbox.folder.glob("**/scan/*") if path.is_file()]
    with sandbox.open(identity=False) as store:
        rules = path.read_bytes()[16:48]
        reader = ScanCacheReader.open(store, str(path), root, rules)
        assert reader is not None
        with reader:
            assert reader.has(root)
            store.index.packs.remove(store.index.packs.ids())
            assert not reader.has(root)
