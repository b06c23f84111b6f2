"""Attacks by a service's user on the directories that root's castore works in, at every moment.

A scenario prepares a machine: a store of root's, a tree and a file that the hostile user owns, and files of root's
that nothing may read or change. A run of it pauses castore before one system call that names something of the
user's, makes one attack as that user, and looks at what happened. By hand, all attacks at some calls, or one:

    python -m tests.support.user_attacks SCENARIO [--every N] [--from N] [--at N] [--attack NAME] [--sample N [--seed N]]
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import itertools
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from castore.crypto import Identity
from castore.errors import EXIT_CODES
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store, StoreOptions
from castore.store.format.pack import CHUNK
from tests.support import forked_cli
from tests.support.checkout import import_all_modules
from tests.support.syscall_pauses import Call, Ended, is_supported, run_paused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOSTILE = 54321
"""The number of the hostile user and of its group."""
SECRET = b"only root may read this: " + random.Random(1).randbytes(16).hex().encode()
OWN = b"bytes of the hostile user: " + random.Random(2).randbytes(16).hex().encode()
LIMIT = 90.0
"""Seconds; a run takes about one, on a busy machine several, and 40 until a process that does nothing is ended."""
_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def rename(old: str, new: str, *, exchange: bool = False) -> None:
    """Rename, replacing `new`, or exchange both."""
    flags = _EXCHANGE if exchange else 0
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), f"renameat2 {old} {new}")


def put(new: str, place: str) -> None:
    """Put `new` in the place of the present file, whatever it is; that gets the name `new`."""
    try:
        rename(new, place, exchange=True)
    except FileNotFoundError:
        rename(new, place)


def as_hostile(action: Callable[[], None]) -> bool:
    """Do something as the hostile user, in a process of its own; return whether it was possible."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(HOSTILE)
            os.setuid(HOSTILE)
            os.umask(0)
            action()
            code = 0
        except OSError:
            pass
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@dataclass
class Machine:
    """A folder that holds all of one machine."""

    top: Path
    identity: Identity = field(default_factory=Identity.generate)

    @property
    def hostile(self) -> Path:
        """All that the hostile user owns."""
        return self.top / "home" / "hostile"

    @property
    def tree(self) -> Path:
        return self.hostile / "srv" / "tree"

    @property
    def file(self) -> Path:
        return self.hostile / "etc" / "app.conf"

    @property
    def database(self) -> Path:
        return self.hostile / "data" / "app.db"

    @property
    def outside(self) -> Path:
        """Root's, which the hostile user may enter and not read."""
        return self.top / "outside"

    @property
    def stock(self) -> Path:
        """What attacks are made of."""
        return self.hostile / "stock"

    @property
    def places(self) -> MachinePaths:
        return MachinePaths(str(self.top / "root" / "state" / "castore"), str(self.top / "root" / "cache" / "castore"))

    @property
    def environment(self) -> dict[str, str]:
        root = self.top / "root"
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(root),
            **{f"XDG_{name.upper()}_HOME": str(root / name) for name in ("data", "state", "cache", "config")},
            "CASTORE_STORE": str(root / "store"),
            "CASTORE_CONFIG": str(root / "castore.toml"),
            "CASTORE_IDENTITY": str(root / "identity"),
            "TMPDIR": str(root / "tmp"),
            "LC_ALL": "C.UTF-8",
        }

    def castore(self, *words: str, expect: int | None = 0) -> subprocess.CompletedProcess[str]:
        """Run castore as root, undisturbed."""
        done = forked_cli.text(words, env=self.environment, cwd=self.top / "root")
        assert expect is None or done.returncode == expect, (words, done.stderr)
        return done

    # Content

    def make(self) -> None:
        """Make the machine with one generation of the service `web`, whose state has changed since."""
        self.top.chmod(0o755)
        for folder in ("home", "outside"):
            (self.top / folder).mkdir(mode=0o755)
        for folder in ("root", "root/tmp"):
            (self.top / folder).mkdir(mode=0o700)
        (self.top / "root" / "identity").write_text(self.identity.text() + "\n")
        (self.top / "root" / "identity").chmod(0o600)
        (self.top / "root" / "castore.toml").write_text(
            f'[service.web.parts.t]\nengine = "tree"\npath = "{self.tree}"\n'
            f'[service.web.parts.f]\nengine = "file"\npath = "{self.file}"\n'
            f'[service.db.parts.s]\nengine = "sqlite"\npath = "{self.database}"\ntimeout = 20\n'
        )
        self.fill_outside()
        for place in (self.tree, self.file.parent, self.database.parent, self.stock):
            place.mkdir(parents=True)
        fill(self.tree, 1)
        fill_database(self.database, 1)
        self.file.write_bytes(b"first settings\n")
        self.file.chmod(0o640)
        self.give()
        self.plant_root_program(b"#!/bin/sh\necho first\n")
        self.castore("init", "--average", "2048", "--identity", str(self.top / "root" / "identity"))
        self.castore("snapshot", "web")
        self.castore("snapshot", "db")
        shutil.rmtree(self.tree)
        self.tree.mkdir()
        fill(self.tree, 2)
        fill_database(self.database, 2)
        self.file.write_bytes(b"second settings\n")
        self.give()
        self.plant_root_program(b"#!/bin/sh\necho second\n")
        self.stock_up()

    def fill_outside(self) -> None:
        """Make root's files: among them some with the names of the user's."""
        places = (self.outside, self.outside / "deep", self.outside / "deep" / "deeper")
        for place in places:
            place.mkdir(exist_ok=True)
            place.chmod(0o711)
        for place, name in itertools.product(places, NAMES):
            if place / name not in places:
                (place / name).write_bytes(SECRET + b" " + name.encode() + b"\n")
                (place / name).chmod(0o600)
        os.setxattr(self.outside / "plain", "user.of", b"root")

    def plant_root_program(self, text: bytes) -> None:
        """Make a program with the set-user-id bit of root's, which an administrator put into the tree."""
        program = self.tree / "program"
        program.unlink(missing_ok=True)
        program.write_bytes(text)
        program.chmod(0o4755)

    def give(self) -> None:
        """Give the hostile user all that is theirs."""
        for folder, folders, files in os.walk(self.hostile):
            for name in [*folders, *files]:
                os.lchown(os.path.join(folder, name), HOSTILE, HOSTILE)
        os.chown(self.hostile, HOSTILE, HOSTILE)

    def stock_up(self) -> None:
        """Prepare what attacks put into place; the hard link as a system with fs.protected_hardlinks = 0 allows it."""
        stock = self.stock
        os.symlink(self.outside / "secret", stock / "link")
        os.symlink(self.outside, stock / "link-to-directory")
        os.mkfifo(stock / "fifo")
        (stock / "own").write_bytes(OWN)
        (stock / "own").chmod(0o4755)
        (stock / "directory").mkdir()
        for name in NAMES:
            os.symlink(self.outside / name, stock / "directory" / name)
        (stock / "own-directory").mkdir()
        for name in NAMES:
            (stock / "own-directory" / name).write_bytes(OWN)
            (stock / "own-directory" / name).chmod(0o4755)
        self.give()
        os.chmod(stock / "own", 0o4755)
        for name in NAMES:
            os.chmod(stock / "own-directory" / name, 0o4755)
        os.link(self.outside / "secret", stock / "hard")

    def fingerprint(self, *, links: bool) -> dict[str, object]:
        """Return all that is outside: what nobody may change."""
        found: dict[str, object] = {}
        for folder, folders, files in os.walk(self.outside):
            for path in [folder, *(os.path.join(folder, name) for name in [*folders, *files])]:
                info = os.lstat(path)
                data = Path(path).read_bytes() if stat.S_ISREG(info.st_mode) else b""
                found[os.path.relpath(path, self.outside)] = (
                    *(oct(info.st_mode), info.st_uid, info.st_gid, info.st_size, info.st_mtime_ns),
                    *(info.st_nlink if links else 0, hashlib.sha256(data).hexdigest()),
                    tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in os.listxattr(path, follow_symlinks=False)),
                )
        for name in sorted(os.listdir(self.top)):
            found[f"/{name}"] = ""
        return found


NAMES = (
    *("plain", "script", "deep", "deeper", "added", "removed", "large", "secret", "program", "app.conf", "link"),
    *("srv", "etc", "tree", "same", "app.db", "app.db-wal", "app.db-shm", "app.db-journal"),
)


def fill(tree: Path, seed: int) -> None:
    """Fill a tree; another seed: files that changed, were added and removed, and other kinds."""
    (tree / "deep" / "deeper").mkdir(parents=True)
    (tree / "plain").write_text(f"plain {seed}\n")
    (tree / "same").write_text("always the same\n")
    (tree / "script").write_text("#!/bin/sh\n")
    (tree / "script").chmod(0o755 if seed == 1 else 0o700)
    (tree / "deep" / "plain").write_text(f"in deep {seed}\n")
    (tree / "deep" / "deeper" / "plain").write_text(f"deeper {seed}\n")
    (tree / "deep" / "large").write_bytes(random.Random(seed).randbytes(9000))
    if seed == 1:
        (tree / "removed").write_text("only in the first\n")
        (tree / "link").symlink_to("plain")
        (tree / "deep" / "kind").mkdir()
        os.link(tree / "plain", tree / "deep" / "hard")
    else:
        (tree / "added").write_text("only in the second\n")
        (tree / "link").symlink_to("script")
        (tree / "deep" / "kind").write_text("a file now\n")
        (tree / "deep" / "new").mkdir()
        (tree / "deep" / "new" / "file").write_text("below a new one\n")
    os.setxattr(tree / "plain", "user.seed", b"%d" % seed)


def fill_database(path: Path, seed: int) -> None:
    """Make a SQLite database with rows of a seed, and one change of it that is only in its write-ahead log."""
    for name in (path, f"{path}-wal", f"{path}-shm"):
        Path(name).unlink(missing_ok=True)
    pid = os.fork()
    if pid == 0:
        # It ends without closing the database, which would move the change into it.
        connection = sqlite3.connect(path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, text TEXT)")
        connection.executemany("INSERT INTO rows (text) VALUES (?)", [(f"row {row} of {seed}",) for row in range(200)])
        connection.commit()
        os._exit(0)
    os.waitpid(pid, 0)


# Attacks: functions of the machine, the folder and the name that the next call names.


def _put(kind: str) -> Callable[[Machine, str, str], None]:
    return lambda machine, folder, name: put(f"{machine.stock}/{kind}", f"{folder}/{name}")


def _parent(kind: str) -> Callable[[Machine, str, str], None]:
    return lambda machine, folder, _: put(f"{machine.stock}/{kind}", folder)


def _grandparent(kind: str) -> Callable[[Machine, str, str], None]:
    return lambda machine, folder, _: put(f"{machine.stock}/{kind}", os.path.dirname(folder))


def _away(machine: Machine, folder: str, name: str) -> None:
    rename(f"{folder}/{name}", f"{machine.stock}/away")


def _write(machine: Machine, folder: str, name: str) -> None:
    path = f"{folder}/{name}"
    descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, OWN)
    os.fchmod(descriptor, 0o4755)


def _keep(machine: Machine, folder: str, name: str) -> None:
    """Keep a second name of the file for later, as far as the kernel lets its user."""
    os.link(f"{folder}/{name}", f"{machine.stock}/kept", follow_symlinks=False)


ATTACKS: dict[str, Callable[[Machine, str, str], None]] = {
    "link": _put("link"),
    "link to directory": _put("link-to-directory"),
    "fifo": _put("fifo"),
    "hard link": _put("hard"),
    "own file": _put("own"),
    "own directory": _put("own-directory"),
    "parent is link": _parent("link-to-directory"),
    "parent of links": _parent("directory"),
    "parent of own": _parent("own-directory"),
    "grandparent is link": _grandparent("link-to-directory"),
    "away": _away,
    "write": _write,
    "keep": _keep,
}
FLIPPED = ("link", "link to directory", "fifo", "own file", "parent is link", "parent of own")
"""Those that are also made for one call only, and undone before the next."""


@dataclass
class Scenario:
    """What is done to a machine before the attacked command, and that command."""

    words: Callable[[Machine], tuple[str, ...]]
    interrupted: float = 0
    """Before it, a rollback is killed after this share of its calls that change something of the user's."""
    reads: bool = True
    """Whether it stores what it reads."""


_CHANGING = ("rename", "unlink", "rmdir", "mkdir", "symlink", "link", "fchown", "fchmod", "utime")


def _interrupt(machine: Machine, number: int) -> None:
    """Kill a rollback at a call, from 1, of those that change something of the user's."""
    seen = 0

    def before(call: Call) -> bool:
        nonlocal seen
        seen += call.name.startswith(_CHANGING)
        if seen == number:
            raise _KilledError
        return True

    run = Run(machine, SCENARIOS["rollback"].words(machine))
    try:
        run_paused(run.inside, before, LIMIT, os.fsencode(machine.hostile))
    except _KilledError:
        return
    raise AssertionError("the rollback was not interrupted")


class _KilledError(Exception):
    """Ends a run in its middle."""


SCENARIOS = {
    "snapshot": Scenario(lambda _: ("snapshot", "web")),
    "restore": Scenario(
        lambda machine: ("restore", "--in-place", "--yes", "web@1:t", str(machine.tree)), reads=False
    ),
    "rollback": Scenario(lambda _: ("rollback", "web", "--to", "1", "--yes")),
    "recover": Scenario(lambda _: ("recover", "web"), 0.5, reads=False),
    "recover-late": Scenario(lambda _: ("recover", "web"), 0.95, reads=False),
    "snapshot-sqlite": Scenario(lambda _: ("snapshot", "db")),
    "rollback-sqlite": Scenario(lambda _: ("rollback", "db", "--to", "1", "--yes")),
}


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-a", "--", str(source), str(target)], check=True)


def _reset(source: Path, target: Path) -> None:
    """Make `target` what `source` is, with its own inode, since other processes stand in it."""
    for one in os.scandir(target):
        if one.is_dir(follow_symlinks=False):
            shutil.rmtree(one.path)
        else:
            os.unlink(one.path)
    subprocess.run(["cp", "-a", "--", f"{source}/.", str(target)], check=True)


class Run:
    """One run of a command on a machine, in this process's image of Python."""

    def __init__(self, machine: Machine, words: tuple[str, ...]) -> None:
        self.machine = machine
        self.words = words
        self.output = machine.top.with_name(machine.top.name + "-output")

    def inside(self) -> None:
        """Run castore in a process that was forked for it."""
        os.setsid()
        output = os.open(self.output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        nothing = os.open("/dev/null", os.O_RDONLY)
        for target, source in ((0, nothing), (1, output), (2, output)):
            os.dup2(source, target)
        environment = self.machine.environment
        os.environ.clear()
        os.environ.update(environment)
        os.umask(0o022)
        os.chdir(self.machine.top / "root")
        sys.argv = ["castore", *self.words]
        from castore.cli.main import main

        try:
            main()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    def calls(self) -> list[Call]:
        """Run undisturbed; return the calls that name something of the hostile user's."""
        found: list[Call] = []

        def note(call: Call) -> bool:
            found.append(call)
            return True

        ended = run_paused(self.inside, note, LIMIT, os.fsencode(self.machine.hostile))
        assert ended.code == 0, (ended, self.output.read_text(errors="replace"))
        return found

    def attacked(self, at: int, attack: str, *, flip: bool = False) -> tuple[Ended, str]:
        """Attack before call `at`, from 0; return how it ended, and the call ('' if it was not reached, or could not be)."""
        count = 0
        where = ""
        undo: Callable[[], None] | None = None

        def before(call: Call) -> bool:
            nonlocal count, where, undo
            if undo is not None:
                as_hostile(undo)
                undo = None
            if count == at:
                made, undo = self._make(attack, call)
                where = str(call) if made else ""
                undo = undo if flip else None
            count += 1
            return True

        return run_paused(self.inside, before, LIMIT, os.fsencode(self.machine.hostile)), where

    def _make(self, attack: str, call: Call) -> tuple[bool, Callable[[], None]]:
        """Attack what a call names; return whether it was possible, and what undoes it."""
        machine = self.machine
        made = False
        places = []
        for folder, rest in call.paths:
            path = f"{folder}/{rest}" if rest else folder
            if not path.startswith(f"{machine.hostile}/"):
                continue
            place, name = os.path.split(path.rstrip("/"))
            places.append((place, name))
            made = as_hostile(partial(ATTACKS[attack], machine, place, name)) or made

        def undo() -> None:
            for place, name in places:
                ATTACKS[attack](machine, place, name)

        return made, undo


class Sweep:
    """Attacks a scenario at its calls, and reports what an attack achieved."""

    def __init__(self, scenario: str, folder: Path) -> None:
        import_all_modules()
        self.scenario = SCENARIOS[scenario]
        self.machine = Machine(folder / "machine")
        self.machine.top.mkdir()
        folder.chmod(0o755)
        self.machine.make()
        self.pristine = folder / "pristine"
        shutil.rmtree(self.pristine, ignore_errors=True)
        _copy(self.machine.top, self.pristine)
        self.interrupt_at = 0
        if self.scenario.interrupted:
            calls = Run(self.machine, SCENARIOS["rollback"].words(self.machine)).calls()
            changing = sum(call.name.startswith(_CHANGING) for call in calls)
            self.interrupt_at = int(changing * self.scenario.interrupted)
        self.run = Run(self.machine, self.scenario.words(self.machine))
        self.known: dict[bytes, bytes] = {}
        self.reset()
        self.known = self._stored()
        self.calls = self.run.calls()
        problems = self.problems(Ended(0, 0), "none")
        assert not problems, problems

    def reset(self) -> None:
        """Make the machine what it was; a rollback is interrupted each time: the journal names inodes."""
        _reset(self.pristine, self.machine.top)
        if self.interrupt_at:
            _interrupt(self.machine, self.interrupt_at)
        self.before = {links: self.machine.fingerprint(links=links) for links in (False, True)}

    def attack(self, at: int, attack: str, *, flip: bool = False) -> tuple[str, list[str]]:
        """Make one attack; return the call before which it was made, '' if it was not, and what is wrong after it."""
        self.reset()
        ended, where = self.run.attacked(at, attack, flip=flip)
        return where, self.problems(ended, attack) if where else []

    def sweep(self, numbers: range, attacks: tuple[str, ...] = tuple(ATTACKS)) -> Iterator[tuple[int, str, str, list[str]]]:
        """Make attacks before some calls; yield the number, the attack, the call and what is wrong for each that was made."""
        chosen = [(one, flip) for one in attacks for flip in ((False, True) if one in FLIPPED else (False,))]
        for at in numbers:
            for attack, flip in chosen:
                where, problems = self.attack(at, attack, flip=flip)
                if where:
                    yield at, attack + (", undone" if flip else ""), where, problems

    def sample(self, count: int, seed: int) -> Iterator[tuple[int, str, str, list[str]]]:
        """Make so many attacks, chosen at random; yield as `sweep` does."""
        rng = random.Random(seed)
        made = 0
        for _ in range(10 * count):
            at, attack = rng.randrange(len(self.calls)), rng.choice(list(ATTACKS))
            flip = attack in FLIPPED and rng.random() < 0.3
            where, problems = self.attack(at, attack, flip=flip)
            if where:
                made += 1
                yield at, attack + (", undone" if flip else ""), where, problems
            if made == count:
                return

    # What must not have happened

    def problems(self, ended: Ended, attack: str) -> list[str]:
        """Return what an attack achieved."""
        found = []
        output = self.run.output.read_text(errors="replace")
        if ended.code is None:
            found.append(f"castore did not end within {LIMIT} s")
        elif ended.code not in EXIT_CODES or "Traceback" in output or "mistake in castore" in output:
            found.append(f"exit code {ended.code}: {output[-2000:]}")
        hard = attack == "hard link"
        after = self.machine.fingerprint(links=not hard)
        before = self.before[not hard]
        changed = [path for path in sorted(before.keys() | after.keys()) if before.get(path) != after.get(path)]
        if changed:
            shown = ", ".join(_difference(path, before.get(path), after.get(path)) for path in changed[:3])
            found.append(f"{len(changed)} of root's files outside changed: {shown}")
        found += self._planted()
        # A hard link of root's file is in the user's tree: what is in it is part of that.
        if self.scenario.reads and not hard and any(SECRET in data for data in self._stored(self.known).values()):
            found.append("the store holds what only root may read")
        return found

    def _planted(self) -> Iterator[str]:
        """Yield what is wrong with files in the hostile user's directories."""
        outside = set()
        for folder, _, files in os.walk(self.machine.outside):
            outside |= {os.lstat(os.path.join(folder, name)).st_ino for name in files}
        for folder, _, files in os.walk(self.machine.hostile):
            for name in files:
                path = os.path.join(folder, name)
                info = os.lstat(path)
                if not stat.S_ISREG(info.st_mode) or info.st_ino in outside:
                    continue
                data = Path(path).read_bytes()
                shown = f"{os.path.relpath(path, self.machine.hostile)}: {oct(info.st_mode)} of {info.st_uid}"
                if SECRET in data and (info.st_uid == HOSTILE or info.st_mode & 0o004):
                    yield f"{shown} has what only root may read"
                if info.st_mode & stat.S_ISUID and info.st_uid == 0 and not data.startswith(b"#!/bin/sh\necho "):
                    yield f"{shown} runs {data[:40]!r} as root"
                if info.st_mode & stat.S_ISGID and info.st_gid == 0 and info.st_mode & 0o010:
                    yield f"{shown} runs {data[:40]!r} in the group of root"

    def _stored(self, known: dict[bytes, bytes] | None = None) -> dict[bytes, bytes]:
        """Return the chunks that the store holds, by their ids, without those that are known."""
        found: dict[bytes, bytes] = {}
        places = MachinePaths(self.machine.places.state, str(self.machine.top.with_name("index")))
        shutil.rmtree(places.cache, ignore_errors=True)
        with Store.open(LocalStorage(str(self.machine.top / "root" / "store")), places, lambda: self.machine.identity, StoreOptions(accept_older=True)) as store:
            store.sync()
            for pack, _ in store.index.packs.lengths():
                for entry in store.reader.pack_entries(pack):
                    if entry.kind == CHUNK and entry.id not in (known or {}):
                        found[entry.id] = store.read_chunk(entry.id)
        return found


_FIELDS = ("mode", "user", "group", "size", "mtime", "links", "content", "attributes")


def _difference(path: str, before: object, after: object) -> str:
    if not isinstance(before, tuple) or not isinstance(after, tuple):
        return f"{path} was {'removed' if after is None else 'made'}"
    pairs = zip(_FIELDS, before, after, strict=True)
    return f"{path}: {' '.join(f'{name} {new}' if len(str(new)) < 20 else name for name, old, new in pairs if old != new)}"


def main() -> int:
    """Sweep as the arguments say; print findings, and return whether there are any."""
    parser = argparse.ArgumentParser()
    parser.add_argument("scenario", choices=SCENARIOS)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--from", type=int, default=0, dest="start")
    parser.add_argument("--at", type=int)
    parser.add_argument("--attack", choices=ATTACKS, action="append")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if reason := is_supported():
        print(reason)
        return 2
    with tempfile.TemporaryDirectory(prefix="castore-races-") as folder:
        sweep = Sweep(options.scenario, Path(folder))
        numbers = range(options.start, len(sweep.calls), options.every)
        if options.at is not None:
            numbers = range(options.at, options.at + 1)
        print(f"{options.scenario}: {len(sweep.calls)} calls", flush=True)
        made = bad = 0
        chosen = sweep.sweep(numbers, tuple(options.attack or ATTACKS))
        if options.sample is not None:
            chosen = sweep.sample(options.sample, options.seed)
        for at, attack, where, problems in chosen:
            made += 1
            bad += bool(problems)
            for problem in problems:
                print(f"{at} {attack} before {where.replace(folder, '')}: {problem}", flush=True)
        print(f"{options.scenario}: {made} attacks, {bad} of them with findings")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
