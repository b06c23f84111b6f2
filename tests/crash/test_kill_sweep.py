"""castore killed before each of its calls that change a file: what was acknowledged is whole, and it goes on.

strace shows which such calls a command makes; a library that is preloaded counts all of these, over all
threads, and kills before each in turn. Run with -m slow, every one is tried; else every few.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from castore.crypto import Identity
from castore.services.sources import Tree, file_source
from castore.storage import LocalStorage
from castore.store import Store
from tests.support.fault_sweep import AVERAGE, KILLED, Machine, Sweep, compiled
from tests.support.stores import take_snapshot

if TYPE_CHECKING:
    from collections.abc import Iterator

EVERY = 13
"""In the normal run, so many calls apart: another first one in each command."""

NEW = Identity.generate()

COMMANDS = (
    *("init", "init into a place of its own", "snapshot", "first snapshot", "prune", "compact", "forget"),
    *("pin", "key add", "key remove", "reindex"),
)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = compiled(tmp_path_factory.mktemp("faults"))
    if found is None:
        pytest.skip("no C compiler")
    return found


def prepare(machine: Machine, command: str) -> tuple[str, ...]:
    """Bring a machine to where a command has all of its work to do; return its words."""
    if command == "init":
        return ("init", str(machine.store), "--average", str(AVERAGE), "--identity", str(machine.folder / "new" / "identity"))
    if command.startswith("init"):
        machine.names_identity = False
        return ("init", str(machine.store), "--average", str(AVERAGE))
    if command == "first snapshot":
        machine.make_store()
        machine.change(1)
        return machine.snapshot_words("web")
    machine.grow()
    if command == "snapshot":
        machine.change(5)
        return machine.snapshot_words("web")
    if command == "compact":
        machine.must("forget", "--yes", "web@1", "web@3")
        del machine.kept["web", 1], machine.kept["web", 3]
        return ("compact",)
    if command == "key remove":
        machine.must("key", "add", NEW.recipient.text)
    return {
        "prune": ("prune",),
        "forget": ("forget", "--yes", "web@2", "web@3"),
        "pin": ("pin", "web@1", "--note", "kept"),
        "key add": ("key", "add", NEW.recipient.text, "--label", "another"),
        "key remove": ("key", "remove", NEW.recipient.text),
        "reindex": ("reindex",),
    }[command]


GOING = {"prune": {("web", 1), ("web", 2)}, "forget": {("web", 2), ("web", 3)}}
DONE_ALREADY = {
    # What a command says when the one that was killed had done all of it.
    "forget": (6, "no generation"),
    "key add": (2, "is a recipient of this store already"),
    "key remove": (6, "is not a recipient of this store"),
}


def sweep(machine: Machine, library: Path, command: str, every: int) -> Counter[str]:
    """Kill a command at its calls, `every` apart, and look after each; return how often at what kind of call."""
    words = prepare(machine, command)
    swept = Sweep(machine, library, words)
    going = GOING.get(command, set())
    certain = machine.kept.keys() - going
    number = 1 + max((n for s, n in machine.kept if s == "web"), default=0)
    taken = {("web", number): machine.content()} if "snapshot" in command else {}
    possible = machine.kept | taken
    struck: Counter[str] = Counter()
    at = 1 + COMMANDS.index(command) % every
    while True:
        swept.reset()
        done, log = swept.run("kill", at)
        if done.returncode != KILLED:
            assert done.returncode == 0, done.stderr
            assert len(log) < at, "it was to be killed, and was not"
            break
        assert len(log) == at
        kind = log[-1].split()[1]
        struck[kind] += 1
        if command.startswith("init"):
            _init_goes_on(machine, words, log[-1])
        else:
            for fresh in (False, True):
                listed = machine.check(certain=certain, possible=possible, fresh=fresh)
            again = machine.run(*words)
            if again.returncode:
                code, text = DONE_ALREADY.get(command, (0, ""))
                assert again.returncode == code, (log[-1], again.stderr)
                assert text in again.stderr
                # One of two is deleted: the other is deleted by its own name.
                for service, left in sorted(listed & going):
                    machine.must("forget", "--yes", f"{service}@{left}")
            # A snapshot that was killed after its commit exists, and the next one is another.
            new = dict(taken)
            if taken and taken.keys() & listed:
                new["web", number + 1] = taken["web", number]
            wanted = (certain | new.keys()) if going or new else listed
            assert machine.check(certain=wanted, possible=possible | new, fresh=False) == wanted
            assert machine.check(certain=wanted, possible=possible | new, fresh=True) == wanted
            _keys_are_right(machine, command)
        at += every
    return struck


def _keys_are_right(machine: Machine, command: str) -> None:
    """After `key add` the new identity opens all, after `key remove` nothing."""
    if not command.startswith("key"):
        return
    with machine.opened() as store:
        named = {recipient.text for recipient, _ in store.keys.recipients}
        assert (NEW.recipient.text in named) == (command == "key add")
    old, machine.identity = machine.identity, NEW
    try:
        if command == "key add":
            machine.check(certain=set(machine.kept), possible=machine.kept, fresh=True)
        else:
            with pytest.raises(Exception, match="sealed"):
                machine.check(certain=set(machine.kept), possible=machine.kept, fresh=True)
    finally:
        machine.identity = old


def _init_goes_on(machine: Machine, words: tuple[str, ...], where: str) -> None:
    """Whenever `init` is killed, it can be repeated, or is done; then what is taken can be read."""
    again = machine.run(*words)
    if again.returncode:
        assert again.returncode == 2, (where, again.stderr)
        assert "holds a castore store already" in again.stderr, where
    # By the identity that init made.
    store_id = Store.read_id(LocalStorage(str(machine.store))).hex()
    made = machine.folder / "new" / "identity"
    if "--identity" not in words:
        made = machine.folder / "config" / "castore" / f"{store_id}.identity"
    machine.identity = Identity.parse(made.read_text(), None)
    machine.change(1)
    with machine.opened() as store:
        sources = {"t": Tree(str(machine.live)), "d": file_source(str(machine.dump))}
        assert take_snapshot(store, "web", sources).number == 1
    kept = {("web", 1): machine.content()}
    machine.check(certain=set(kept), possible=kept, fresh=False)


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    lines: list[str] = []
    yield lines
    reporter = request.config.pluginmanager.getplugin("terminalreporter")
    capture = request.config.pluginmanager.getplugin("capturemanager")
    if reporter is not None and capture is not None and lines:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            for line in lines:
                reporter.write_line(line)


def summary(command: str, struck: Counter[str]) -> str:
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(struck.items()))
    return f"killed: {command}: {struck.total()} times ({kinds})"


@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_some_calls_it_goes_on(machine, library, report, command) -> None:
    struck = sweep(machine, library, command, EVERY)
    assert struck
    report.append(summary(command, struck))
    print(report[-1])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("command", COMMANDS)
def test_killed_at_every_call_it_goes_on(machine, library, report, command) -> None:
    struck = sweep(machine, library, command, 1)
    assert struck.total() > 3
    report.append(summary(command, struck))
    print(report[-1])


_CHANGING = (
    "openat,open,creat,write,pwrite64,writev,pwritev,pwritev2,fsync,fdatasync,sync_file_range,syncfs,msync,link,"
    "linkat,symlink,symlinkat,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,ftruncate,truncate,"
    "fallocate,copy_file_range,sendfile,mknod,mknodat,fchmod,chmod,fchown,utimensat"
)
_KINDS = {"pwrite64": "pwrite", "writev": "write", "pwritev": "pwrite", "openat": "create", "open": "create", "linkat": "link", "unlinkat": "unlink"}


@pytest.mark.parametrize("command", ["snapshot", "prune", "key add", "init"])
def test_the_calls_that_are_counted_are_those_that_strace_sees(machine, library, command) -> None:
    """None is left out: what castore does to files, the sweep kills before."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    swept = Sweep(machine, library, prepare(machine, command))
    if command == "snapshot":
        # What a file was read as is recorded only if its last change is not recent: it is for both runs, then.
        time.sleep(max(0, 2.1 - (time.time() - machine.dump.stat().st_ctime)))
    swept.reset()
    _, log = swept.run("kill", 0)
    counted = Counter(line.split()[1] for line in log)
    swept.reset()
    trace = machine.folder.with_name("trace")
    options = ("-f", "-qq", "-y", "-o", str(trace), "-e", f"trace={_CHANGING}")
    done = machine.run(*swept.words, wrap=("strace", *options))
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    assert done.returncode == 0, done.stderr
    seen: Counter[str] = Counter()
    for line in _whole_lines(trace.read_text(errors="replace")):
        call, _, rest = line.partition("(")
        if f"{machine.folder}/" not in rest or (call in {"openat", "open"} and not re.search("O_CREAT|O_TRUNC", rest)):
            continue
        if call == "fdatasync" and f"<{machine.dump}>" in rest:
            continue  # of the file that is dumped, which castore only reads
        if re.search(r"AT_REMOVEDIR", rest):
            call = "rmdir"
        seen[_KINDS.get(call, call)] += 1
    assert seen == counted


def _whole_lines(text: str) -> Iterator[str]:
    """Yield calls, without the thread; a call that another one interrupted is yielded once."""
    for line in text.splitlines():
        call = line.split(None, 1)[1] if " " in line else line
        if not call.startswith(("<...", "+++", "---")):
            yield call
