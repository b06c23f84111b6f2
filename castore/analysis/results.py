"""The results of an analysis: plain data, which the command prints, and `--json` writes as it is."""

from __future__ import annotations

import msgspec


class NightFigures(msgspec.Struct):
    """What one night added."""

    name: str
    plain: int
    """Bytes of its content."""
    unique: int
    """Bytes of its chunks that no earlier night has."""
    stored: int
    """Bytes that it added to the store: packs and all other objects."""
    seconds: float


class WholeFile(msgspec.Struct):
    """What the program zstd makes of the file of one night, at level 3."""

    compressed: int
    """Bytes of the file by itself."""
    patch: int | None = None
    """Bytes of it as a patch of the file before it; None for the first, and for files of 2 GiB or more."""


class LevelFigures(msgspec.Struct):
    """What a level of zstd would give, estimated from a sample of chunks."""

    level: int
    stored: int
    """Bytes of the store, if its full chunks were compressed at this level."""
    error: int
    """`stored` is correct within this number of bytes, with a probability of 95 %."""
    mb_per_s: float
    """Megabytes per second that one thread compresses."""


class Scatter(msgspec.Struct):
    """How a restore of the newest night would read packs."""

    reads: float
    """Separate reads per 64 MiB of restored content."""
    packs: float
    """Packs per 64 MiB of restored content."""


class ChunkClass(msgspec.Struct):
    """The unique chunks of about one length: from `least` to less than the next class."""

    least: int
    chunks: int
    size: int
    """Bytes of these chunks."""


class Row(msgspec.Struct):
    """The figures of one setting, over all nights."""

    average: int
    """Intended mean length of a chunk, in bytes."""
    deltas: bool
    plain: int
    """Bytes of content of all nights."""
    unique: int
    """Bytes of distinct chunks: what deduplication leaves."""
    stored: int
    """Bytes of the store after all nights: packs and all other objects."""
    index: int
    """Bytes of the index on this machine."""
    chunks: int
    """Number of distinct chunks."""
    delta_chunks: int
    """Those of them that are stored as deltas."""
    seconds: float
    """Duration of the run."""
    mb_per_s: float
    """Megabytes of the first night per second, without writing to a store's disk."""
    scatter: Scatter | None
    """None if the data was sampled."""
    nights: list[NightFigures]
    simulates: str = ""
    """The program whose published chunking parameters these are; cut by castore's cutter."""
    error: int = 0
    """If the data was sampled: `stored` is correct within this number of bytes, with 95 %."""
    sizes: list[ChunkClass] = []
    """The unique chunks by length."""
    levels: list[LevelFigures] = []

    @property
    def ratio(self) -> float:
        """Bytes of content per stored byte."""
        return self.plain / self.stored if self.stored else 0.0


class Forecast(msgspec.Struct):
    """The size of the store after a year with one night per day, none of which is deleted."""

    growth: int
    """Bytes per night: the mean of all nights but the first."""
    stored: int
    """Bytes after 365 further nights."""
    cost_per_month: float
    """The price of these bytes per month, at the end of the year."""
    cost: float
    """The price of the year."""


class Advice(msgspec.Struct):
    """The recommended setting."""

    average: int
    deltas: bool
    reason: str
    stored: int
    """Bytes of the store after the analysed nights."""
    cost_per_month: float | None = None
    """The price of `stored` per month; None without a price."""
    forecast: Forecast | None = None
    """None if there was one night only."""


class RoomItem(msgspec.Struct):
    """What something takes of a store."""

    name: str
    plain: int
    """Bytes of its content."""
    stored: int
    """Bytes of the records of chunks that no content before it has."""


class Room(msgspec.Struct):
    """What takes the room in the store, the largest first."""

    directories: list[RoomItem] = []
    """Directories up to some levels below the top, each without the directories below it that are listed."""
    types: list[RoomItem] = []
    """Files by suffix."""
    tables: list[RoomItem] = []
    """Tables of dumps in SQL, and other dumps."""


class Sample(msgspec.Struct):
    """What was read of the data."""

    read: int
    """Bytes in the sample."""
    copied: int
    """Bytes of files of 1 MiB or more that are copies of others, in all data."""


class Analysis(msgspec.Struct):
    """The results of `castore analyze`."""

    plain: int
    """Bytes of content of the newest night."""
    files: int
    """Entries of trees in the newest night."""
    nights: list[str]
    """The names of the nights, the oldest first."""
    rows: list[Row]
    advice: Advice
    whole_files: list[WholeFile] = []
    """For each night, if each is one file and zstd is installed."""
    sample: Sample | None = None
    """None if all data was read."""
    room: Room = msgspec.field(default_factory=Room)
    """By the setting that is the default, else the first one."""
    warnings: list[tuple[str, bytes, str]] = []
    """(part, path, reason) of files that could not be read."""
