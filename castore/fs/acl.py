"""Read the users and groups that POSIX access control lists name, and map them to another machine.

linux/posix_acl_xattr.h describes the value of the attributes: a version, then (tag, permissions, id) in the
order of tags.
"""

from __future__ import annotations

import struct
from itertools import groupby
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Xattrs = tuple[tuple[bytes, bytes], ...]

ACCESS_ACL: Final = "system.posix_acl_access"
DEFAULT_ACL: Final = "system.posix_acl_default"
_KEYS: Final = {ACCESS_ACL.encode(), DEFAULT_ACL.encode()}
_HEADER: Final = struct.Struct("<I")
_VERSION: Final = 2
_ENTRY: Final = struct.Struct("<HHI")
_USER: Final = 0x02
"""ACL_USER: an entry of a user. Only this tag and the next one (ACL_GROUP) have an id."""
_GROUP: Final = 0x08
_WHOM: Final = {_USER: "users", _GROUP: "groups"}


def acl_ids(xattrs: Xattrs) -> tuple[set[int], set[int]]:
    """Return the ids of the users and of the groups that access control lists name."""
    named: dict[int, set[int]] = {_USER: set(), _GROUP: set()}
    for key, value in xattrs:
        for tag, _, number in _entries(value) if key in _KEYS else ():
            if tag in named:
                named[tag].add(number)
    return named[_USER], named[_GROUP]


def mapped_acls(
    xattrs: Xattrs,
    users: Mapping[int, int],
    groups: Mapping[int, int],
    warn: Callable[[str], None] = lambda _reason: None,
) -> Xattrs:
    """Return attributes whose access control lists name the users and groups of this machine.

    users, groups: the ids on this machine of stored ids whose names exist here; other ids are unchanged. If
    several ids become one, `warn` is called. A list in which no id changes is returned byte for byte.
    """
    if not any(key in _KEYS for key, _ in xattrs):
        return xattrs
    here = {_USER: users, _GROUP: groups}
    return tuple((key, _mapped(key, value, here, warn) if key in _KEYS else value) for key, value in xattrs)


def _mapped(
    key: bytes, value: bytes, here: Mapping[int, Mapping[int, int]], warn: Callable[[str], None]
) -> bytes:
    entries: list[tuple[int, int, int]] = []
    changed = False
    for tag, several in groupby(_entries(value), key=lambda entry: entry[0]):
        if tag not in here:
            entries += several
            continue
        wanted: dict[int, list[tuple[int, int]]] = {}
        for _, permissions, number in several:
            now = here[tag].get(number, number)
            changed = changed or now != number
            wanted.setdefault(now, []).append((number, permissions))
        # Libraries that read access control lists require ascending ids without duplicates.
        entries += [
            (tag, _merged(key, tag, now, wanted[now], here[tag], warn), now) for now in sorted(wanted)
        ]
    if not changed:
        return value
    return value[: _HEADER.size] + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _merged(
    key: bytes,
    tag: int,
    now: int,
    several: list[tuple[int, int]],
    here: Mapping[int, int],
    warn: Callable[[str], None],
) -> int:
    """Return the permissions of the id `now`, which all stored ids in `several` become.

    several: (stored id, permissions). Ids that were mapped by name take precedence over one that happens to
    have the same number. The result has only the permissions that each of the remaining ids had.
    """
    named = [permissions for number, permissions in several if number in here]
    result = 0o7
    for permissions in named or [permissions for _, permissions in several]:
        result &= permissions
    if len(several) > 1:
        ids = ", ".join(str(number) for number, _ in several)
        warn(
            f"{key.decode()}: the stored {_WHOM[tag]} {ids} are all {now} here, which gets the permissions "
            f"{_shown(result)}"
        )
    return result


def _shown(permissions: int) -> str:
    return "".join(letter if permissions & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1)))


def _entries(value: bytes) -> Iterable[tuple[int, int, int]]:
    """Return the (tag, permissions, id) entries of a list; no entries if the value is not a valid list."""
    length = len(value) - _HEADER.size
    if length < 0 or length % _ENTRY.size or _HEADER.unpack_from(value)[0] != _VERSION:
        return ()
    return _ENTRY.iter_unpack(value[_HEADER.size :])
