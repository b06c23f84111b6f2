"""The index grows by itself, is shared by processes, and says what is wrong with where it is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import lmdb
import pytest

from castore.errors import StorageError
from castore.model.refs import PackId, RecordId, SessionId
from castore.services.sources import file_source
from castore.store import MachinePaths, open_store
from castore.store.format.pack import PackEntry
from castore.store.index import (
    Index,
    lmdb_files,
    opening,
)
from castore.store.index.pack_tables import PackContent
from tests.support.checkout import ROOT
from tests.support.stores import Sandbox, take_snapshot

STORE = bytes(16)

SMALL = 1 << 20


def entries(count: int) -> list[PackEntry]:
    ids = os.urandom(32 * count)
    session = SessionId(bytes(16))
    return [PackEntry(RecordId(ids[32 * i : 32 * i + 32]), 0, 1, 9, 10, i, session, 32 + 10 * i) for i in range(count)]


def put(index: Index, count: int) -> list[PackEntry]:
    found = entries(count)
    index.packs.put([PackContent(PackId(os.urandom(32)), 1000, found)])
    return found


def size_of(index: Index) -> int:
    return index.tables.environment.map_size


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(lmdb_files, "_FIRST_BYTES", SMALL)
    monkeypatch.setattr(lmdb_files, "LEAST_STEP", 1 << 16)


@pytest.fixture
def index(tmp_path, small):
    made = Index(str(tmp_path / "index"), STORE)
    yield made
    made.close()


def test_the_map_grows_with_what_is_put_into_it_and_nothing_is_lost(index, tmp_path):
    assert size_of(index) == SMALL
    found = [entry for _ in range(6) for entry in put(index, 5000)]
    assert size_of(index) > 2 * SMALL
    assert all(index.locations.contains([entry.id for entry in found]))
    assert index.count("chunks") == 30_000
    assert index.count("packs") == 6
    index.close()
    again = Index(str(tmp_path / "index"), STORE)
    assert size_of(again) >= 2 * os.path.getsize(tmp_path / "index/data.mdb")
    assert again.count("chunks") == 30_000
    again.close()


def test_a_change_is_made_once_though_it_is_tried_again(index):
    found = entries(40_000)
    packs = (PackContent(PackId(bytes([n]) * 32), 1000, found[10_000 * n : 10_000 * n + 10_000]) for n in range(4))
    index.packs.put(packs)
    assert index.count("packs") == 4
    assert index.count("chunks") == 40_000
    assert index.count("copies") == 0


def test_readers_go_on_while_the_map_grows(index):
    known = put(index, 100)
    failures = []
    ended = threading.Event()

    def read():
        try:
            # Not without a pause: three that never let the interpreter go would keep the writers out of it.
            while not ended.wait(0.002):
                assert all(index.locations.contains([entry.id for entry in known]))
                assert index.locations.locate(0, known[0].id) is not None
                assert next(index.locations.records())[0] == 0
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=lambda: [put(index, 2000) for _ in range(4)]) for _ in range(2)]
    for thread in threads + writers:
        thread.start()
    for thread in writers:
        thread.join()
    ended.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert size_of(index) > SMALL
    assert index.count("chunks") == 100 + 2 * 4 * 2000
    assert index.tables.environment._running == []


GROW = """
import sys
from castore.store.index import lmdb_files
lmdb_files._FIRST_BYTES = 1 << 20
sys.path.insert(0, sys.argv[3])
from tests.unit.store.index.test_lmdb_env import STORE, put
from castore.store.index import Index
index = Index(sys.argv[1], STORE)
mine = []
for _ in range(int(sys.argv[2])):
    mine += put(index, 1500)
    assert all(index.locations.contains([entry.id for entry in mine]))
print(index.tables.environment.map_size, len(mine))
"""


def python(code: str, *arguments: str, **options) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments, ROOT], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_processes_that_grow_it_at_once_see_what_each_other_wrote(index, tmp_path):
    running = [python(GROW, str(tmp_path / "index"), "12") for _ in range(3)]
    for one in running:
        out, error = one.communicate()
        assert (one.returncode, error) == (0, "")
        assert out.split()[1] == "18000"
    # This process has mapped a megabyte all the while.
    assert size_of(index) == SMALL
    assert index.count("chunks") == 3 * 18_000
    assert size_of(index) > SMALL
    assert all(index.locations.contains([entry.id for entry in put(index, 10)]))


LIMITED = """
import resource, sys
from castore.errors import StorageError
sys.path.insert(0, sys.argv[2])
from tests.unit.store.index.test_lmdb_env import STORE, put
from castore.store.index import Index
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
limit = used + (48 << 20)
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
index = Index(sys.argv[1], STORE)
size, done = index.tables.environment.map_size, 0
try:
    while True:
        done += len(put(index, 1000))
except StorageError as error:
    print(error)
assert size <= 48 << 20, size
assert index.count("chunks") == done > 10000
"""


def test_little_address_space_is_enough_for_a_small_index_and_a_large_one_says_what_it_needs(tmp_path):
    one = python(LIMITED, str(tmp_path / "index"))
    out, error = one.communicate()
    assert (one.returncode, error) == (0, "")
    assert "index" in out
    assert "ulimit -v" in out


def test_where_the_map_was_lost_all_the_same_nothing_touches_it(index, monkeypatch):
    class Failing:
        def __init__(self, env):
            self.env = env

        def __getattr__(self, name):
            return getattr(self.env, name)

        def set_mapsize(self, size):
            raise lmdb.MemoryError("no room")

    monkeypatch.setattr(index.tables.environment, "env", Failing(index.tables.environment.env))
    with pytest.raises(StorageError, match="ulimit -v"):
        put(index, 20_000)
    with pytest.raises(StorageError, match=index.path):
        index.count("chunks")


READ = """
import sys, time
sys.path.insert(0, sys.argv[2])
from tests.unit.store.index.test_lmdb_env import STORE
from castore.store.index import Index
index = Index(sys.argv[1], STORE)
txns = [index.tables.begin() for _ in range(100)]
print("reading", flush=True)
time.sleep(600)
"""


def test_the_slots_of_killed_readers_are_reclaimed(index, tmp_path):
    for _ in range(4):
        one = python(READ, str(tmp_path / "index"))
        assert one.stdout.readline() == "reading\n"
        one.send_signal(signal.SIGKILL)
        one.communicate()
    kept = [index.tables.begin() for _ in range(200)]
    for txn in kept:
        txn.abort()
        index.tables.end()


def test_too_many_readers_are_reported(index):
    kept = []
    with pytest.raises(StorageError, match="when some of them have ended"):
        for _ in range(400):
            index.count("chunks")
            kept.append(index.tables.begin())
    assert len(kept) > 200
    assert len(index.tables.environment._running) == len(kept)
    for txn in kept:
        txn.abort()
        index.tables.end()


@pytest.fixture
def disk(tmp_path):
    """A file system of a few megabytes."""
    point = tmp_path / "disk"
    point.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", point], check=False, capture_output=True)
    if made.returncode:
        pytest.skip("this user cannot mount")
    yield point
    # Lazily: where a test has failed, an index in it may still be open.
    subprocess.run(["umount", "-l", point], check=True)


def test_a_full_disk_is_named_and_what_was_put_before_stays(disk, small):
    index = Index(str(disk / "index"), STORE)
    found = []
    with pytest.raises(StorageError, match=r"index in .* does not work: .*free some space there.*XDG_CACHE_HOME"):
        for _ in range(100):
            found += put(index, 2000)
    assert all(index.locations.contains([entry.id for entry in found]))
    assert index.count("chunks") == len(found) > 0
    index.close()
    again = Index(str(disk / "index"), STORE)
    assert all(again.locations.contains([entry.id for entry in found]))
    again.close()


def test_a_disk_that_is_full_from_the_start_is_named(disk, small):
    with open(disk / "rest", "wb") as file, pytest.raises(OSError, match="No space left"):
        while True:
            file.write(bytes(1 << 16))
            file.flush()
    with pytest.raises(StorageError, match="XDG_CACHE_HOME"):
        Index(str(disk / "index"), STORE)


def test_an_index_is_replaced_only_when_no_process_is_opening_it(index, tmp_path):
    with ThreadPoolExecutor(1) as pool:
        with lmdb_files.kept_in_place(index.path, shared=True):
            replacing = pool.submit(index.rebuild, [], None)
            with pytest.raises(TimeoutError):
                replacing.result(timeout=0.2)
        replacing.result(timeout=60)
    assert index.packs.ids() == set()


def test_a_network_file_system_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(opening, "network_of", lambda path: "NFS")
    with pytest.raises(StorageError, match=r"network file system \(NFS\).*XDG_CACHE_HOME"):
        Index(str(tmp_path / "index"), STORE)


def test_another_users_folder_and_one_that_others_write_to_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "index"
    Index(str(path), STORE).close()
    for mode in (0o720, 0o702):
        path.chmod(mode)
        with pytest.raises(StorageError, match="other users can write to"):
            Index(str(path), STORE)
    for mode in (0o755, 0o700):
        path.chmod(mode)
        Index(str(path), STORE).close()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(StorageError, match="belongs to user"):
        Index(str(path), STORE)


def test_a_folder_that_cannot_be_written_to_is_refused(disk):
    Index(str(disk / "index"), STORE).close()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for name in ("index", "other"):
        with pytest.raises(StorageError, match=r"let this user write there.*XDG_CACHE_HOME"):
            Index(str(disk / name), STORE)




def test_a_snapshot_that_the_index_has_no_room_for_commits_nothing_and_succeeds_when_there_is(disk, small, tmp_path):
    sandbox = Sandbox(tmp_path)
    places = MachinePaths(sandbox.places.state, str(disk / "cache"))
    (tmp_path / "dump").write_bytes(os.urandom(3_000_000))
    source = {"d": file_source(str(tmp_path / "dump"))}
    with open_store(str(sandbox.store), places) as store:
        store.base_cache.limit = 0
        with open(disk / "rest", "wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 12))
        with pytest.raises(StorageError, match=r"index in .*free some space there.*XDG_CACHE_HOME"):
            take_snapshot(store, "s", source)
        assert os.listdir(sandbox.store / "generations") == [] if (sandbox.store / "generations").exists() else True
        (disk / "rest").unlink()
        assert take_snapshot(store, "s", source).number == 1


def test_where_a_durable_generation_cannot_be_indexed_it_is_committed_all_the_same(tmp_path, monkeypatch):
    sandbox = Sandbox(tmp_path)
    (tmp_path / "dump").write_bytes(b"content")
    source = {"d": file_source(str(tmp_path / "dump"))}

    def full(*_):
        raise lmdb.DiskError("No space left on device")

    with sandbox.open() as store:
        with monkeypatch.context() as patch:
            patch.setattr(store.index.generations, "_put", full)
            assert take_snapshot(store, "s", source).number == 1
        assert store.generations.all("s") == []
        store.sync()
        assert [one.number for one in store.generations.all("s")] == [1]


# Damaged, and recreated


OPENING = """
import sys, time
from castore.store.index import Index
while time.time() < float(sys.argv[2]):
    pass
index = Index(sys.argv[1], bytes(16))
with index.tables.reading() as txn:
    pass
index.count("ended")
print(index.tables.environment._folder.st_ino)
index.close()
"""


def pending(path):
    with open(os.path.join(path, "crashes"), "w") as file:
        file.write("damaged\n")


def test_processes_that_recreate_the_index_at_once_share_one(tmp_path):
    path = str(tmp_path / "index")
    Index(path, STORE).close()
    for _ in range(5):
        # Held open, so that no new directory gets its number.
        held = os.open(path, os.O_PATH)
        pending(path)
        start = str(time.time() + 0.8)
        command = [sys.executable, "-c", OPENING, path, start]
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        found = {process.communicate()[0] for process in running}
        assert [process.returncode for process in running] == [0] * 4
        assert found == {f"{os.stat(path).st_ino}\n"}
        assert not os.path.samestat(os.stat(path), os.fstat(held))
        os.close(held)
    assert os.listdir(tmp_path) == ["index"]


def damage(index):
    """Let it be found out that the index is damaged."""
    with pytest.raises(StorageError, match="try again, and it is rebuilt"), index.tables.reading():
        raise lmdb.CorruptedError("for a test")


def test_who_has_a_damaged_index_open_does_not_hand_it_on_or_harm_the_next(tmp_path):
    path = str(tmp_path / "index")
    old = Index(path, STORE)
    put(old, 10)
    damage(old)
    new = Index(path, STORE)
    assert new.count("chunks") == 0
    put(new, 20)
    damage(old)
    with Closing(Index(path, STORE)) as again:
        assert again.count("chunks") == 20
    assert old.count("chunks") == 10
    old.close(), new.close()
    with Closing(Index(path, STORE)) as again:
        assert again.count("chunks") == 20
    assert os.listdir(tmp_path) == ["index"]


class Closing:
    def __init__(self, index):
        self.index = index

    def __enter__(self):
        return self.index

    def __exit__(self, *_):
        self.index.close()


def test_a_full_disk_or_map_is_no_damage(tmp_path):
    path = str(tmp_path / "index")
    with Closing(Index(path, STORE)) as index:
        put(index, 10)
        for error in (lmdb.DiskError("full"), lmdb.MapFullError("full"), lmdb.ReadersFullError("full"), lmdb.MemoryError("no")):
            with pytest.raises(StorageError), index.tables.reading():
                raise error
    with Closing(Index(path, STORE)) as index:
        assert index.count("chunks") == 10


def test_a_folder_that_cannot_be_opened_is_reported_and_not_waited_for(tmp_path):
    os.symlink(tmp_path / "nowhere", tmp_path / "index")
    with pytest.raises(StorageError):
        Index(str(tmp_path / "index"), STORE)


@pytest.mark.parametrize("at", [0, 8, 10, 16, 20, 24, 40])
def test_an_index_whose_beginning_was_changed_is_recreated(tmp_path, at):
    path = str(tmp_path / "index")
    with Closing(Index(path, STORE)) as index:
        put(index, 10)
    with open(os.path.join(path, "data.mdb"), "r+b") as file:
        for page in (0, 4096):
            file.seek(page + at)
            file.write(b"\x21\x43\xff\x20")
    with Closing(Index(path, STORE)) as index:
        assert index.count("chunks") in {0, 10}
        put(index, 10)
