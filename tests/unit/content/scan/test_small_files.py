"""Small files that may have changed, unnoticed, are read again."""

from __future__ import annotations

import os
import random
import time

from castore.content.scan import cache
from castore.services.sources import Tree
from tests.support.stores import Sandbox


def test_files_that_may_have_changed_take_no_space_when_they_have_not(tmp_path, monkeypatch):
    sandbox, tree = Sandbox(tmp_path / "sandbox"), tmp_path / "tree"
    tree.mkdir()
    for number in range(20):
        (tree / f"{number:02}").write_bytes(random.Random(number).randbytes(5000))
    time.sleep(0.3)
    os.utime(tree / "07")  # its ctime, too
    monkeypatch.setattr(cache, "_RACY_NS", 100_000_000)
    first = sandbox.snapshot("s", {"t": Tree(str(tree))}).parts[0]
    time.sleep(0.3)
    again = sandbox.snapshot("s", {"t": Tree(str(tree))}).parts[0]
    assert first.new_bytes >= 100_000
    assert again.new_bytes == 0
