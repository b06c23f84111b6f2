"""The generations of a store: in order, and read when they are needed."""

from __future__ import annotations

import itertools

from castore.services.sources import file_source
from castore.store import generation_log
from tests.support.stores import Sandbox


def test_all_generations_are_read_one_by_one_in_the_order_of_the_list(tmp_path, monkeypatch) -> None:
    sandbox = Sandbox(tmp_path / "sandbox")
    (tmp_path / "dump").write_text("x")
    for service in ("b", "a", "b", "c", "a"):
        sandbox.snapshot(service, {"d": file_source(str(tmp_path / "dump"))})
    with sandbox.open() as store:
        listed = store.generations.all()
        assert [one.service for one in listed] == ["a", "c", "b", "a", "b"]
        assert list(store.generations.by_time()) == listed
        read = []
        decode = generation_log.decode_generation
        monkeypatch.setattr(generation_log, "decode_generation", lambda data: read.append(data) or decode(data))
        assert list(itertools.islice(store.generations.by_time(), 2)) == listed[:2]
        assert len(read) == 2
