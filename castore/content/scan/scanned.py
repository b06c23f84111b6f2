"""A directory that is being scanned."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

import msgspec

from castore.content.scan.record_streams import RecordStreams
from castore.fs.acl import acl_ids
from castore.fs.metadata import group_name, user_name
from castore.kernel.dir_entries import GIVEN, join_entries
from castore.kernel.dir_listing import entry_at
from castore.model.tree import Entry, Owners, encode_entries, encode_owners

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from castore.kernel.dir_listing import Listed
    from castore.model.refs import Ref


class Scanned(msgspec.Struct):
    """A directory that is being scanned."""

    fd: int
    path: bytes
    """The path relative to the tree's top; empty for the top itself."""
    close: Callable[[Ref], None]
    """Called with the directory's reference once it is stored."""
    entries: dict[int, Entry] = {}
    """Entries by position in the listing, without plain files that are unchanged since the listing."""
    take: bytearray = msgspec.field(default_factory=bytearray)
    """How each name of the listing is stored."""
    subdirectories: list[int] = []
    """Positions of the subdirectories still to be entered, in reverse order."""
    small_files: list[Ref] = []
    """Its small-file streams that are stored already."""
    small_chunks: list[int] = []
    """The number of chunks of each of these."""
    former: Sequence[Ref] = ()
    """The small-file streams of the last scan."""
    streams: int = 0
    """Number of its small-file streams."""
    runs: tuple[int, ...] = ()
    """The places of its small files in them."""
    sized: bool = True
    """Whether all small files are stored with the sizes that the listing has."""
    files: list[Ref] = []
    """The streams of its large files that are stored already."""
    file_chunks: list[int] = []
    """The number of chunks of each of these."""
    directories: list[Ref] = []
    kept: list[Ref] | None = None
    """All references but those of directories, if the directory's own listing is unchanged."""
    streams_kept: bytes = b""
    """Its streams in the old scan cache, if its own listing is unchanged."""
    ids: tuple[int, int] = (0, 0)
    time: int = 0
    """When it was listed, in ns since 1970."""
    listing: bytes = b""
    places: array[int] = msgspec.field(default_factory=lambda: array("Q"))
    """The places of the names in the listing."""
    marks: bytearray = msgspec.field(default_factory=bytearray)
    distrust: bool = False
    linked: bool = False
    """Whether it, or a directory below it, has a file with several names."""
    streams_length: int = 0
    """The length of its encoded streams in the new scan cache."""
    at: int = -1
    """The position of its record in the new scan cache."""
    old_at: int | None = None
    """The position of its record in the old scan cache."""
    moved: bool = False
    """Whether its old record is of another place in the tree."""
    below: dict[bytes, int] = {}
    """Positions of its subdirectories' records in the old scan cache."""
    kinds: bytearray = msgspec.field(default_factory=bytearray)
    """The kinds of the names in the listing."""
    count: int = 0
    """Number of entries, in it and below."""
    size: int = 0
    """Bytes of content, in it and below."""
    chunks: int = 0
    """References to chunks that existed when its scan began."""

    def listed(self, position: int) -> Listed:
        """Return what the listing says about a name."""
        return entry_at(self.listing, self.places[position])

    def stored_streams(self, entries: Ref, chunks: int) -> RecordStreams:
        """Return its streams once all are stored. entries: that of its entries, which has so many chunks."""
        return RecordStreams(
            [entries, *self.small_files, *self.files],
            [chunks, *self.small_chunks, *self.file_chunks],
            len(self.small_files),
            array("Q", self.runs),
            usable=self.sized,
        )

    def encoded(self) -> bytes:
        """Return its entries, with their owners, in the stored form."""
        given = encode_entries(entry for _, entry in sorted(self.entries.items()))
        for position in self.entries:
            self.take[position] = GIVEN
        entries, ids = join_entries(self.listing, self.places, bytes(self.take), given)
        uids, gids = {uid for uid, _ in ids}, {gid for _, gid in ids}
        for entry in self.entries.values():
            named = acl_ids(entry.extra.xattrs)
            uids |= {entry.uid, *named[0]}
            gids |= {entry.gid, *named[1]}
        self.entries.clear()
        users = {uid: name for uid in sorted(uids) if (name := user_name(uid))}
        groups = {gid: name for gid in sorted(gids) if (name := group_name(gid))}
        return encode_owners(Owners(users=users, groups=groups, runs=self.runs)) + entries


def joined(path: bytes, name: bytes) -> bytes:
    """Return the path of a name in the directory at `path`, which is empty for the top."""
    return path + b"/" + name if path else name
