"""The settings that are tried: average chunk sizes, with and without deltas, and those of other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from castore.kernel import CutLimits

AVERAGES: Final = tuple(1 << exponent for exponent in range(13, 21))
"""8 KiB to 1 MiB."""


@dataclass(frozen=True)
class Peer:
    """The chunking parameters that another program publishes."""

    name: str
    average: int
    """The mean length of a chunk that it states, in bytes."""
    limits: CutLimits


# castore/docs/analyze.md cites where each program publishes them.
PEERS: Final = (
    Peer("borg", 1 << 21, CutLimits(1 << 19, 1 << 23, 1 << 21)),
    Peer("restic", 1 << 20, CutLimits(1 << 19, 1 << 23, 1 << 20)),
    Peer("casync", 1 << 16, CutLimits(1 << 14, 1 << 18, 49535)),
    # Its maximum is 20 MiB, and 2 % of its chunks are longer than 8 MiB. Longer buffers exceed 300 MB.
    Peer("bupstash", 1 << 21, CutLimits(1 << 18, 1 << 23, 1 << 21)),
)


@dataclass(frozen=True)
class Setting:
    """One way to store data."""

    average: int
    """Intended mean length of a chunk, in bytes."""
    deltas: bool = True
    """Whether similar chunks are stored as deltas; they are not if the base cache is switched off."""
    peer: Peer | None = None
    """The program whose parameters are simulated."""

    @property
    def label(self) -> str:
        """The setting as named to users."""
        if self.peer is not None:
            return f"as {self.peer.name}"
        return f"{size_label(self.average)}{', deltas' if self.deltas else ''}"


def settings_of(averages: tuple[int, ...], *, peers: bool = True) -> list[Setting]:
    """Return the settings to try: each average, with and without deltas; with `peers`, those of others."""
    own = [Setting(average, deltas) for average in averages for deltas in (True, False)]
    return own + [Setting(peer.average, deltas=False, peer=peer) for peer in PEERS if peers]


def size_label(size: int) -> str:
    """Return a chunk size as people write it: `64 KiB`, `1 MiB`, `3000 B`."""
    for unit, name in ((1 << 20, "MiB"), (1 << 10, "KiB")):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} B"
