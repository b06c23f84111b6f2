"""Pins, pending deletions and records of removals: what is written is read; what may not count does not."""

from __future__ import annotations

import pytest

from castore.crypto import Signers, WriterKey
from castore.errors import DamageError, FormatError, SignerError
from castore.storage import LocalStorage
from castore.store.format import deletion, pin, removal
from castore.store.format.deletion import open_deletion, pending_deletions, write_deletion
from castore.store.format.envelope import Refusal, seal_object
from castore.store.format.header import DELETION, PIN, REMOVAL
from castore.store.format.names import deletion_name, pin_name, removal_name
from castore.store.format.pin import pins, unpin
from castore.store.format.removal import damaged_removals, open_removal, record_removal, removals
from tests.support.stores import certified

PACKS = [bytes([number]) * 32 for number in (2, 1)]


@pytest.fixture
def storage(tmp_path):
    return LocalStorage(str(tmp_path / "store"), create=True)


@pytest.fixture
def writer():
    """The key of `h`, which may maintain; the machine `other` may only add, and `thief` is revoked."""
    key = certified()
    machines = {name: WriterKey.generate().machine for name in ("other", "thief")}
    (own,) = key.signers.machines
    signers = Signers(
        machines={own: frozenset(["h"]), machines["other"].signing.public: frozenset(["other"])},
        ended={machines["thief"].signing.public: frozenset(["thief"])},
        maintainers=frozenset([own]),
    )

    def as_machine(name):
        signer = key.signer if name == "h" else machines[name].signing
        return WriterKey(key.store_id, key.secret, signer=signer, signers=signers)

    return as_machine


# Pins


def test_a_generation_is_pinned_once_with_its_first_note(storage, writer):
    assert pin.pin(storage, writer("h"), "web", 3, "before the move")
    assert not pin.pin(storage, writer("other"), "web", 3, "again")
    assert pins(storage, writer("h"), "web") == {3: "before the move"}


def test_a_pin_of_one_service_pins_no_other(storage, writer):
    pin.pin(storage, writer("h"), "web", 3, "")
    assert pins(storage, writer("h"), "mail") == {}
    assert not unpin(storage, writer("h"), "mail", 3)
    assert pins(storage, writer("h"), "web") == {3: ""}


def test_unpinning_removes_the_pin_and_reports_whether_there_was_one(storage, writer):
    pin.pin(storage, writer("h"), "web", 3, "")
    pin.pin(storage, writer("h"), "web", 4, "")
    assert unpin(storage, writer("h"), "web", 3)
    assert not unpin(storage, writer("h"), "web", 3)
    assert pins(storage, writer("h"), "web") == {4: ""}


def test_a_damaged_pin_keeps_its_generation(storage, writer):
    name = pin_name(writer("h").tag("web"), 3)
    storage.put(name, b"no pin")
    assert pins(storage, writer("h"), "web") == {3: ""}


def test_a_revoked_machine_neither_pins_nor_prevents_a_pin(storage, writer):
    pin.pin(storage, writer("thief"), "web", 3, "for ever")
    assert pins(storage, writer("h"), "web") == {}
    assert pin.pin(storage, writer("h"), "web", 3, "note")
    assert pins(storage, writer("h"), "web") == {3: "note"}


def test_a_pin_of_a_later_version_names_it_and_keeps_its_generation(storage, writer):
    name = pin_name(writer("h").tag("web"), 3)
    storage.put(name, seal_object(PIN, name, pin._encoder.encode(pin.Pin(2, 0, "n")), writer("h")))
    with pytest.raises(FormatError, match=f"{name} is of format 2, and this castore knows 1"):
        pin.open_pin(name, storage.get(name), writer("h"))
    assert pins(storage, writer("h"), "web") == {3: ""}


def test_a_pin_without_the_fields_of_one_is_damage(storage, writer):
    name = pin_name(writer("h").tag("web"), 3)
    storage.put(name, seal_object(PIN, name, b"\x80", writer("h")))
    with pytest.raises(DamageError, match=f"{name} is damaged: Object missing required field"):
        pin.open_pin(name, storage.get(name), writer("h"))
    assert pins(storage, writer("h"), "web") == {3: ""}


# Pending deletions


def test_a_pending_deletion_names_its_packs_in_order(storage, writer):
    written = write_deletion(storage, writer("h"), PACKS)
    assert written.packs == tuple(sorted(PACKS))
    assert pending_deletions(storage, writer("other")) == ([written], {})


@pytest.mark.parametrize("name", ["other", "thief"])
def test_a_deletion_counts_only_if_its_signer_may_remove_packs(storage, writer, name):
    written = write_deletion(storage, writer(name), PACKS)
    assert pending_deletions(storage, writer("h")) == ([], {})
    with pytest.raises(SignerError, match=r"may not remove packs|had been revoked"):
        open_deletion(written.name, storage.get(written.name), writer("h"))


def test_deletions_that_do_not_count_hide_none_that_does(storage, writer):
    written = [write_deletion(storage, writer(name), PACKS) for name in ("h", "other", "thief") * 3]
    counting = sorted(one.name for one in written[::3])
    found, damaged = pending_deletions(storage, writer("h"))
    assert ([one.name for one in found], damaged) == (counting, {})


def test_an_unreadable_deletion_is_reported_and_hides_no_other(storage, writer):
    written = write_deletion(storage, writer("h"), PACKS)
    storage.put(deletion_name(b"\0" * 16), b"no deletion")
    storage.put("deletions/0", b"of somebody")
    found, damaged = pending_deletions(storage, writer("h"))
    assert found == [written]
    assert list(damaged) == [deletion_name(b"\0" * 16)]
    assert isinstance(damaged[deletion_name(b"\0" * 16)], Refusal)


def test_a_deletion_with_a_name_that_is_not_one_of_a_pack_is_damaged(storage, writer):
    name = deletion_name(b"\1" * 16)
    record = deletion._Record(1, 0, (PACKS[0], b"short"))
    data = seal_object(DELETION, name, deletion._encoder.encode(record), writer("h"))
    with pytest.raises(DamageError, match="an id of a pack in it is not valid"):
        open_deletion(name, data, writer("h"))


# Records of removals


def removed_by(storage, writer, name="h"):
    found = removals(storage, writer(name), "web")
    return found.by_maintainers.spans, {host: spans.spans for host, spans in found.by_hosts.items()}


def test_a_newer_record_includes_and_replaces_the_earlier_ones_of_its_signer(storage, writer):
    record_removal(storage, writer("h"), "web", [1, 2])
    record_removal(storage, writer("other"), "web", [9])
    record_removal(storage, writer("h"), "web", [4])
    assert len(list(storage.list("removals"))) == 2
    assert removed_by(storage, writer) == (((1, 2), (4, 4)), {"h": ((1, 2), (4, 4)), "other": ((9, 9),)})


def test_removals_that_are_recorded_are_not_recorded_again(storage, writer):
    record_removal(storage, writer("h"), "web", [1, 2])
    before = list(storage.list("removals"))
    record_removal(storage, writer("h"), "web", [2, 1])
    assert list(storage.list("removals")) == before
    record_removal(storage, writer("h"), "web", [2, 3])
    assert list(storage.list("removals")) != before


def test_a_removal_of_another_service_or_by_a_revoked_machine_explains_nothing(storage, writer):
    record_removal(storage, writer("h"), "mail", [1])
    record_removal(storage, writer("thief"), "web", [2])
    assert removed_by(storage, writer) == ((), {})


@pytest.mark.parametrize("span", [(0, 1), (3, 2), (1, 1 << 32)])
def test_a_run_of_numbers_that_no_generations_have_is_damage(storage, writer, span):
    name = removal_name(writer("h").tag("web"), b"\0" * 16)
    record = removal.Removal(1, 0, ((7, 7), span))
    storage.put(name, seal_object(REMOVAL, name, removal._encoder.encode(record), writer("h")))
    with pytest.raises(DamageError, match="a run of generations in it is not a valid one"):
        open_removal(name, storage.get(name), writer("h"))
    assert removed_by(storage, writer) == ((), {})
    assert list(damaged_removals(storage, writer("h"))) == [name]


@pytest.mark.parametrize("span", [(1, 1), (5, 0xFFFFFFFF)])
def test_the_outermost_numbers_of_generations_can_be_removed(writer, span):
    name = removal_name(writer("h").tag("web"), b"\0" * 16)
    record = removal.Removal(1, 0, (span,))
    data = seal_object(REMOVAL, name, removal._encoder.encode(record), writer("h"))
    assert open_removal(name, data, writer("h")) == (record, writer("h").signer.public)
    assert record.numbers.spans == (span,)


def test_damaged_records_of_all_services_are_reported_and_others_are_not(storage, writer):
    record_removal(storage, writer("h"), "web", [1])
    storage.put("removals/0", b"of somebody")
    name = removal_name(writer("h").tag("mail"), b"\0" * 16)
    storage.put(name, b"no record")
    assert list(damaged_removals(storage, writer("h"))) == [name]
    assert removed_by(storage, writer)[0] == ((1, 1),)
