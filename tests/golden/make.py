"""Make a golden store: python -m tests.golden.make format-1|deltas|rotated|streams FOLDER (new).

Run when the format changes, never to make a failing test pass: every later castore reads these stores.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from castore.content.scan import cache
from castore.crypto import Identity
from castore.services.sources import Tree, file_source
from castore.store.format.pack import MAX_BASES
from castore.store.write import session
from castore.store.write.delta_encoder import Deltas
from tests.support.stores import Sandbox
from tests.support.tree_walker import walk

TIME = 1_700_000_000_123_456_789


def grow(top: Path, generation: int) -> None:
    """Make the tree as it is in a generation."""
    rng = random.Random(generation)
    same = random.Random(0)
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "empty").mkdir()
    (top / "small").write_text(f"generation {generation}\n")
    (top / "nothing").touch()
    (top / "large").write_bytes(same.randbytes(150_000) + rng.randbytes(50_000))
    (top / "sub" / "deep" / "file").write_bytes(bytes(range(256)))
    os.link(top / "small", top / "sub" / "hardlink")
    os.symlink("sub/../small", top / "symlink")
    os.symlink(b"nowhere/\xff", top / "dangling")
    os.mkfifo(top / "fifo", 0o640)
    (top / os.fsdecode(b"not utf-8 \xe4\xff\n")).write_text("bytes")
    with open(top / "sparse", "wb") as file:
        file.truncate(1 << 20)
        os.pwrite(file.fileno(), b"at the start", 0)
        os.pwrite(file.fileno(), same.randbytes(65536), 1 << 19)
    os.setxattr(top / "small", "user.castore", b"\x00value\xff")
    os.setxattr(top / "sub", "user.directory", b"too")
    if generation == 2:
        (top / "added").write_text("in the second")
    os.chmod(top / "sub" / "deep" / "file", 0o751)
    os.chmod(top / "empty", 0o1770)
    paths = [os.path.join(folder, n) for folder, f, d in os.walk(top, topdown=False) for n in [*f, *d]]
    for number, path in enumerate([*sorted(paths, reverse=True), str(top)]):
        os.utime(path, ns=(TIME, TIME + number), follow_symlinks=False)


def dump(generation: int) -> bytes:
    """Return the dump as it is in a generation."""
    return random.Random(7).randbytes(200_000) + b"-- rows of generation %d\n" % generation * 4000


def plain(tree: dict) -> dict:
    """Return what `walk` found as JSON can hold it: bytes as text with surrogates escaped."""

    def text(value):
        if isinstance(value, bytes):
            return value.decode("latin-1")
        if isinstance(value, dict):
            return {text(key): text(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [text(one) for one in value]
        return value

    dropped = {"uid", "gid", "blocks"}
    return {
        text(path): {key: text(value) for key, value in node.items() if key not in dropped}
        for path, node in tree.items()
    }


def make(into: Path) -> None:
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder))
        expected = {}
        for number in (1, 2):
            live = Path(folder, "live")
            shutil.rmtree(live, ignore_errors=True)
            live.mkdir()
            grow(live / "tree", number)
            (live / "dump").write_bytes(dump(number))
            os.chmod(live / "dump", 0o600)
            sources = {"tree": Tree(str(live / "tree")), "dump": file_source(str(live / "dump"))}
            taken = sandbox.snapshot("golden", sources, revision=f"r{number}")
            assert (taken.number, taken.skipped_files) == (number, 0)
            found = plain(walk(live))
            del found["."], found["dump"]["mtime"]  # a restore sets these itself
            expected[f"r{number}"] = found
        shutil.copytree(sandbox.store, into / "store", ignore=shutil.ignore_patterns("tmp"))
        (key,) = Path(sandbox.places.state).glob("*/writer.key")
        (into / "identity").write_text(sandbox.identity.text() + "\n")
        (into / "writer.key").write_text(
            "".join(line for line in key.read_text().splitlines(True) if not line.startswith("#"))
        )
        (into / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def night(number: int) -> bytes:
    """Return the dump of a number: some of its rows differ from the previous dump, and some are missing."""
    rng = random.Random(3)
    rows = [f"{row}\t{rng.getrandbits(40):x}\tsome words that all rows have\n" for row in range(6000)]
    for one in range(number):
        rng = random.Random(100 + one)
        for _ in range(40):
            rows[rng.randrange(len(rows))] = f"{rng.getrandbits(60):x}\n"
        del rows[rng.randrange(2000) :][:150]
    return "".join(rows).encode()


class ManyBases(Deltas):
    """Use one to four bases in turn: those that castore finds, and others, since three or four are rare."""

    def _choices(self, chunk):
        found = [base for bases in super()._choices(chunk) for base in bases]
        self.others = getattr(self, "others", [])
        several = {base.id: base for base in [*found, *self.others]}
        self.others += found
        yield tuple(several.values())[: len(self.others) % MAX_BASES + 1]


def make_deltas(into: Path) -> None:
    """Five nights: groups of deltas of one to four bases, in chains."""
    into.mkdir(parents=True)
    session.Deltas = ManyBases
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder), average=16384)
        for number in range(5):
            Path(folder, "dump").write_bytes(night(number))
            sandbox.snapshot("nights", {"dump": file_source(f"{folder}/dump")})
        shutil.copytree(sandbox.store, into / "store", ignore=shutil.ignore_patterns("tmp"))
        (into / "identity").write_text(sandbox.identity.text() + "\n")


def make_rotated(into: Path) -> None:
    """Five nights: the writer key is replaced after the first and, with new ids, after the third.

    Between those, the store is sealed to one more recipient, whose identity is the second one.
    """
    into.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder), average=16384)
        second = Identity.generate()
        former = []
        for number in range(5):
            Path(folder, "dump").write_bytes(night(number))
            (Path(folder) / "tree").mkdir(exist_ok=True)
            (Path(folder) / "tree" / f"night {number}").write_text(f"it is night {number}\n")
            tree = Tree(f"{folder}/tree")
            sandbox.snapshot("nights", {"dump": file_source(f"{folder}/dump"), "tree": tree})
            with sandbox.open() as store:
                if number in {0, 2}:
                    former.append(store.keys.writer_key.text())
                    store.admin.rotate(new_ids=number == 2)
                if number == 1:
                    store.admin.reseal([*store.keys.recipients, (second.recipient, "second")])
                key = store.keys.writer_key.text()
        shutil.copytree(sandbox.store, into / "store", ignore=shutil.ignore_patterns("tmp"))
        (into / "identity").write_text(sandbox.identity.text() + "\n")
        (into / "second").write_text(second.text() + "\n")
        (into / "writer.key").write_text(key + "\n")
        (into / "former.keys").write_text("\n".join(former) + "\n")


def files(number: int) -> dict[str, bytes]:
    """Return the files of a directory in a generation: some change, some are added, some removed."""
    found = {f"file {one}": b"this is file %d\n" % one * (one + 1) for one in range(30)}
    for step in range(number + 1):
        found[f"file {step + 2}"] = b"changed in step %d\n" % step
        found[f"added {step}"] = b"added in step %d\n" % step
        found.pop(f"file {12 - step}")
    return found


def make_streams(into: Path) -> None:
    """Four generations of a directory: its small files are in several streams, with gaps."""
    into.mkdir(parents=True)
    cache._RACY_NS = 10_000_000  # noqa: SLF001 - files need not be two seconds old
    with tempfile.TemporaryDirectory() as folder:
        sandbox = Sandbox(Path(folder))
        (top := Path(folder, "tree", "sub")).mkdir(parents=True)
        for number in range(4):
            wanted = files(number)
            for path in top.iterdir():
                if path.name not in wanted:
                    path.unlink()
            for name, content in wanted.items():
                if not (top / name).exists() or (top / name).read_bytes() != content:
                    (top / name).write_bytes(content)
            time.sleep(0.1)
            sandbox.snapshot("streams", {"tree": Tree(f"{folder}/tree")})
        shutil.copytree(sandbox.store, into / "store", ignore=shutil.ignore_patterns("tmp"))
        (into / "identity").write_text(sandbox.identity.text() + "\n")


if __name__ == "__main__":
    {"format-1": make, "deltas": make_deltas, "rotated": make_rotated, "streams": make_streams}[sys.argv[1]](Path(sys.argv[2]))
