"""The names of a store's objects: the folders, how a name is built, and what a name says.

A name is `FOLDER/SHORT`; a listing of a folder returns the short forms. A service appears as its tag of 8
bytes, a keyed hash. Functions that read a name take both forms, and accept only names that castore writes.
`castore/docs/format.md` describes them.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from blake3 import blake3

from castore.model.generation import MAX_NUMBER
from castore.model.refs import PackId, SessionId

CONFIGS: Final = "config"
ROTATIONS: Final = "rotations"
GENERATIONS: Final = "generations"
SESSIONS: Final = "sessions"
PACKS: Final = "packs"
PINS: Final = "pins"
REMOVALS: Final = "removals"
DELETIONS: Final = "deletions"
FLAGS: Final = "flags"
"""Properties of the storage of the store; the storage layer writes and reads them."""
TEMPORARY: Final = "tmp"
"""Objects that are being written; the storage layer uses it."""

FOLDERS: Final = frozenset(
    [CONFIGS, ROTATIONS, GENERATIONS, SESSIONS, PACKS, PINS, REMOVALS, DELETIONS, FLAGS, TEMPORARY]
)

_NUMBERED: Final = r"([1-9][0-9]{0,17})(?:\.([0-9a-f]{32}))?"
_TAGGED: Final = r"([0-9a-f]{16})-([0-9]{10})"
_SESSION: Final = r"([0-9a-f]{32})\.(0|[1-9][0-9]{0,17})"
_PACK: Final = r"[0-9a-f]{64}"
_REMOVAL: Final = r"([0-9a-f]{16})-[0-9a-f]{32}"
_DELETION: Final = r"[0-9a-f]{32}"


def full_name(folder: str, short: str) -> str:
    """Return the name of an object that a listing of its folder gives as `short`."""
    return f"{folder}/{short}"


def is_in(folder: str, name: str) -> bool:
    """Return whether a full name is of an object in this folder."""
    return name.startswith(f"{folder}/")


def short_name(folder: str, name: str) -> str:
    """Return a name without its folder, as a listing gives it."""
    return name.removeprefix(f"{folder}/")


# config/N and rotations/N, each with a copy


class Numbered(NamedTuple):
    """The parts of the name of a `config/N` or `rotations/N`, or of a copy of one."""

    number: int
    digest: str
    """Of a copy: the hash of its bytes, in hex; empty for the object itself."""


def numbered_name(folder: str, number: int) -> str:
    """Return `FOLDER/N`."""
    return f"{folder}/{number}"


def copy_name(folder: str, number: int, data: bytes) -> str:
    """Return `FOLDER/N.H`, the name of the copy of an object with these bytes."""
    return f"{folder}/{number}.{blake3(data).hexdigest()[:32]}"


def split_numbered(folder: str, name: str) -> Numbered | None:
    """Return what the name of an object in a numbered folder says; None if it is not such a name."""
    match = re.fullmatch(_NUMBERED, short_name(folder, name))
    return Numbered(int(match[1]), match[2] or "") if match else None


def config_name(number: int) -> str:
    """Return `config/N`."""
    return numbered_name(CONFIGS, number)


def rotation_name(number: int) -> str:
    """Return `rotations/N`."""
    return numbered_name(ROTATIONS, number)


# generations/T-N and pins/T-N


def generation_name(tag: bytes, number: int) -> str:
    """Return `generations/T-N`."""
    return f"{GENERATIONS}/{tag.hex()}-{number:010d}"


def pin_name(tag: bytes, number: int) -> str:
    """Return `pins/T-N`."""
    return f"{PINS}/{tag.hex()}-{number:010d}"


def is_generation(name: str) -> bool:
    """Return whether a name has the form of a generation's; its number may be too high for one."""
    return re.fullmatch(_TAGGED, short_name(GENERATIONS, name)) is not None


def split_generation(name: str) -> tuple[bytes, int]:
    """Return the tag and the number of a generation's name; (b"", 0) if it is not such a name."""
    return _split_tagged(short_name(GENERATIONS, name))


def split_pin(name: str) -> tuple[bytes, int]:
    """Return the tag and the number of a pin's name; (b"", 0) if it is not such a name."""
    return _split_tagged(short_name(PINS, name))


def _split_tagged(name: str) -> tuple[bytes, int]:
    match = re.fullmatch(_TAGGED, name)
    if match is None or int(match[2]) > MAX_NUMBER:
        return b"", 0
    return bytes.fromhex(match[1]), int(match[2])


# sessions/S.N, packs/P, removals/T-X, deletions/X


def session_name(session: SessionId, number: int) -> str:
    """Return `sessions/S.N`."""
    return f"{SESSIONS}/{session.hex()}.{number}"


def any_session_name(session: SessionId) -> str:
    """Return `sessions/S.*`, a pattern that names all objects of a session in messages."""
    return f"{SESSIONS}/{session.hex()}.*"


def split_session(name: str) -> tuple[SessionId, int] | None:
    """Return the session and the number of a session object's name; None if it is not such a name."""
    match = re.fullmatch(_SESSION, short_name(SESSIONS, name))
    return (SessionId(bytes.fromhex(match[1])), int(match[2])) if match else None


def pack_name(pack: PackId) -> str:
    """Return `packs/P`."""
    return f"{PACKS}/{pack.hex()}"


def pack_of(name: str) -> PackId | None:
    """Return the pack of a name; None if it is not the name of a pack."""
    short = short_name(PACKS, name)
    return PackId(bytes.fromhex(short)) if re.fullmatch(_PACK, short) else None


def removal_name(tag: bytes, unique: bytes) -> str:
    """Return `removals/T-X`. unique: 16 random bytes."""
    return f"{REMOVALS}/{tag.hex()}-{unique.hex()}"


def tag_of_removal(name: str) -> bytes | None:
    """Return the tag of a removal record's name; None if it is not such a name."""
    match = re.fullmatch(_REMOVAL, short_name(REMOVALS, name))
    return bytes.fromhex(match[1]) if match else None


def deletion_name(unique: bytes) -> str:
    """Return `deletions/X`. unique: 16 random bytes."""
    return f"{DELETIONS}/{unique.hex()}"


def is_deletion(name: str) -> bool:
    """Return whether a name is that of a pending deletion."""
    return re.fullmatch(_DELETION, short_name(DELETIONS, name)) is not None
