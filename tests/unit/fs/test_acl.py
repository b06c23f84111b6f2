"""Access control lists whose ids are mapped by name."""

from __future__ import annotations

import os

import pytest

from castore.fs.acl import ACCESS_ACL, acl_ids, mapped_acls
from tests.support.feature_tree import ACL, ODD_OWNER

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files need root")


def test_a_list_without_a_changed_id_stays_byte_for_byte():
    odd = ((ACCESS_ACL.encode(), ACL), (b"system.nfs4_acl", ACL), (b"user.x", b""))
    assert mapped_acls(odd, {}, {}) is not None
    assert mapped_acls(odd, {}, {}) == odd
    assert acl_ids(odd) == ({ODD_OWNER}, {ODD_OWNER})
    changed = mapped_acls(odd, {ODD_OWNER: 5}, {})
    assert acl_ids(changed) == ({5}, {ODD_OWNER})
    assert changed[1:] == odd[1:]


@pytest.mark.parametrize("value", [b"", b"\2", b"\2\0\0\0x", b"\3\0\0\0" + ACL[4:], ACL[:-1]])
def test_a_value_that_is_no_list_stays_as_it_is(value):
    odd = ((ACCESS_ACL.encode(), value),)
    assert acl_ids(odd) == (set(), set())
    assert mapped_acls(odd, {ODD_OWNER: 5}, {}) == odd
