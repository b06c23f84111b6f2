"""Generations: what one snapshot of a service left behind."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final, Literal

import msgspec

from castore.errors import DamageError, FormatError, UsageError
from castore.model._msgpack import UNDECODABLE
from castore.model.counting import count as counted
from castore.model.names import check_host, check_host_id, check_name, check_path, check_revision
from castore.model.odd_text import is_valid, lossless, texts, without_odd
from castore.model.refs import ID_BYTES, RecordId, Ref, RefKind

_VERSION: Final = 1
MAX_NUMBER: Final = 0xFFFFFFFF
MAX_FILES: Final = 1 << 32
"""Entries of a tree: no file system has more."""
MAX_DETAILS: Final = 32 << 20
"""Bytes of the stream that holds a generation's details."""
_MAX_SETTINGS: Final = 1 << 20
"""Bytes of the settings of a part: values of any type take many times as much memory."""
_MAX_COUNT: Final = (1 << 63) - 1
_MAX_DEPTH: Final = 32
"""Of values in each other in the settings of a part."""


class StoredRef(msgspec.Struct, frozen=True, array_like=True):
    """A reference as a record holds it."""

    kind: RefKind
    id: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    size: int

    @classmethod
    def of(cls, ref: Ref | None) -> StoredRef | None:
        """Return `ref` for storing; None is the empty stream."""
        return None if ref is None else cls(*ref)

    @property
    def ref(self) -> Ref:
        """The reference to follow."""
        return Ref(self.kind, RecordId(self.id), self.size)


class Part(msgspec.Struct, frozen=True):
    """One named piece of a generation."""

    name: str
    kind: Literal["tree", "dump"]
    root: StoredRef | None
    """Its content; None is a dump of no bytes."""
    size: int
    """Bytes of content."""
    files: int
    """Entries of a tree, its top directory not counted; 0 for a dump."""
    chunks: int
    """References to chunks, metadata's among them."""
    new_chunks: int
    """Chunks among them that the store did not have."""
    new_bytes: int
    """Their length."""
    stored_bytes: int
    """What they and new nodes took, compressed and sealed."""
    after_delta: int = 0
    """What deltas left of `new_bytes`."""
    after_compression: int = 0
    """What compression left of `after_delta`; `stored_bytes` has seals and nodes on top."""
    missed: int = 0
    """Files that could not be read, vanished or changed while being read: see Details.warnings."""

    @property
    def content(self) -> Ref | None:
        """The reference to its content; None is a dump of no bytes."""
        return None if self.root is None else self.root.ref


class Generation(msgspec.Struct, frozen=True):
    """A committed snapshot of a service. Its record lies under the index key."""

    service: str
    number: int
    time: int
    """When it was begun: nanoseconds since 1970."""
    revision: str
    """The configuration that the state belongs to; empty where none is known."""
    host: str
    parts: tuple[Part, ...]
    details: StoredRef
    """A stream that holds Details, sealed like content."""
    session: bytes
    parent: int = 0
    """The number of the generation before it, 0 for the first."""
    safety: bool = False
    """Taken by a roll-back of the state that it was about to replace; found by number only."""
    interrupted: bool = False
    """Taken after a rollback that failed or was killed: the state may be inconsistent. Such a generation
    is a safety generation, too, so that only its number selects it."""
    host_id: str = ""
    """What its host is known by; empty in records of older castores."""
    lacks: tuple[str, ...] = ()
    """Parts that castore.toml described and that were not taken: the generation is partial."""
    duration: int = 0
    """Nanoseconds from its beginning to its record."""
    version: int = _VERSION

    @property
    def size(self) -> int:
        """Bytes of content of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def missed(self) -> int:
        """Files of all parts that are missing or doubtful in it."""
        return sum(part.missed for part in self.parts)

    @property
    def partial(self) -> bool:
        """Whether it has only some of the parts that castore.toml described."""
        return bool(self.lacks)

    @property
    def number_only(self) -> bool:
        """Whether only its number selects it: it is never selected as the latest, or for a revision."""
        return self.safety or self.partial

    def part(self, name: str) -> Part | None:
        """Return the part of that name, or None."""
        return next((part for part in self.parts if part.name == name), None)


class FileOwner(msgspec.Struct, frozen=True, array_like=True):
    """The owner and mode of a directory above a part, or of the file that a part is."""

    path: bytes
    mode: int
    uid: int
    gid: int
    user: str = ""
    """Empty: the machine had no name for the id."""
    group: str = ""
    acls: tuple[tuple[bytes, bytes], ...] = ()
    """Its POSIX access control lists, as attributes."""
    users: tuple[tuple[int, str], ...] = ()
    """The names of the users in these."""
    groups: tuple[tuple[int, str], ...] = ()


class Origin(msgspec.Struct, frozen=True):
    """Where a part came from, so that a roll-back can put it back."""

    path: bytes = b""
    """A tree's directory or a dump's file, absolute; empty for a program or standard input."""
    dump: tuple[str, ...] = ()
    """The program that made a dump."""
    restore: tuple[str, ...] = ()
    """The program that takes a dump in on its standard input."""
    exclude: tuple[str, ...] = ()
    """The patterns that a tree was taken with."""
    one_file_system: bool = False
    exclude_caches: bool = False
    engine: str = ""
    """What castore.toml names as its engine; empty for a tree, and what older castores took."""
    settings: dict[str, Any] = {}
    """Its keys there: where the database is, never a password."""
    above: tuple[FileOwner, ...] = ()
    """The directories above a tree or file, the topmost first: a new machine does not have them."""
    file: FileOwner | None = None
    """The file that a part of the engines file and sqlite is."""
    made_by: str = ""
    """What made the dump, with its version."""
    raw: dict[str, tuple[bytes, ...]] = {}
    """Stored only: `dump` and `restore` as bytes, where an argument is not UTF-8."""


class Details(msgspec.Struct, frozen=True):
    """What a generation tells about content, for holders of an identity only."""

    origins: dict[str, Origin]
    warnings: tuple[tuple[str, bytes, str], ...] = ()
    """(part, path, reason) of each file that is missing or doubtful."""
    hooks: tuple[tuple[str, ...], ...] = ()
    """Programs that were run before the parts were taken, so that these belong together."""
    absent: dict[str, Literal["tree", "dump"]] = {}
    """Parts that a roll-back found not to be there, and made: to go back to before it is to remove them."""


_encoder = msgspec.msgpack.Encoder()
_generation_decoder = msgspec.msgpack.Decoder(Generation)
_details_decoder = msgspec.msgpack.Decoder(Details)


class _OriginSizes(msgspec.Struct):
    settings: msgspec.Raw = msgspec.Raw(b"\x80")


class _DetailsSizes(msgspec.Struct):
    origins: dict[str, _OriginSizes]


_sizes_decoder = msgspec.msgpack.Decoder(_DetailsSizes)
_version_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def encode(record: Generation | Details) -> bytes:
    """Return the plaintext of a record. Raises UsageError for one that `decode` would refuse."""
    _check(record)
    if isinstance(record, Details):
        origins = {name: _storable(one) for name, one in record.origins.items()}
        record = msgspec.structs.replace(record, origins=origins)
    try:
        plain = _encoder.encode(record)
    except UnicodeEncodeError:
        # What only people read, like the reason of a warning.
        plain = _encoder.encode(without_odd(msgspec.to_builtins(record, builtin_types=(bytes,))))
    if isinstance(record, Details) and len(plain) > MAX_DETAILS:
        raise UsageError(
            f"{counted(len(record.warnings), 'file')} could not be read, and a generation cannot list so "
            "many: exclude them, or run castore as a user who may read them"
        )
    return plain


def _storable(origin: Origin) -> Origin:
    """Return an origin that can be encoded: paths and arguments may have bytes that are not UTF-8."""
    raw = {
        name: tuple(map(os.fsencode, argv))
        for name, argv in (("dump", origin.dump), ("restore", origin.restore))
        if not all(map(is_valid, argv))
    }
    shown = {name: without_odd(getattr(origin, name)) for name in raw}
    return msgspec.structs.replace(origin, settings=lossless(origin.settings), raw=raw, **shown)


def _as_given(origin: Origin) -> Origin:
    """Return the origin that `_storable` was given."""
    argv = {name: texts(found) for name, found in origin.raw.items() if name in {"dump", "restore"}}
    return msgspec.structs.replace(origin, settings=texts(origin.settings), raw={}, **argv)


def decode_generation(data: bytes | memoryview) -> Generation:
    """Return the generation that a record's plaintext holds. Raises DamageError, FormatError."""
    try:
        generation = _generation_decoder.decode(data)
    except UNDECODABLE as error:
        _refuse_newer(data)
        raise DamageError(f"a generation record does not decode: {error}") from None
    if generation.version != _VERSION:
        _refuse_newer(data)
    try:
        _check(generation)
    except UsageError as error:
        raise DamageError(f"a generation record is not one that castore writes: {error}") from None
    if any(part.kind == "tree" and part.root is None for part in generation.parts):
        raise DamageError("a generation record has a tree without a root")
    return generation


def _check(record: Generation | Details) -> None:
    """Raise UsageError if a record has a name, path or number that no record may have."""
    if isinstance(record, Details):
        _check_details(record)
        return
    check_name("service", record.service)
    check_host(record.host)
    check_host_id(record.host_id)
    check_revision(record.revision)
    names = [part.name for part in record.parts]
    for name in (*names, *record.lacks):
        check_name("part", name)
    if len(set(names)) != len(names):
        raise UsageError("two parts have the same name")
    if len(record.session) != 16:
        raise UsageError(f"a session is named by 16 bytes, not {len(record.session)}")
    numbers = [record.time, record.duration, *(part.missed for part in record.parts)]
    numbers += [count for part in record.parts for count in (part.size, part.chunks, part.stored_bytes)]
    numbers += [count for part in record.parts for count in (part.new_chunks, part.new_bytes)]
    numbers += [count for part in record.parts for count in (part.after_delta, part.after_compression)]
    if not all(0 <= one <= _MAX_COUNT for one in numbers) or not 0 <= record.parent <= MAX_NUMBER:
        raise UsageError("a time, a size or a count in it is impossible")
    if not all(0 <= part.files <= MAX_FILES for part in record.parts):
        raise UsageError(f"no tree has more than {counted(MAX_FILES, 'entry', 'entries')}")


def _check_details(record: Details) -> None:
    for name in (*record.origins, *record.absent):
        check_name("part", name)
    for origin in record.origins.values():
        _check_origin(origin)
    if any(b"\0" in path for _, path, _ in record.warnings):
        raise UsageError("the path of a warning has a zero byte")


def _check_origin(origin: Origin) -> None:
    check_path(origin.path)
    if origin.engine:
        check_name("engine", origin.engine)
    _check_plain([origin.dump, origin.restore, origin.exclude, origin.settings, origin.raw], _MAX_DEPTH)
    settings_path = origin.settings.get("path")
    if isinstance(settings_path, str) and origin.engine in {"file", "sqlite"}:
        check_path(os.fsencode(settings_path))
    for one in origin.above:
        check_path(one.path)
        if not 0 <= one.mode <= 0o7777:
            raise UsageError(f"the mode {one.mode:o} of {one.path!r} is impossible")


def _check_plain(value: Any, depth: int) -> None:
    """Raise UsageError for a text with a zero byte, which no program or system call takes."""
    if isinstance(value, str | bytes):
        if (b"\0" if isinstance(value, bytes) else "\0") in value:  # type: ignore[operator]
            raise UsageError(f"{value[:80]!r} has a zero byte")
        return
    if not depth:
        raise UsageError("the settings of a part are nested deeper than castore writes them")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    for one in value if isinstance(value, list | tuple) else ():
        _check_plain(one, depth - 1)


def _refuse_newer(data: bytes | memoryview) -> None:
    """Raise FormatError if the record says that it is of another version."""
    try:
        version = msgspec.msgpack.decode(_version_decoder.decode(data)["version"], type=int)
    except (*UNDECODABLE, KeyError):
        return
    if version != _VERSION:
        raise FormatError(f"a generation of format {version}; this castore knows {_VERSION}: update it")


def decode_details(data: bytes) -> Details:
    """Return the details that a stream holds. Raises DamageError."""
    if len(data) > MAX_DETAILS:
        raise DamageError(f"a generation's details have {len(data):,} bytes, more than castore writes")
    try:
        sizes = [len(one.settings) for one in _sizes_decoder.decode(data).origins.values()]
        if max(sizes, default=0) > _MAX_SETTINGS:
            raise DamageError("the settings of a part are longer than castore writes them")
        details = _details_decoder.decode(data)
        origins = {name: _as_given(one) for name, one in details.origins.items()}
        details = msgspec.structs.replace(details, origins=origins)
        _check(details)
    except UNDECODABLE as error:
        raise DamageError(f"a generation's details do not decode: {error}") from None
    except UsageError as error:
        raise DamageError(f"a generation's details are not what castore writes: {error}") from None
    return details
