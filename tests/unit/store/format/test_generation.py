"""Records and numbers of generations: a number that is far above all others uses none up."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from castore.errors import DamageError, FormatError
from castore.model.generation import MAX_NUMBER, Generation, StoredRef, encode
from castore.model.refs import RefKind
from castore.model.removals import Removals
from castore.model.spans import Spans
from castore.store.format.envelope import seal_object
from castore.store.format.generation import MAX_JUMP, encode_generation, last_in_sequence, open_generation
from castore.store.format.header import GENERATION
from castore.store.format.names import generation_name
from tests.support.stores import certified


def removed(by_maintainers=(), **by_hosts):
    return Removals(Spans(tuple(by_maintainers)), {host: Spans((span,)) for host, span in by_hosts.items()})


@pytest.mark.parametrize(
    ("numbers", "removals", "last"),
    [
        ([], removed(), 0),
        ([3, 1, 2], removed(), 3),
        ([MAX_JUMP], removed(), MAX_JUMP),
        ([MAX_JUMP + 1], removed(), 0),
        ([5, MAX_JUMP + 5], removed(), MAX_JUMP + 5),
        ([5, MAX_JUMP + 6], removed(), 5),
        ([5], removed([(6, MAX_JUMP)]), MAX_JUMP),
        ([5, 2 * MAX_JUMP], removed([(6, MAX_JUMP)]), 2 * MAX_JUMP),
        ([5], removed(host=(6, MAX_JUMP + 5)), MAX_JUMP + 5),
        ([5], removed(host=(6, MAX_JUMP + 6)), 5),
        ([5], removed(a=(6, 9), b=(6, 8)), 9),
        ([5], removed(a=(MAX_JUMP, MAX_JUMP), b=(2 * MAX_JUMP, 2 * MAX_JUMP)), MAX_JUMP),
    ],
)
def test_the_last_number_is_one_that_others_lead_to(numbers, removals, last):
    assert last_in_sequence(numbers, removals) == last


# Records


def generation(key, **more):
    details = StoredRef(RefKind.CHUNK, bytes(32), 1)
    made = Generation("web", 7, 1000, "r1", "", (), details, bytes(16))
    return replace(made, **{"host": "h", "host_id": key.signer.public.hex(), **more})


def test_a_record_is_that_of_its_name_host_and_number():
    key = certified("h")
    name = generation_name(key.tag("web"), 7)
    data, plain = encode_generation(generation(key), key)
    assert open_generation(name, data, key) == (generation(key), plain)
    for other, reason in [
        (generation(key, host="other"), "it names the host 'other', and is signed by another machine"),
        (generation(key, host_id="00" * 32), "is signed by another machine"),
        (generation(key, service="mail"), "it is the record of another generation"),
        (generation(key, number=8), "it is the record of another generation"),
        (generation(key, number=0), "no generation has the number 0"),
        (generation(key, number=MAX_NUMBER + 1), "no generation has the number"),
    ]:
        with pytest.raises(DamageError, match=f"{name} is damaged: .*{reason}"):
            open_generation(name, seal_object(GENERATION, name, encode(other), key), key)


def test_a_record_of_a_newer_format_says_so_and_one_that_does_not_decode_is_damage():
    key = certified("h")
    name = generation_name(key.tag("web"), 7)
    newer = seal_object(GENERATION, name, encode(generation(key, version=99)), key)
    with pytest.raises(FormatError, match=f"{name}: .*99"):
        open_generation(name, newer, key)
    with pytest.raises(DamageError, match=f"{name} is damaged: a generation record does not decode"):
        open_generation(name, seal_object(GENERATION, name, b"\xc1", key), key)
