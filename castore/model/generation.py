"""Generations: the record of one snapshot of a service, and its details."""

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
"""The most entries that a tree can have: no file system has more."""
MAX_DETAILS: Final = 32 << 20
"""The most bytes in the stream of a generation's details."""
_MAX_SETTINGS: Final = 1 << 20
"""The most bytes in the settings of a part: decoded values take many times as much memory."""
_MAX_COUNT: Final = (1 << 63) - 1
_MAX_DEPTH: Final = 32
"""The deepest nesting of values in the settings of a part."""


class StoredRef(msgspec.Struct, frozen=True, array_like=True):
    """A reference in the form in which records hold it."""

    kind: RefKind
    id: Annotated[bytes, msgspec.Meta(min_length=ID_BYTES, max_length=ID_BYTES)]
    size: int

    @classmethod
    def of(cls, ref: Ref | None) -> StoredRef | None:
        """Return `ref` in stored form; None is the empty stream."""
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
    """Its content; None for an empty dump."""
    size: int
    """Bytes of content."""
    files: int
    """Entries of a tree, its top directory not counted; 0 for a dump."""
    chunks: int
    """References to chunks, including those of metadata."""
    new_chunks: int
    """Those of the chunks that the store did not have."""
    new_bytes: int
    """Total length of the new chunks, in bytes."""
    stored_bytes: int
    """Bytes that the new chunks and nodes took, compressed and sealed."""
    after_delta: int = 0
    """What is left of `new_bytes` after delta encoding."""
    after_compression: int = 0
    """What is left of `after_delta` after compression; `stored_bytes` also counts seals and nodes."""
    skipped_files: int = 0
    """Files that could not be read, or that vanished or changed meanwhile: see Details.warnings."""

    @property
    def content(self) -> Ref | None:
        """The reference to its content; None for an empty dump."""
        return None if self.root is None else self.root.ref


class Generation(msgspec.Struct, frozen=True):
    """A committed snapshot of a service. Its record is sealed under the index key."""

    service: str
    number: int
    time: int
    """When the snapshot began: nanoseconds since 1970."""
    revision: str
    """The configuration that the state belongs to; empty if none is known."""
    host: str
    parts: tuple[Part, ...]
    details: StoredRef
    """A stream that holds Details, sealed like content."""
    session: bytes
    parent: int = 0
    """The number of the previous generation; 0 for the first."""
    pre_rollback: bool = False
    """Taken by a rollback, of the state that it was about to replace; selected by number only."""
    interrupted: bool = False
    """Taken after a rollback that failed or was killed: the state may be inconsistent. `pre_rollback` is also
    set, so that only its number selects it."""
    host_id: str = ""
    """The public key of the machine that took it, in hex."""
    missing_parts: tuple[str, ...] = ()
    """Parts that castore.toml described and that were not taken: the generation is partial."""
    duration: int = 0
    """Nanoseconds from the beginning of the snapshot to its record."""
    version: int = _VERSION

    @property
    def size(self) -> int:
        """Bytes of content of all parts."""
        return sum(part.size for part in self.parts)

    @property
    def skipped_files(self) -> int:
        """Files of all parts that are missing or possibly inconsistent."""
        return sum(part.skipped_files for part in self.parts)

    @property
    def partial(self) -> bool:
        """Whether it has only some of the parts that castore.toml described."""
        return bool(self.missing_parts)

    @property
    def number_only(self) -> bool:
        """Whether only its number selects it: it is never selected as the latest, or for a revision."""
        return self.pre_rollback or self.partial

    def part(self, name: str) -> Part | None:
        """Return the part with that name, or None."""
        return next((part for part in self.parts if part.name == name), None)


class FileOwner(msgspec.Struct, frozen=True, array_like=True):
    """The owner and mode of a directory above a part, or of the file that a part is."""

    path: bytes
    mode: int
    uid: int
    gid: int
    user: str = ""
    """Empty if the machine had no name for the id."""
    group: str = ""
    acls: tuple[tuple[bytes, bytes], ...] = ()
    """Its POSIX access control lists, as extended attributes."""
    users: tuple[tuple[int, str], ...] = ()
    """The names of the users in the lists."""
    groups: tuple[tuple[int, str], ...] = ()


class Origin(msgspec.Struct, frozen=True):
    """Where a part came from, so that a rollback can replace it there."""

    path: bytes = b""
    """The absolute path of a tree's directory or a dump's file; empty for a program or standard input."""
    dump: tuple[str, ...] = ()
    """The program that made a dump."""
    restore: tuple[str, ...] = ()
    """The program that reads a dump from its standard input and restores it."""
    exclude: tuple[str, ...] = ()
    """The exclude patterns of the tree."""
    one_file_system: bool = False
    exclude_caches: bool = False
    engine: str = ""
    """Its engine in castore.toml; empty for a tree."""
    settings: dict[str, Any] = {}
    """The part's keys in castore.toml: where the database is, never a password."""
    above: tuple[FileOwner, ...] = ()
    """The directories above a tree or file, the topmost first: a new machine may lack them."""
    file: FileOwner | None = None
    """The file itself, for a part of the engines file and sqlite."""
    producer: str = ""
    """The program that made the dump, with its version."""
    raw: dict[str, tuple[bytes, ...]] = {}
    """Only in stored form: `dump` and `restore` as bytes, if an argument is not UTF-8."""


class Details(msgspec.Struct, frozen=True):
    """What a generation says about its content, readable with an identity only."""

    origins: dict[str, Origin]
    warnings: tuple[tuple[str, bytes, str], ...] = ()
    """(part, path, reason) of each file that is missing or possibly inconsistent."""
    hooks: tuple[tuple[str, ...], ...] = ()
    """Programs that ran before the parts were taken, to make the parts consistent."""
    absent_parts: dict[str, Literal["tree", "dump"]] = {}
    """Parts that a rollback created because they did not exist: reverting the rollback removes them."""


_encoder = msgspec.msgpack.Encoder()


class _Order(msgspec.Struct):
    """What a generation is sorted by."""

    time: int
    number: int


_generation_decoder = msgspec.msgpack.Decoder(Generation)
_order_decoder = msgspec.msgpack.Decoder(_Order)
_details_decoder = msgspec.msgpack.Decoder(Details)


class _OriginSizes(msgspec.Struct):
    settings: msgspec.Raw = msgspec.Raw(b"\x80")


class _DetailsSizes(msgspec.Struct):
    origins: dict[str, _OriginSizes]


_sizes_decoder = msgspec.msgpack.Decoder(_DetailsSizes)
_version_decoder = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])


def encode(record: Generation | Details) -> bytes:
    """Return the plaintext of a record. Raises UsageError for a record that decoding would refuse."""
    _check(record)
    if isinstance(record, Details):
        origins = {name: _storable(one) for name, one in record.origins.items()}
        record = msgspec.structs.replace(record, origins=origins)
    try:
        plain = _encoder.encode(record)
    except UnicodeEncodeError:
        # The odd text is only for people to read, like the reason of a warning: escape it.
        plain = _encoder.encode(without_odd(msgspec.to_builtins(record, builtin_types=(bytes,))))
    if isinstance(record, Details) and len(plain) > MAX_DETAILS:
        raise UsageError(
            f"{counted(len(record.warnings), 'file')} could not be read, more than a generation can list: "
            "exclude them, or run castore as a user who may read them"
        )
    return plain


def _storable(origin: Origin) -> Origin:
    """Return an origin that can be encoded: its paths and arguments may have bytes that are not UTF-8."""
    raw = {
        name: tuple(map(os.fsencode, argv))
        for name, argv in (("dump", origin.dump), ("restore", origin.restore))
        if not all(map(is_valid, argv))
    }
    shown = {name: without_odd(getattr(origin, name)) for name in raw}
    return msgspec.structs.replace(origin, settings=lossless(origin.settings), raw=raw, **shown)


def _as_given(origin: Origin) -> Origin:
    """Return the origin that was passed to `_storable`."""
    argv = {name: texts(values) for name, values in origin.raw.items() if name in {"dump", "restore"}}
    return msgspec.structs.replace(origin, settings=texts(origin.settings), raw={}, **argv)


def decode_order(data: bytes | memoryview) -> tuple[int, int]:
    """Return the time and the number in a generation record's plaintext. Raises DamageError, FormatError."""
    try:
        order = _order_decoder.decode(data)
    except UNDECODABLE:
        generation = decode_generation(data)
        return generation.time, generation.number
    return order.time, order.number


def decode_generation(data: bytes | memoryview) -> Generation:
    """Return the generation in a record's plaintext. Raises DamageError, FormatError."""
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
    """Raise UsageError if a record has an invalid name, path or number."""
    if isinstance(record, Details):
        _check_details(record)
        return
    check_name("service", record.service)
    check_host(record.host)
    check_host_id(record.host_id)
    check_revision(record.revision)
    names = [part.name for part in record.parts]
    for name in (*names, *record.missing_parts):
        check_name("part", name)
    if len(set(names)) != len(names):
        raise UsageError("two parts have the same name")
    if len(record.session) != 16:
        raise UsageError(f"the id of a session has 16 bytes, not {len(record.session)}")
    numbers = [record.time, record.duration, *(part.skipped_files for part in record.parts)]
    numbers += [count for part in record.parts for count in (part.size, part.chunks, part.stored_bytes)]
    numbers += [count for part in record.parts for count in (part.new_chunks, part.new_bytes)]
    numbers += [count for part in record.parts for count in (part.after_delta, part.after_compression)]
    if not all(0 <= number <= _MAX_COUNT for number in numbers) or not 0 <= record.parent <= MAX_NUMBER:
        raise UsageError("a time, a size or a count in it is impossible")
    if not all(0 <= part.files <= MAX_FILES for part in record.parts):
        raise UsageError(f"a tree cannot have more than {counted(MAX_FILES, 'entry', 'entries')}")


def _check_details(record: Details) -> None:
    for name in (*record.origins, *record.absent_parts):
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
    for folder in origin.above:
        check_path(folder.path)
        if not 0 <= folder.mode <= 0o7777:
            raise UsageError(f"the mode {folder.mode:o} of {folder.path!r} is impossible")


def _check_plain(value: Any, depth: int) -> None:
    """Raise UsageError for a text with a zero byte, which no program or system call accepts."""
    if isinstance(value, str | bytes):
        if (b"\0" if isinstance(value, bytes) else "\0") in value:  # type: ignore[operator]
            raise UsageError(f"{value[:80]!r} has a zero byte")
        return
    if not depth:
        raise UsageError("the settings of a part are nested deeper than castore writes them")
    if isinstance(value, dict):
        value = [*value, *value.values()]
    for item in value if isinstance(value, list | tuple) else ():
        _check_plain(item, depth - 1)


def _refuse_newer(data: bytes | memoryview) -> None:
    """Raise FormatError if the record says that it has another version."""
    try:
        version = msgspec.msgpack.decode(_version_decoder.decode(data)["version"], type=int)
    except (*UNDECODABLE, KeyError):
        return
    if version != _VERSION:
        raise FormatError(
            f"a generation of format {version}, and this castore knows {_VERSION}: update castore"
        )


def decode_details(data: bytes) -> Details:
    """Return the details in a stream's bytes. Raises DamageError."""
    if len(data) > MAX_DETAILS:
        raise DamageError(f"a generation's details have {len(data):,} bytes, more than castore writes")
    try:
        sizes = [len(origin.settings) for origin in _sizes_decoder.decode(data).origins.values()]
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
