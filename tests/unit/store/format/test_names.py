"""The names of objects: what is built is read again, and nothing else is accepted."""

from __future__ import annotations

import pytest

from castore.model.generation import MAX_NUMBER
from castore.model.refs import PackId, SessionId
from castore.store.format import names
from tests.support.stores import Sandbox

TAG, ID, UNIQUE = bytes(range(8)), bytes(range(32)), bytes(range(16))


def test_each_name_is_read_as_it_was_built():
    assert names.split_generation(names.generation_name(TAG, 7)) == (TAG, 7)
    assert names.split_pin(names.pin_name(TAG, MAX_NUMBER)) == (TAG, MAX_NUMBER)
    assert names.split_session(names.session_name(SessionId(UNIQUE), 3)) == (UNIQUE, 3)
    assert names.pack_of(names.pack_name(PackId(ID))) == ID
    assert names.tag_of_removal(names.removal_name(TAG, UNIQUE)) == TAG
    assert names.is_deletion(names.deletion_name(UNIQUE))
    assert names.split_numbered(names.CONFIGS, names.config_name(12)) == (12, "")
    copy = names.split_numbered(names.ROTATIONS, names.copy_name(names.ROTATIONS, 2, b"data"))
    assert copy is not None
    assert (copy.number, len(copy.digest)) == (2, 32)


@pytest.mark.parametrize("bad", ["", "x", "00" * 8 + "-1", "00" * 8 + "-" + "9" * 10, "AA" * 8 + "-" + "0" * 9 + "1"])
def test_other_names_are_not_those_of_generations_and_pins(bad):
    assert names.split_generation(bad) == names.split_pin(bad) == (b"", 0)


@pytest.mark.parametrize("bad", ["", "x", "ab" * 31, "AB" * 32, "ab" * 32 + "\n", "packs/x", "generations/" + "ab" * 32])
def test_other_names_are_not_those_of_packs(bad):
    assert names.pack_of(bad) is None


@pytest.mark.parametrize("bad", ["0", "01", "1.", "1." + "g" * 32, "1" * 19, "-1", "tmp"])
def test_other_names_are_not_those_of_configurations(bad):
    assert names.split_numbered(names.CONFIGS, bad) is None


@pytest.mark.parametrize("bad", ["", "00" * 16, "00" * 16 + ".", "00" * 16 + ".01", "00" * 15 + ".1"])
def test_other_names_are_not_those_of_sessions(bad):
    assert names.split_session(bad) is None


def test_a_store_has_no_other_folders(tmp_path):
    sandbox = Sandbox(tmp_path)
    assert {path.name for path in sandbox.store.iterdir()} <= names.FOLDERS
