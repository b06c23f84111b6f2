"""What makes a signed configuration damaged: a name of a key that is none, or a number out of range."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from castore.store.format.config import Certificate, LabelledAdmin, LabelledRecipient, StoreConfig, _problem

KEY, OTHER, SHORT = b"k" * 32, b"o" * 32, b"k" * 31
SOUND = StoreConfig(
    version=1,
    created=0,
    average_chunk_size=1 << 18,
    recipients=(LabelledRecipient(KEY, "me"),),
    previous_secrets=(OTHER,),
    id_secret=OTHER,
    rotation=3,
    rotation_hash=OTHER,
    admins=(LabelledAdmin(KEY, recipient=KEY),),
    writers=(Certificate(OTHER, OTHER, "h", 0),),
)


def test_a_configuration_that_names_keys_is_sound():
    assert _problem(SOUND, KEY) == ""
    assert _problem(SOUND, OTHER) == "", "a machine may sign it until an admin does"
    least = StoreConfig(1, 0, 1 << 18, SOUND.recipients, admins=(LabelledAdmin(KEY),))
    assert _problem(least, KEY) == ""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"previous_secrets": (OTHER, SHORT)}, "a former writer secret in it is not valid"),
        ({"id_secret": SHORT}, "a former writer secret in it is not valid"),
        ({"rotation_hash": SHORT}, "it does not name the list of objects"),
        ({"rotation_hash": b""}, "it does not name the list of objects"),
        ({"recipients": ()}, "or it has none"),
        ({"recipients": (LabelledRecipient(KEY, ""), LabelledRecipient(SHORT, ""))}, "a recipient in it is not valid"),
        ({"admins": (LabelledAdmin(KEY), LabelledAdmin(SHORT))}, "an admin key in it is not valid"),
        ({"admins": (LabelledAdmin(KEY, recipient=SHORT),)}, "an admin key in it is not valid"),
        ({"writers": (Certificate(SHORT, OTHER, "h", 0),)}, "the certificate of a machine in it is not valid"),
        ({"writers": (Certificate(OTHER, SHORT, "h", 0),)}, "the certificate of a machine in it is not valid"),
        ({"admins": (), "writers": ()}, "it is signed by a key that it does not list"),
        ({"average_chunk_size": 1}, "its mean chunk length is 1"),
        ({"average_chunk_size": 1 << 40}, "its mean chunk length is"),
    ],
)
def test_what_is_wrong_with_a_configuration_is_named(changes: dict[str, Any], problem: str):
    assert problem in _problem(replace(SOUND, **changes), KEY)
