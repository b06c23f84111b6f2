"""A machine whose castore is killed, or whose calls fail, at each call that changes or reads a file.

The calls are counted over all threads by a library that is preloaded (faults.c); strace alone counts for
each thread by itself, and so never reaches a call of one thread that another made before as often.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import castore
from castore.content.allowance import Allowance
from castore.content.stored_dirs import open_top, read_file, walk
from castore.content.streams import StreamReader
from castore.crypto import Identity
from castore.errors import EXIT_CODES
from castore.maintenance.verify import verify
from castore.services.reading import read
from castore.services.selectors import select
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store
from tests.support import forked_cli

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from castore.model.refs import Ref

AVERAGE = 2048
"""Of chunks: small, so that little content has many of them, deltas and lists."""


def compiled(folder: Path) -> Path | None:
    """Return the library of faults.c; None where there is no C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    library = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    flags = ["-std=gnu11", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "-o", library, source, "-ldl"], check=True)
    return library


Entry = tuple[int, object]
"""The mode of a file, and its content or the target of a link."""


def plain_tree(top: Path) -> dict[bytes, Entry]:
    """Return what is in a directory, by path: type and mode of each, and content or target."""
    found: dict[bytes, Entry] = {}
    for folder, folders, files in os.walk(os.fsencode(top)):
        for name in [*folders, *files]:
            path = os.path.join(folder, name)
            info = os.lstat(path)
            content: bytes | None = None
            if stat.S_ISREG(info.st_mode):
                content = Path(os.fsdecode(path)).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            found[os.path.relpath(path, os.fsencode(top))] = (info.st_mode, content)
    return found


def stored_tree(reader: StreamReader, root: Ref | None) -> dict[bytes, Entry]:
    """Return the same of a stored tree."""
    assert root is not None
    found: dict[bytes, Entry] = {}
    for path, child in walk(reader, open_top(reader, root), Allowance()):
        entry = child.entry
        content: bytes | None = None
        if entry.is_file:
            content = b"".join(read_file(reader, child))
        elif entry.extra.target:
            content = entry.extra.target
        found[path] = (entry.st_mode, content)
    return found


@dataclass
class Machine:
    """A home with a store, a state, a cache and live state, and plain copies of what was acknowledged."""

    folder: Path
    identity: Identity = field(default_factory=Identity.generate)
    names_identity: bool = True
    """Whether the environment says where the identity is; `init` uses or writes it there."""
    kept: dict[tuple[str, int], tuple[object, bytes]] = field(default_factory=dict)
    """What (service, number) has: its tree, its dump."""
    keep_last: int = 2

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def live(self) -> Path:
        return self.folder / "live"

    @property
    def dump(self) -> Path:
        return self.folder / "dump"

    @property
    def places(self) -> MachinePaths:
        return MachinePaths(str(self.folder / "state" / "castore"), str(self.folder / "cache" / "castore"))

    @property
    def environment(self) -> dict[str, str]:
        """What castore is run with: nothing of the one who runs the tests."""
        named = {"CASTORE_IDENTITY": str(self.folder / "identity")} if self.names_identity else {}
        return {
            **named,
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder / "home"),
            "XDG_DATA_HOME": str(self.folder / "data"),
            "XDG_STATE_HOME": str(self.folder / "state"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "XDG_CONFIG_HOME": str(self.folder / "config"),
            "CASTORE_STORE": str(self.store),
            "CASTORE_CONFIG": str(self.folder / "castore.toml"),
            "TMPDIR": str(self.folder / "tmp"),
            "LC_ALL": "C.UTF-8",
        }

    def begin(self) -> None:
        """Make the home, without a store."""
        for name in ("home", "state", "cache", "tmp", "live", "config"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        (self.folder / "identity").write_text(self.identity.text() + "\n")
        (self.folder / "castore.toml").write_text(
            f"[service.web.keep]\nlast = {self.keep_last}\nper-revision = 0\n"
        )

    def make_store(self) -> None:
        self.must("init", "--average", str(AVERAGE), "--identity", str(self.folder / "identity"))

    def grow(self) -> None:
        """Make the store, with four generations of `web` and one of `mail`; by a copy, after the first time."""
        if not _grown:
            folder = tempfile.mkdtemp(prefix="castore-sweep-grown-", dir=self.folder.parent.parent)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            first = Machine(Path(folder, "machine"))
            first.begin()
            first.make_store()
            for seed in range(1, 5):
                first.take("web", seed)
            first.take("mail", 9)
            _grown.append(first)
        shutil.rmtree(self.folder)
        shutil.copytree(_grown[0].folder, self.folder, symlinks=True)
        self.identity, self.kept = _grown[0].identity, dict(_grown[0].kept)

    def run(
        self, *args: str, faults: Mapping[str, str] | None = None, wrap: tuple[str, ...] = (), **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run castore as a person would."""
        if not (wrap or options):
            env = {**self.environment, **(faults or {})}
            done = forked_cli.run(args, env=env, cwd=self.folder / "home", timeout=120)
            texts = (one.decode(errors="replace") for one in (done.stdout, done.stderr))
            return subprocess.CompletedProcess(done.args, done.returncode, *texts)
        return subprocess.run(
            [*wrap, sys.executable, "-m", "castore", *args],
            env={**self.environment, **(faults or {})},
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=120,
            check=False,
            cwd=self.folder / "home",
            **options,
        )

    def must(self, *args: str) -> str:
        """Run castore, which has to succeed."""
        done = self.run(*args)
        assert done.returncode == 0, (args, done.stderr)
        return done.stdout

    # Content

    def change(self, seed: int) -> None:
        """Put the live state to what it is at a time: much as before, some of it new."""
        rng = random.Random(seed)
        shutil.rmtree(self.live)
        (self.live / "sub" / "deep").mkdir(parents=True)
        for number in range(6):
            (self.live / "sub" / f"small{number}").write_bytes(random.Random(number).randbytes(300 * number))
        (self.live / "sub" / "deep" / "of-now").write_bytes(rng.randbytes(500))
        (self.live / "points").symlink_to(f"sub/small{seed % 5}")
        large = bytearray(random.Random(0).randbytes(40_000))
        for _ in range(4):
            at = rng.randrange(len(large))
            large[at : at + 8] = rng.randbytes(8)
        (self.live / "large").write_bytes(large)
        (self.live / f"new{seed % 3}").write_bytes(rng.randbytes(9000))
        self.dump.write_bytes(large[:20_000] + rng.randbytes(15_000))

    def snapshot_words(self, service: str) -> tuple[str, ...]:
        return ("snapshot", service, "--tree", f"t={self.live}", "--dump", f"d={self.dump}")

    def content(self) -> tuple[object, bytes]:
        return plain_tree(self.live), self.dump.read_bytes()

    def take(self, service: str, seed: int) -> None:
        """Change the live state and take it, and keep a plain copy."""
        self.change(seed)
        self.must(*self.snapshot_words(service))
        number = max((n for s, n in self.kept if s == service), default=0) + 1
        self.kept[service, number] = self.content()

    # Contents

    @contextlib.contextmanager
    def opened(self, *, fresh: bool = False, lockless: type[LocalStorage] = LocalStorage) -> Iterator[Store]:
        """Give the store, synchronised; fresh: with an index made for this alone."""
        places = self.places
        if fresh:
            places = MachinePaths(places.state, str(self.folder / "fresh"))
            shutil.rmtree(self.folder / "fresh", ignore_errors=True)
        with Store.open(lockless(str(self.store)), places, lambda: self.identity) as store:
            store.sync()
            yield store

    def listed(self, store: Store) -> set[tuple[str, int]]:
        return {(one.service, one.number) for one in store.generations.all()}

    def check(
        self, *, certain: set[tuple[str, int]], possible: dict[tuple[str, int], tuple[object, bytes]], fresh: bool
    ) -> set[tuple[str, int]]:
        """All that is certain is there, nothing that is not possible is, and each restores byte for byte."""
        with self.opened(fresh=fresh) as store:
            assert store.damaged == {}
            found = verify(store, castore.Progress(), read_data=True)
            assert found.sound, (found.damage, found.affected)
            listed = self.listed(store)
            assert certain <= listed, f"lost: {certain - listed}"
            assert listed <= possible.keys(), f"nobody took these: {listed - possible.keys()}"
            with StreamReader(store) as reader:
                for service, number in sorted(listed):
                    tree, dump = possible[service, number]
                    dumped = select(store, f"{service}@#{number}:d")
                    assert b"".join(read(reader, dumped)) == dump
                    part = select(store, f"{service}@#{number}:t").part
                    assert part is not None
                    assert stored_tree(reader, part.content) == tree
            return listed


_grown: list[Machine] = []


class Sweep:
    """Runs one command again and again on copies of one machine, with a fault at another call each time."""

    def __init__(self, machine: Machine, library: Path, words: tuple[str, ...]) -> None:
        self.machine = machine
        self.words = words
        self._library = library
        self._pristine = machine.folder.with_name(machine.folder.name + "-pristine")
        self._log = machine.folder.with_name(machine.folder.name + "-log")
        shutil.rmtree(self._pristine, ignore_errors=True)
        shutil.copytree(machine.folder, self._pristine, symlinks=True)

    def reset(self) -> None:
        """Put all back to what it was, but the live state, which castore does not touch."""
        for entry in os.scandir(self.machine.folder):
            if entry.name not in {"live", "dump"}:
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)
        for entry in os.scandir(self._pristine):
            if entry.name in {"live", "dump"}:
                continue
            if entry.is_dir(follow_symlinks=False):
                shutil.copytree(entry.path, self.machine.folder / entry.name, symlinks=True)
            else:
                shutil.copy2(entry.path, self.machine.folder / entry.name)

    def run(
        self, act: str, at: int, *, on: bool = False, calls: str = "change", only: str = ""
    ) -> tuple[subprocess.CompletedProcess[str], list[str]]:
        """Run the command, with a fault at one call; return what came of it, and the calls there were."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)
        folder = self.machine.folder
        faults = {
            "LD_PRELOAD": str(self._library),
            "FAULTS_UNDER": ":".join(str(folder / name) for name in ("store", "state", "cache", "config", "new")),
            "FAULTS_CALLS": calls,
            "FAULTS_AT": str(at),
            "FAULTS_DO": act,
            "FAULTS_LOG": str(self._log),
        }
        if on:
            faults["FAULTS_ON"] = "1"
        if only:
            faults["FAULTS_ONLY"] = f",{only},"
        done = self.machine.run(*self.words, faults=faults)
        log = self._log.read_text().splitlines() if self._log.exists() else []
        return done, log


KILLED = -signal.SIGKILL


def explained(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It ended with a documented code and, where that is no success, one line that names something."""
    assert done.returncode in EXIT_CODES, (done.returncode, done.stderr)
    assert "Traceback" not in done.stderr, done.stderr
    assert "mistake in castore" not in done.stderr, done.stderr
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("castore: ")]
        assert lines, done.stderr
        assert any(word in lines[-1] for word in words), lines
