"""Every kind of byte of every kind of object, damaged: never wrong state, always a word that names it."""

from __future__ import annotations

import os
import random
import re
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import castore
from castore.content.restore.metadata import Ownership
from castore.errors import (
    CastoreError,
    DamageError,
    FormatError,
    IdentityError,
    NotFoundError,
    StaleStoreError,
)
from castore.maintenance.verify import verify as verify_store
from castore.model.refs import PackId
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from tests.support.stores import Sandbox
from tests.support.tree_walker import compare, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

    from castore.store import Store

_ACCEPTED = (DamageError, FormatError, IdentityError, NotFoundError, StaleStoreError)
_RECORD = re.compile(r"(chunk|node) [0-9a-f]{64}")
MODES = ("index kept", "index deleted", "another machine")
"""Another machine has neither index nor writer key: all comes through the identity."""

# The classes of bytes of each object; `PristineStore.position` says where they are.
FLIPS = {
    "config/1": ("kind", "version", "zeros", "store id", "count", "seal", "nonce", "ciphertext", "tag"),
    "session 1": ("kind", "version", "zeros", "id", "nonce", "ciphertext", "tag"),
    "session 2": ("id", "ciphertext"),
    "pack 1": (
        *("kind", "version", "zeros", "salt", "first byte", "first record", "middle record"),
        *("last record", "chunk", "node", "padding first", "padding last", "footer nonce", "footer sessions"),
        *("footer middle", "footer tag", "trailer nonce", "trailer length", "trailer count", "trailer tag"),
    ),
    "pack 2": ("salt", "first record", "last record", "padding first", "footer middle", "trailer count"),
    "generation 1": ("kind", "version", "zeros", "nonce", "ciphertext", "tag"),
    "generation 2": ("nonce", "ciphertext"),
}
CUTS = ("1", "15", "16", "31", "33", "a half", "all but 48", "all but 1", "one more", "16 more")
FATES = ("emptied", "deleted", "swapped")

CASES = [(name, f"flip {where}") for name, classes in FLIPS.items() for where in classes]
CASES += [(name, f"cut {at}") for name in FLIPS if name[-1] == "1" for at in CUTS]
CASES += [(name, f"cut {at}") for name in FLIPS if name[-1] == "2" for at in ("a half", "all but 1")]
CASES += [(name, fate) for name in FLIPS for fate in FATES]


@dataclass
class PristineStore:
    """The sound store that every case damages a copy of."""

    sandbox: Sandbox
    names: dict[str, str]
    """The object's name in the store of each name used here."""
    trees: dict[int, dict] = field(default_factory=dict)
    dumps: dict[int, bytes] = field(default_factory=dict)
    layouts: dict[str, list] = field(default_factory=dict)
    footers: dict[str, int] = field(default_factory=dict)
    """Where each pack's footer box begins."""
    foreign: dict[str, bytes] = field(default_factory=dict)

    def position(self, what: str, where: str, size: int) -> int:
        """Return the offset of a byte of the class `where`."""
        kind = what.split(maxsplit=1)[0].split("/", maxsplit=1)[0]
        if where in {"kind", "version", "zeros"}:
            return {"kind": 3, "version": 8, "zeros": 12}[where]
        if kind == "config":
            box = 34 + 2 * 96
            places = {"store id": 20, "count": 32, "seal": 40, "nonce": box + 5}
            return {**places, "ciphertext": box + 30, "tag": size - 1}[where]
        if kind == "session":
            return {"id": 20, "nonce": 40, "ciphertext": 80, "tag": size - 1}[where]
        if kind == "generation":
            return {"nonce": 20, "ciphertext": 60, "tag": size - 1}[where]
        entries = self.layouts[what]
        middle, last = entries[len(entries) // 2], entries[-1]
        end = last.offset + last.sealed_length
        footer = self.footers[what]
        assert footer - end > 2, "this pack has no padding: change the size of the content"
        return {
            "salt": 20,
            "first byte": 32,
            "first record": 32 + entries[0].sealed_length // 2,
            "middle record": middle.offset + middle.sealed_length // 2,
            "last record": end - 1,
            "chunk": next(e for e in entries if e.kind == 0).offset + 7,
            "node": next(e for e in entries if e.kind == 1).offset + 7,
            "padding first": end,
            "padding last": footer - 1,
            "footer nonce": footer + 1,
            "footer sessions": footer + 24 + 4,
            "footer middle": (footer + size - 48) // 2,
            "footer tag": size - 49,
            "trailer nonce": size - 40,
            "trailer length": size - 24,
            "trailer count": size - 20,
            "trailer tag": size - 1,
        }[where]


def _content(live: Path, dump: Path, generation: int) -> None:
    rng = random.Random(generation)
    (live / "sub" / "deep").mkdir(parents=True, exist_ok=True)
    for number in range(12):
        (live / "sub" / f"small{number}").write_bytes(rng.randbytes(50 * number))
    (live / "sub" / "deep" / "one").write_text(f"one of {generation}")
    (live / f"large{generation}").write_bytes(rng.randbytes(300_000))
    (live / "same").write_bytes(random.Random(0).randbytes(150_000))
    dump.write_bytes(random.Random(0).randbytes(130_000) + rng.randbytes(150_000))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> PristineStore:
    folder = tmp_path_factory.mktemp("pristine")
    sandbox = Sandbox(folder / "sandbox", average=16384)
    found = PristineStore(sandbox, {"config/1": "config/1"})
    live, dump = folder / "live", folder / "dump"
    live.mkdir()
    known: set[str] = set()
    for number in (1, 2):
        _content(live, dump, number)
        sources = {"t": Tree(str(live)), "d": file_source(str(dump))}
        assert sandbox.snapshot("s", sources).number == number
        found.trees[number], found.dumps[number] = walk(live), dump.read_bytes()
        for kind in ("session", "pack", "generation"):
            (new,) = {f"{kind}s/{path.name}" for path in (sandbox.store / f"{kind}s").iterdir()} - known
            known.add(new)
            found.names[f"{kind} {number}"] = new
    with sandbox.open() as store:
        for what in ("pack 1", "pack 2"):
            name = found.names[what]
            found.layouts[what] = store.reader.pack_entries(PackId(bytes.fromhex(name[6:])))
            # The box holds who signed it, the signature, the count of sessions, the one id, an entry of 48 bytes
            # for each record, and bases.
            box = 32 + 64 + 2 + 16 + sum(48 + 32 * len(entry.bases) for entry in found.layouts[what]) + 40
            found.footers[what] = (sandbox.store / name).stat().st_size - 48 - box
    other = Sandbox(folder / "other")
    found.foreign["config/1"] = (other.store / "config/1").read_bytes()
    return found


@pytest.fixture(scope="module")
def counted(request: pytest.FixtureRequest) -> Iterator[list[int]]:
    count = [0]
    yield count
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(f"damage: {count[0]} cases")


def _damage(pristine: PristineStore, store: Path, what: str, how: str) -> None:
    path = store / pristine.names[what]
    data = bytearray(path.read_bytes())
    verb, _, where = how.partition(" ")
    if verb == "flip":
        data[pristine.position(what, where, len(data))] ^= 0x41
    elif verb == "cut":
        if where.endswith("more"):
            data += os.urandom(1 if where == "one more" else 16)
        else:
            at = {"a half": len(data) // 2, "all but 48": len(data) - 48, "all but 1": len(data) - 1}
            del data[at[where] if where in at else int(where) :]
    elif verb == "emptied":
        data.clear()
    elif verb == "deleted":
        path.unlink()
        return
    elif what in pristine.foreign:
        data[:] = pristine.foreign[what]
    else:
        partner = store / pristine.names[what[:-1] + {"1": "2", "2": "1"}[what[-1]]]
        data[:] = partner.read_bytes()
        partner.write_bytes(path.read_bytes())
    path.write_bytes(data)


@pytest.fixture
def room() -> Iterator[Path]:
    """A folder in memory, where there is one: every case syncs an index."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="castore-damage-", dir=memory) as folder:
        yield Path(folder)


def _copy(pristine: PristineStore, folder: Path, mode: str) -> Sandbox:
    copy = object.__new__(Sandbox)
    copy.folder, copy.identity = folder, pristine.sandbox.identity
    shutil.copytree(pristine.sandbox.store, copy.store)
    if mode != "another machine":
        shutil.copytree(pristine.sandbox.folder / "state", folder / "state")
    if mode == "index kept":
        shutil.copytree(pristine.sandbox.folder / "cache", folder / "cache")
    return copy


def _restored_rightly(pristine: PristineStore, store: Store, number: int, into: Path) -> str:
    """Restore a generation, part by part; return what was reported as damaged. Nothing may be wrong."""
    reports = ""
    for part in ("t", "d"):
        damaged: list[tuple[bytes, str]] = []
        out = into / part
        failed = None
        try:
            selection = select(store, f"s@{number}:{part}")
            assert selection.generation.number == number
            done = restore_parts(
                store, selection, str(out), Ownership(change=False), castore.Progress()
            )
            assert done.report.warnings == []
            damaged = done.report.damaged
        except CastoreError as error:
            assert isinstance(error, _ACCEPTED), error
            failed = error
        reports += f"{failed or ''}{damaged or ''}"
        if part == "d":
            _dump_is_right(pristine.dumps[number], out, failed)
        elif failed is None:
            _tree_is_right(pristine.trees[number], walk(out), damaged)
        elif out.exists():
            partial = walk(out)
            for path, node in partial.items():
                assert node.get("hash") in {None, pristine.trees[number][path].get("hash")}
    return reports


def _dump_is_right(dump: bytes, out: Path, failed: CastoreError | None) -> None:
    if failed is None:
        assert (out / "d").read_bytes() == dump
    elif out.exists():
        assert set(os.listdir(out)) <= {"d.partial"}
        if os.listdir(out):
            assert dump.startswith((out / "d.partial").read_bytes())


def _tree_is_right(original: dict, restored: dict, damaged: list[tuple[bytes, str]]) -> None:
    """Everything is there the same, but what is named as damaged and what is below it."""
    for path, _ in damaged:
        assert path in original
        assert restored.get(path, {}).get("hash") is None

    def sound(path: bytes) -> bool:
        return not any(bad in (path, b".") or path.startswith(bad + b"/") for bad, _ in damaged)

    kept = {path: node for path, node in original.items() if sound(path)}
    assert compare(kept, {path: node for path, node in restored.items() if sound(path)}) == []


def _names(pristine: PristineStore, what: str, text: str, location: str) -> bool:
    """Whether a message names the object, or the records that are lost with it."""
    name = pristine.names[what].partition(".")[0]
    if name in text or (what.startswith("config") and location in text):
        return True
    if what.startswith("generation") and "generation" in text:
        return True
    return what.startswith("pack") and _RECORD.search(text) is not None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("what", "how"), CASES, ids=[f"{what}, {how}" for what, how in CASES])
def test_damage_is_named_and_nothing_wrong_is_restored(
    pristine: PristineStore, counted: list[int], room: Path, what: str, how: str, mode: str
) -> None:
    sandbox = _copy(pristine, room, mode)
    _damage(pristine, sandbox.store, what, how)
    counted[0] += 1
    try:
        store = sandbox.open()
    except CastoreError as error:
        assert what.startswith("config")
        assert isinstance(error, _ACCEPTED), error
        assert _names(pristine, what, str(error), str(sandbox.store))
        return
    with store:
        if "padding" in how:
            store.sync()
            assert store.damaged == {}
            assert verify_store(store, castore.Progress()).sound
        try:
            found = verify_store(store, castore.Progress(), packs=True, read_data=True)
            report = "\n".join(found.damage + [hit.reason for hit in found.affected])
        except CastoreError as error:
            assert isinstance(error, _ACCEPTED), error
            report = str(error)
            if isinstance(error, StaleStoreError):
                assert (what, how) == ("generation 2", "deleted"), "what is damaged is no older store"
                store.generations._accept_older = True  # noqa: SLF001 - as if it had been opened so
        reports = "".join(_restored_rightly(pristine, store, number, room / str(number)) for number in (1, 2))
        if "padding" in how:
            assert reports == ""
        if what.startswith("generation") and how == "deleted":
            # A generation that was forgotten looks the same: only a request for it can report that.
            report = reports
        assert report, "nothing reported the damage"
        assert _names(pristine, what, report, str(sandbox.store)), report


@pytest.mark.parametrize("mode", MODES)
def test_the_store_undamaged_is_sound(pristine: PristineStore, room: Path, mode: str) -> None:
    sandbox = _copy(pristine, room, mode)
    with sandbox.open() as store:
        assert verify_store(store, castore.Progress(), read_data=True).sound
        assert [_restored_rightly(pristine, store, n, room / str(n)) for n in (1, 2)] == ["", ""]


@pytest.mark.parametrize("what", ["pack 1", "pack 2"])
@pytest.mark.parametrize("how", ["cut a half", "cut all but 1", "cut one more", "emptied", "deleted"])
def test_a_pack_of_another_length_is_found_without_reading_it(
    pristine: PristineStore, room: Path, what: str, how: str
) -> None:
    sandbox = _copy(pristine, room, "index kept")
    _damage(pristine, sandbox.store, what, how)
    with sandbox.open(identity=False) as store:
        assert not verify_store(store, castore.Progress()).sound


@pytest.mark.parametrize("what", ["generation 1", "generation 2"])
@pytest.mark.parametrize("how", ["flip ciphertext", "cut a half", "emptied", "swapped"])
def test_a_damaged_generation_is_found_with_the_writer_key_only(
    pristine: PristineStore, room: Path, what: str, how: str
) -> None:
    sandbox = _copy(pristine, room, "index kept")
    _damage(pristine, sandbox.store, what, how)
    with sandbox.open(identity=False) as store:
        found = verify_store(store, castore.Progress())
    assert any(line.startswith(pristine.names[what]) for line in found.damage)


@pytest.mark.parametrize("how", ["flip ciphertext", "flip tag", "cut a half", "emptied"])
def test_no_older_generation_is_taken_for_one_that_is_damaged(pristine: PristineStore, room: Path, how: str) -> None:
    sandbox = _copy(pristine, room, "index deleted")
    _damage(pristine, sandbox.store, "generation 2", how)
    with sandbox.open() as store:
        store.generations.sync()
        for selector in ("latest", "2", "#2", "2999-01-01", "r"):
            with pytest.raises(DamageError, match=pristine.names["generation 2"]):
                select(store, f"s@{selector}:t")
        for selector in ("1", "#1"):
            assert select(store, f"s@{selector}:t").generation.number == 1
