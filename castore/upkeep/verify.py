"""Whether all that the generations need is there, and is what was stored.

Three depths. The graph: every record of a generation opens, every node opens, and every chunk has
a place in a pack that is there, as long as its footer says. The packs: their bytes are those that
were written, by the hash that is their name. The data: every chunk opens, decompresses and has the
id it is stored under. The first two need the writer key only, the last an identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from blake3 import blake3

from castore.errors import DamageError, FormatError, ObjectMissingError, StorageError
from castore.model.refs import PackId, Ref, RefKind
from castore.store.generations import NAME, open_generation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.model.generation import Generation
    from castore.model.tally import Tally
    from castore.store import Store

_PIECE = 1 << 22


@dataclass(frozen=True)
class Affected:
    """A part of a generation that does not restore whole."""

    service: str
    number: int
    part: str
    reason: str


@dataclass
class Verification:
    """What was looked at, and what is wrong."""

    generations: int = 0
    nodes: int = 0
    chunks: int = 0
    packs: int = 0
    damage: list[str] = field(default_factory=list)
    """What is wrong with an object of the store, or with a chunk."""
    affected: list[Affected] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.damage and not self.affected


def verify(
    store: Store, tally: Tally, *, packs: bool = False, read_data: bool = False
) -> Verification:
    """Look at the whole store; `read_data` includes `packs`. Raises IdentityError."""
    store.sync()
    found = Verification()
    found.damage += [f"{name}: {reason}" for name, reason in sorted(store.damaged.items())]
    _verify_generations(store, found)
    bad: dict[bytes, str] = {}
    for pack, size in store.packs():
        found.packs += 1
        _verify_length(store, pack, size, found)
        if packs or read_data:
            _verify_pack(store, pack, size, found)
            tally.read += size
        if read_data:
            _verify_records(store, pack, found, bad)
        tally.files += 1
    walk = _Walk(store, bad, found)
    for generation in store.generations():
        found.generations += 1
        walk.generation(generation)
    return found


def _verify_generations(store: Store, found: Verification) -> None:
    """Open the records that the index has taken in: they may have been damaged since."""
    for short in sorted(store.storage.list("generations")):
        name = f"generations/{short}"
        if name in store.damaged or not NAME.fullmatch(short):
            continue
        try:
            open_generation(name, store.storage.get(name), store.writer_key)
        except ObjectMissingError:
            continue
        except (DamageError, FormatError, StorageError) as error:
            found.damage.append(str(error))


def _verify_length(store: Store, pack: PackId, size: int, found: Verification) -> None:
    """Compare a pack's length with what it was when the index took it in."""
    name = f"packs/{pack.hex()}"
    try:
        now = store.storage.size(name)
    except StorageError as error:
        found.damage.append(str(error))
        return
    if now != size:
        found.damage.append(f"{name} is damaged: it has {now} bytes instead of {size}")


def _verify_pack(store: Store, pack: PackId, size: int, found: Verification) -> None:
    """Compare a pack's bytes with its name."""
    name = f"packs/{pack.hex()}"
    hasher = blake3()
    try:
        for offset in range(0, size, _PIECE):
            hasher.update(store.storage.get(name, offset, _PIECE))
    except StorageError as error:
        found.damage.append(str(error))
        return
    if hasher.digest() != pack:
        found.damage.append(f"{name}: its bytes are not those that were written")


def _verify_records(
    store: Store, pack: PackId, found: Verification, bad: dict[bytes, str]
) -> None:
    """Open every record of a pack where it lies."""
    try:
        entries = store.pack_entries(pack)
    except (DamageError, StorageError) as error:
        found.damage.append(str(error))
        return
    for entry in entries:
        try:
            store.read_entry(pack, entry)
        except DamageError as error:
            bad[entry.id] = str(error)
            found.damage.append(str(error))


class _Walk:
    """Walks the graph, each shared node once."""

    def __init__(self, store: Store, bad: dict[bytes, str], found: Verification) -> None:
        self._store = store
        self._bad = bad
        self._found = found
        self._nodes: dict[bytes, str] = {}
        """What is wrong below each node walked so far; empty if nothing."""

    def generation(self, generation: Generation) -> None:
        """Walk everything that a generation needs, and tell what of it is affected."""
        roots = [(part.name, part.content) for part in generation.parts]
        for name, root in [*roots, ("(details)", generation.details.ref)]:
            reason = self._reason(root) if root is not None else ""
            if reason:
                self._found.affected.append(
                    Affected(generation.service, generation.number, name, reason)
                )

    def _reason(self, root: Ref) -> str:
        """Return what is wrong below a reference, the first thing found; empty if nothing."""
        if root.kind is RefKind.CHUNK:
            return self._chunk(root)
        # Depth first without recursion: a stack of (node, its references still to do).
        stack = [(root, self._open(root))]
        while True:
            node, refs = stack[-1]
            child = next(refs, None)
            if child is None:
                stack.pop()
                reason = self._nodes.setdefault(node.id, "")
                if not stack:
                    return reason
                self._blame(stack[-1][0], reason)
            elif child.kind is RefKind.CHUNK:
                self._blame(node, self._chunk(child))
            elif child.id in self._nodes:
                self._blame(node, self._nodes[child.id])
            else:
                stack.append((child, self._open(child)))

    def _blame(self, node: Ref, reason: str) -> None:
        if reason and not self._nodes.get(node.id):
            self._nodes[node.id] = reason

    def _open(self, node: Ref) -> Iterator[Ref]:
        if node.id in self._nodes:
            return iter(())
        self._found.nodes += 1
        try:
            return iter(self._store.read_node(node.id))
        except DamageError as error:
            self._nodes[node.id] = str(error)
            return iter(())

    def _chunk(self, chunk: Ref) -> str:
        self._found.chunks += 1
        if chunk.id in self._bad:
            return self._bad[chunk.id]
        lacking = self._store.index.lacking(chunk.id)
        if lacking == chunk.id:
            return f"chunk {chunk.id.hex()} is not in the store"
        if lacking is not None:
            return f"chunk {chunk.id.hex()} rests on {lacking.hex()}, which is not in the store"
        return ""
