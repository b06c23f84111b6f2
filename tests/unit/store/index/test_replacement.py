"""An index replaces another one under its name, also if a third appears there at that moment."""

from __future__ import annotations

import os

import pytest

from castore.store.index import replacement


def make(path, name):
    path.mkdir()
    (path / name).touch()
    return str(path)


@pytest.mark.parametrize("existed", [True, False])
def test_an_index_that_another_process_creates_meanwhile_is_replaced_too(tmp_path, monkeypatch, existed):
    path, built = tmp_path / "index", make(tmp_path / "index.1", "built")
    if existed:
        make(path, "old")
    rename, made = replacement._rename, []

    def racing(old, new):
        if not made:
            made.append(make(path, "of another"))
        return rename(old, new)

    monkeypatch.setattr(replacement, "_rename", racing)
    olds = replacement._exchange(built, str(path))
    assert os.listdir(path) == ["built"]
    found = [os.listdir(old) for old in olds if os.path.exists(old)]
    assert found == [["old"], ["of another"]][not existed :]


def test_a_name_that_cannot_be_given_is_reported(tmp_path):
    with pytest.raises(FileNotFoundError):
        replacement._exchange(str(tmp_path / "missing"), str(tmp_path / "index"))
