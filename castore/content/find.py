"""Find paths of a tree in many generations.

All generations are walked at once, directory by directory. If two have the same reference, the directory is
read once, and nothing below it is read for the second. So the cost depends on what changed.

Adding or removing a name changes the time of a directory. So if one version of a directory has neither a
match nor a subdirectory, other versions with the same time are not read. That does not apply to a time that a
later change may share: a time that is not older than the generation, or one in full seconds, as programs set
them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import msgspec

from castore.content.stored_dirs import open_directory, references
from castore.content.streams import read_chunks
from castore.content.versions import Damaged, Found, Seen, Version
from castore.errors import DamageError, MissingError
from castore.kernel.dir_entries import select_entries
from castore.model.refs import REF_BYTES, RefKind, decode_node
from castore.model.tree import (
    MAX_ENTRIES_BYTES,
    MAX_STREAMS,
    Content,
    decode_owners,
    encode_entries,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from castore.content.allowance import Allowance
    from castore.content.patterns import PathPattern, States
    from castore.content.streams import StreamReader
    from castore.kernel.dir_entries import Placed, Selected
    from castore.model.refs import Ref

_GROUP: Final = 4096
"""How many versions of directories are processed together."""
_BATCH: Final = 256
"""How many versions of directories one thread reads at once."""
_BATCH_BYTES: Final = 16 << 20
"""How many bytes of entries one thread reads at once, unless one directory has more."""
_DIRECTORY: Final = 4


class _Folder(NamedTuple):
    """A version of a directory, from the entry in its parent."""

    ref: Ref | None
    mtime: int


_Runs: TypeAlias = "list[tuple[int, _Folder]]"
"""Versions of a directory, each with the position of the first generation that has it."""


class _Place(NamedTuple):
    """A directory that is to be searched."""

    path: bytes | None
    """None: the root, whose only entry is the top."""
    runs: _Runs
    states: States


class _Listed(NamedTuple):
    """The relevant entries of one version of a directory."""

    matches: dict[bytes, Seen]
    folders: dict[bytes, _Folder]
    error: str = ""


class _Lean(msgspec.Struct, frozen=True, array_like=True):
    """The fields of an encoded entry that a walk needs: decoding them takes a third of the time."""

    name: bytes
    type: int
    mode: int
    uid: int
    gid: int
    mtime: int
    size: int
    content: int


_decode_lean: Final = msgspec.msgpack.Decoder(_Lean).decode
_EMPTY: Final = _Listed({}, {})
_MISSING: Final = _Folder(None, 0)
_SECOND: Final = 1_000_000_000


def find(
    reader: StreamReader,
    roots: Sequence[tuple[int, Ref | None]],
    pattern: PathPattern,
    *,
    exact: bool = False,
    allowance: Allowance | None = None,
) -> Iterator[Found | Damaged]:
    """Yield the paths that match in any of the trees, with their versions, and unreadable directories.

    roots: time and tree of each generation; None if it has no tree. Two versions differ in their entry: size,
    time, mode, owner, attributes; not in content. exact: they may also differ in references, which can differ
    although the content does not. Raises IdentityError; DamageError if there are more directories than
    `allowance` allows.
    """
    times = [time for time, _ in roots]
    runs: _Runs = []
    for position, (_, root) in enumerate(roots):
        if not runs or runs[-1][1].ref != root:
            runs.append((position, _Folder(root, 0)))
    query = _Query(pattern, exact=exact)
    todo: list[list[_Place]] = [[_Place(None, runs, pattern.start)]]
    while todo:
        group = _group(todo)
        if allowance is not None:
            allowance.enter(len(group))
        listed = _read(reader, group, query, times)
        below: list[_Place] = []
        for place in group:
            yield from _damaged(place, listed)
            yield from _matches(place, listed, exact=exact)
            below += _folders(place, listed, pattern)
        if below:
            below.reverse()
            todo.append(below)


def _group(todo: list[list[_Place]]) -> list[_Place]:
    """Take the next directories from `todo`, about as many as are read together."""
    places = todo[-1]
    group: list[_Place] = []
    room = _GROUP
    while places and (room > 0 or not group):
        group.append(places.pop())
        room -= len(group[-1].runs)
    if not places:
        todo.pop()
    return group


_Key: TypeAlias = "tuple[bytes, States]"
_Opened: TypeAlias = "tuple[_Key, Ref, list[Ref]]"
"""A version of a directory, and its references."""


class _Query:
    """The search pattern, and the matches that many versions of a directory share."""

    def __init__(self, pattern: PathPattern, *, exact: bool) -> None:
        self.pattern = pattern
        self.known: dict[tuple[bytes, ...], dict[bytes, Seen]] | None = None if exact else {}
        """Matches by their encoded entries; None if references matter."""

    def plain_matches(
        self, plain: list[tuple[bytes, Placed]], small_files: list[Ref | None]
    ) -> dict[bytes, Seen]:
        """Return the plain files that match, of those whose names contain the pattern's pieces."""
        if not self.pattern.is_exact:
            matches = self.pattern.matches_name
            plain = [one for one in plain if matches(one[0])]
        if self.known is None:
            return {name: _seen(placed, small_files) for name, placed in plain}
        key = tuple([placed.frame for _, placed in plain])
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = {name: Seen(placed.frame, None, 0) for name, placed in plain}
        return found


def _read(
    reader: StreamReader, group: list[_Place], query: _Query, times: list[int]
) -> dict[_Key, _Listed]:
    """Return the relevant entries of each version of some directories."""
    wanted: dict[_Key, tuple[int, Ref]] = {}
    similar: dict[_Key, tuple[_Key, int, Ref]] = {}
    for place in group:
        settled: dict[int, _Key] = {}
        for position, (ref, mtime) in place.runs:
            if ref is None:
                continue
            key = ref.id, place.states
            if mtime in settled:
                similar.setdefault(key, (settled[mtime], position, ref))
                continue
            wanted.setdefault(key, (position, ref))
            if mtime % _SECOND and mtime < times[position] - _SECOND:
                settled[mtime] = key
    found = _read_wanted(reader, wanted, query)
    rest = {key: (position, ref) for key, (one, position, ref) in similar.items() if found[one] is not _EMPTY}
    found.update(_read_wanted(reader, {key: rest[key] for key in rest.keys() - found.keys()}, query))
    return dict.fromkeys(similar, _EMPTY) | found


def _read_wanted(
    reader: StreamReader, wanted: dict[_Key, tuple[int, Ref]], query: _Query
) -> dict[_Key, _Listed]:
    # Directories that one generation added are close to each other in packs.
    keys = sorted(wanted, key=lambda key: wanted[key][0])
    batches = [keys[at : at + _BATCH] for at in range(0, len(keys), _BATCH)]

    def work(batch: list[_Key]) -> list[tuple[_Key, _Listed]]:
        return list(_read_batch(reader, [(key, wanted[key][1]) for key in batch], query))

    listings: dict[_Key, _Listed] = {}
    for some in reader.ahead(batches, work):
        listings.update(some)
    return listings


def _read_batch(
    reader: StreamReader, batch: list[tuple[_Key, Ref]], query: _Query
) -> Iterator[tuple[_Key, _Listed]]:
    """Read directories: first the references of each, then the entries of many at once."""
    nodes: dict[bytes, bytes] = {}
    with contextlib.suppress(DamageError, MissingError):  # then one by one, to find out which
        ids = [ref.id for _, ref in batch]
        nodes.update(zip(ids, reader.store.reader.read_nodes_bytes(ids), strict=True))
    some: list[_Opened] = []
    size = 0
    for key, ref in batch:
        try:
            refs = _references(reader, ref, nodes.get(ref.id))
        except (DamageError, MissingError) as error:
            yield key, _Listed({}, {}, str(error))
            continue
        some.append((key, ref, refs))
        size += refs[0].size
        if size > _BATCH_BYTES:
            yield from _read_entries(reader, some, query)
            some, size = [], 0
    yield from _read_entries(reader, some, query)


def _references(reader: StreamReader, ref: Ref, plain: bytes | None) -> list[Ref]:
    """Return the references of a directory: of one without subdirectories, perhaps without large files."""
    if plain is None:
        plain = reader.store.reader.read_node_bytes(ref.id)
    kinds = plain[REF_BYTES - 1 :: REF_BYTES]
    if RefKind.INNER in kinds:
        return references(reader, ref)
    return decode_node(plain if RefKind.LIST in kinds else plain[: (1 + MAX_STREAMS) * REF_BYTES])


def _read_entries(
    reader: StreamReader, some: list[_Opened], query: _Query
) -> Iterator[tuple[_Key, _Listed]]:
    opened: dict[bytes, bytes] = {}
    chunks = [refs[0] for _, _, refs in some if refs[0].kind is RefKind.CHUNK]
    with contextlib.suppress(DamageError, MissingError):
        opened = dict(zip((chunk.id for chunk in chunks), read_chunks(reader.store, chunks), strict=True))
    for key, ref, refs in some:
        try:
            data = opened.get(refs[0].id) or reader.read_all(refs[0], MAX_ENTRIES_BYTES)
            yield key, _listed(reader, ref, refs, data, key[1], query)
        except (DamageError, MissingError) as error:
            yield key, _Listed({}, {}, str(error))


def _listed(
    reader: StreamReader, ref: Ref, refs: list[Ref], data: bytes, states: States, query: _Query
) -> _Listed:
    """Return the entries of a directory that match, and the subdirectories in which others may match."""
    pattern = query.pattern
    last = pattern.last(states)
    if last is not None and pattern.needle not in data:
        last = None
    leads = any(one.kind is RefKind.LIST for one in refs) and pattern.leads(states)
    if last is None and not leads:
        return _EMPTY
    owners, at = decode_owners(data)
    wanted = last is not None and not pattern.directories_only
    split = select_entries(data, at, pattern.pieces if wanted else b"", owners.runs)
    found = _Listed({}, {})
    shared: dict[bytes, Seen] | None = None
    if split is None:  # not in castore's encoding, or damaged, which is reported
        others = _decoded(reader, ref)
    else:
        streams = iter(refs[1:])
        small_files = [next(streams, None) for _ in split.ends]
        if last is not None and split.plain and wanted:
            shared = query.plain_matches(split.plain, small_files)
            found = _Listed(shared, {})
        others = _others(split, streams, small_files)
    for name, mtime, seen in others:
        is_directory = mtime is not None
        if last is not None and (is_directory or wanted) and last(name):
            if found.matches is shared:  # with other versions
                found = found._replace(matches=dict(shared))
            found.matches[name] = seen
        if mtime is not None and leads and pattern.after(states, name):
            found.folders[name] = _Folder(seen.ref, mtime)
    return found if found.matches or found.folders else _EMPTY


def _decoded(reader: StreamReader, ref: Ref) -> Iterator[tuple[bytes, int | None, Seen]]:
    """Yield name, time (of directories only) and entry of everything in a directory."""
    # This also handles the root of a tree, whose entry has no name.
    for child in open_directory(reader, ref, root=True):
        frame = encode_entries([child.entry])[4:]
        mtime = child.entry.mtime if child.entry.is_dir else None
        yield child.entry.name, mtime, Seen(frame, child.ref, child.offset)


def _others(
    split: Selected, streams: Iterator[Ref], small_files: list[Ref | None]
) -> Iterator[tuple[bytes, int | None, Seen]]:
    """Yield name, time (of directories only) and entry of all but the plain files of a directory."""
    others = [(_decode_lean(placed.frame), placed) for placed in split.others]
    # Streams of files come before directories, each in the order of entries.
    own = [entry for entry, _ in others if entry.content == Content.OWN]
    own.sort(key=lambda entry: entry.type == _DIRECTORY)
    held = {entry.name: next(streams, None) for entry in own}
    for entry, placed in others:
        if entry.content == Content.SMALL_FILES:
            seen = _seen(placed, small_files)
        else:
            seen = Seen(placed.frame, held.get(entry.name), 0)
        yield entry.name, entry.mtime if entry.type == _DIRECTORY else None, seen


def _seen(placed: Placed, small_files: list[Ref | None]) -> Seen:
    """Return a small file; an empty one may be in a directory without small-file streams."""
    stream = small_files[placed.stream] if small_files else None
    return Seen(placed.frame, stream, placed.offset)


def _damaged(place: _Place, listed: dict[_Key, _Listed]) -> Iterator[Damaged]:
    reasons = {}
    for _, (ref, _) in place.runs:
        if ref is not None and (error := listed[ref.id, place.states].error):
            reasons[error] = Damaged(place.path or b"", error)
    yield from reasons.values()


def _matches(place: _Place, listed: dict[_Key, _Listed], *, exact: bool) -> Iterator[Found]:
    """Yield the paths that match in a directory, sorted, with their versions."""
    tracks: dict[bytes, list[Version]] = {}
    present: dict[bytes, Seen] = {}
    for position, (ref, _) in place.runs:
        now = listed[ref.id, place.states].matches if ref is not None else {}
        if now is present:
            continue
        for name in present.keys() - now.keys():
            tracks[name].append(Version(position, None))
        for name, seen in now.items():
            before = present.get(name)
            if before is None or before.frame != seen.frame or (exact and before != seen):
                tracks.setdefault(name, []).append(Version(position, seen))
        present = now
    for name in sorted(tracks):
        yield Found(_join(place.path, name), tracks[name])


def _folders(place: _Place, listed: dict[_Key, _Listed], pattern: PathPattern) -> Iterator[_Place]:
    """Yield the subdirectories in which other names may match, in the order of their names."""
    tracks: dict[bytes, _Runs] = {}
    present: dict[bytes, _Folder] = {}
    for position, (ref, _) in place.runs:
        now = listed[ref.id, place.states].folders if ref is not None else {}
        for name in present.keys() - now.keys():
            tracks[name].append((position, _MISSING))
        for name, held in now.items():
            if name not in present or present[name] != held:
                tracks.setdefault(name, []).append((position, held))
        present = now
    for name in sorted(tracks):
        yield _Place(_join(place.path, name), tracks[name], pattern.after(place.states, name))


def _join(path: bytes | None, name: bytes) -> bytes:
    return path + b"/" + name if path else name
