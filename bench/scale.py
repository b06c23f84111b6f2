"""What castore does with very many chunks and generations: a table of rates, times, bytes and memory.

    python -m bench.scale --folder SCRATCH                               # 1 M chunks, 10,000 generations
    python -m bench.scale --folder SCRATCH --chunks 100000000 --generations 1000000

The large one takes about 25 GB, 4 GB of them in a million small files, and 20 minutes of CPU.

The packs are sparse files with real footers, the generations real objects: all goes through the code that
any store's does. Each step runs in a process of its own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time

from castore.crypto import Identity
from castore.kernel.id_set import IdSet
from castore.maintenance.compact import plan
from castore.model.generation import Generation, StoredRef
from castore.model.refs import PackId, RefKind
from castore.storage import LocalStorage
from castore.store import MachinePaths, Store
from castore.store.format import pack as packs
from castore.store.format.generation import encode_generation
from castore.store.format.header import PACK, header
from castore.store.format.names import generation_name, pack_name
from castore.store.format.signed import sign
from castore.store.index.pack_tables import PackContent

A_PACK = 1000
"""Chunks."""
DELTAS = 10
"""One chunk in so many is a delta."""
SERVICES = 10
CASTORE = "from castore.__main__ import main; main()"
_ENTRY = struct.Struct("<32sIIIHBB")


def open_store(folder: str) -> Store:
    places = MachinePaths(f"{folder}/state", f"{folder}/cache")
    return Store.open(LocalStorage(f"{folder}/store"), places)


def ids_of(number: int, count: int = A_PACK) -> bytes:
    """Return the ids of the chunks of a pack."""
    return random.Random(number).randbytes(32 * count)


def make(folder: str, chunks: int, generations: int) -> dict:
    """Write a store."""
    storage = LocalStorage(f"{folder}/store", create=True)
    places = MachinePaths(f"{folder}/state", f"{folder}/cache")
    identity = Identity.generate()
    Store.create(storage, places, [(identity.recipient, "")], lambda: identity).close()
    with open_store(folder) as store:
        key = store.keys.writer_key
        os.makedirs(f"{folder}/store/packs")
        os.makedirs(f"{folder}/store/generations")
        os.makedirs(f"{folder}/store/sessions")
        for number in range(chunks // A_PACK // 16 + 1):
            # What nobody has the key to is not counted on: they are only listed.
            with open(f"{folder}/store/sessions/{number.to_bytes(16, 'big').hex()}.0", "wb"):
                pass
        for number in range(chunks // A_PACK):
            write_pack(f"{folder}/store/packs/{os.urandom(32).hex()}", number, key)
        for number in range(generations):
            one = generation(number, store)
            with open(f"{folder}/store/{generation_name(key.tag(one.service), one.number)}", "wb") as file:
                file.write(encode_generation(one, key)[0])
    return {}


def write_pack(path: str, number: int, key) -> None:
    ids = ids_of(number)
    entries, bases = [], []
    for i in range(A_PACK):
        delta = i and i % DELTAS == 0
        kind = int(i == A_PACK - 1)
        entries.append(_ENTRY.pack(ids[32 * i : 32 * i + 32], 20_000, 65_536, i, 0, kind, 3 if delta else 1))
        if delta:
            bases.append(ids[32 * i - 32 : 32 * i])
    footer = b"".join([b"\1\0", (number // 16).to_bytes(16, "big"), *entries, *bases])
    start = header(PACK) + os.urandom(16)
    about = b"footer" + key.store_id + start
    sealed = key.objects.seal(about, sign(key.signer, about, footer))
    trailer = key.objects.seal(b"trailer" + key.store_id + start, struct.pack("<II", len(sealed), A_PACK))
    with open(path, "wb") as file:
        file.write(start)
        file.seek(packs.RECORDS + 20_000 * A_PACK)
        file.write(sealed + trailer)


def generation(number: int, store: Store) -> Generation:
    revision = f"{number // SERVICES:040x}"[::-1]
    details = StoredRef(RefKind.CHUNK, ids_of(0, 1), 1)
    place = number % SERVICES, number // SERVICES + 1
    host, key = store.hosts.current.name, store.hosts.current.id
    return Generation(
        *(f"s{place[0]}", place[1], number * 10**9, revision, host, (), details, bytes(16)), host_id=key
    )


def reindex(folder: str, chunks: int, generations: int) -> dict:
    with open_store(folder) as store:
        began = time.perf_counter()
        store.generations.sync()
        between, cpu = time.perf_counter(), time.process_time()
        store.sync()
        seconds, cpu = time.perf_counter() - between, time.process_time() - cpu
        found = store.index.count("chunks") + store.index.count("nodes")
        assert found == chunks // A_PACK * A_PACK, found
        size = os.path.getsize(os.path.join(store.index.path, "data.mdb"))
    return {
        "sync: generations": f"{between - began:.2f} s, {generations / (between - began):,.0f} /s",
        "sync: packs into an empty index": f"{seconds:.2f} s, {chunks / seconds:,.0f} chunks/s, "
        f"{chunks / cpu:,.0f} a second of CPU",
        "index on disk, a chunk": f"{size / chunks:.1f} bytes",
    }


def one_by_one(folder: str, chunks: int, generations: int) -> dict:
    """Take the packs in as a sync of few does; at most 200."""
    with open_store(folder) as store:
        listed = sorted(PackId(bytes.fromhex(name)) for name in store.storage.list("packs"))[:200]
        store.index.clear()
        began, cpu = time.perf_counter(), time.process_time()
        for at in range(0, len(listed), 50):
            found = []
            for pack in listed[at : at + 50]:
                name = pack_name(pack)
                entries, length = packs.read_footer(store.storage, name, store.keys.writer_key)
                found.append(PackContent(pack, length, entries))
            store.index.packs.put(found)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    count = len(listed) * A_PACK
    return {"the same, pack by pack": f"{count / seconds:,.0f} chunks/s, {count / cpu:,.0f} a second of CPU"}


def look_up(folder: str, chunks: int, generations: int) -> dict:
    """Find a generation by its revision in a process that has opened the index only."""
    with open_store(folder) as store:
        wanted = generation(generations // 2, store)
    began = time.perf_counter()
    store = open_store(folder)
    opened = time.perf_counter()
    found = store.generations.by_revision(wanted.service, wanted.revision[:12])
    done = time.perf_counter()
    assert found == [wanted]
    store.close()
    return {
        "open the store": f"{1000 * (opened - began):.2f} ms",
        "find a generation by revision, first": f"{1000 * (done - opened):.3f} ms",
    }


def exist(folder: str, chunks: int, generations: int) -> dict:
    results = {}
    with open_store(folder) as store:
        rng = random.Random(1)
        count = 200_000
        some = [rng.randrange(chunks // A_PACK) for _ in range(count // A_PACK)]
        hits = [ids[32 * i : 32 * i + 32] for ids in map(ids_of, some) for i in range(A_PACK - 1)]
        rng.shuffle(hits)
        misses = [rng.randbytes(32) for _ in range(len(hits))]
        for name, ids in (("hits", hits), ("misses", misses)):
            for order in ("random", "sorted"):
                asked = sorted(ids) if order == "sorted" else ids
                # The pages that are asked for are in memory.
                store.index.locations.contains(asked)
                began = time.perf_counter()
                for at in range(0, len(asked), 100):
                    store.index.locations.contains(asked[at : at + 100])
                rate = len(asked) / (time.perf_counter() - began)
                results[f"known, hundreds, {order} {name}"] = f"{rate:,.0f} /s"
    return results


def marking(folder: str, chunks: int, generations: int) -> dict:
    with open_store(folder) as store:
        total = store.index.count("chunks") + store.index.count("nodes")
        before = anonymous()
        marks = IdSet(total)
        began = time.perf_counter()
        for number in range(0, chunks // A_PACK, 2):
            marks.add(ids_of(number))
        added = time.perf_counter()
        store.index.liveness.mark_bases(marks)
        based = time.perf_counter()
        found = store.index.liveness.live_bytes(marks)
        lived = time.perf_counter()
        assert sum(pack.live > 0 for pack in found.values()) == (chunks // A_PACK + 1) // 2
        return {
            "marks: half of all": f"{added - began:.2f} s with making the ids, "
            f"{marks.memory / total:.1f} bytes a record",
            "mark_bases": f"{based - added:.2f} s",
            "live_bytes": f"{lived - based:.2f} s",
            "marking: anonymous memory": f"{(anonymous() - before) / total:.1f} bytes a record",
        }


def remove(folder: str, chunks: int, generations: int) -> dict:
    with open_store(folder) as store:
        gone = [pack for pack, _ in store.index.packs.lengths()][::50][:20]
        began = time.perf_counter()
        store.index.packs.remove(gone)
        return {f"forget {len(gone)} packs": f"{time.perf_counter() - began:.2f} s"}


def listing(folder: str, chunks: int, generations: int) -> dict:
    results = {}
    with open_store(folder) as store:
        for name, do in (
            ("sync_generations, nothing new", store.generations.sync),
            ("sync, nothing new", store.sync),
            ("next_number", lambda: store.generations.next_number("s1")),
            ("last generation", lambda: store.generations.newest("s1")),
            ("all generations, decoded", lambda: sum(1 for _ in store.generations.all())),
        ):
            began = time.perf_counter()
            do()
            results[name] = f"{time.perf_counter() - began:.3f} s, peak {peak() >> 20} MiB"
    return results


def log(folder: str, chunks: int, generations: int) -> dict:
    results = {}
    environment = dict(os.environ)
    for kind in ("state", "cache"):
        environment[f"XDG_{kind.upper()}_HOME"] = f"{folder}/xdg-{kind}"
        os.makedirs(f"{folder}/xdg-{kind}", exist_ok=True)
        if not os.path.lexists(f"{folder}/xdg-{kind}/castore"):
            os.symlink(f"{folder}/{kind}", f"{folder}/xdg-{kind}/castore")
    with open_store(folder) as store:
        revision = generation(11, store).revision[:12]
    for arguments in (["log", "s1", "--limit", "20"], ["log", "s1", "--revision", revision], ["log", "s1"]):
        began = time.perf_counter()
        argv = [sys.executable, "-c", CASTORE, *arguments, "--store", f"{folder}/store"]
        done = subprocess.run(argv, stdout=subprocess.DEVNULL, env=environment, check=False)
        name = " ".join(one if one != revision else "R" for one in arguments)
        results[f"castore {name}"] = f"{time.perf_counter() - began:.2f} s, exit code {done.returncode}"
    return results


def prune(folder: str, chunks: int, generations: int) -> dict:
    """Look what a compaction would do: nothing is needed here but what generations name."""
    began = time.perf_counter()
    with open_store(folder) as store:
        found = plan(store, unfinished_seconds=0)  # the packs are of sessions that no generation is of
    return {"plan a compaction": f"{time.perf_counter() - began:.2f} s, {len(found.dead)} packs dead"}


STEPS = {
    step.__name__: step
    for step in (make, reindex, look_up, exist, marking, listing, log, prune, remove, one_by_one)
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


def anonymous() -> int:
    """Return the bytes of memory that are this process's own, not a file's; what is mapped again is Shmem."""
    with open("/proc/self/status") as file:
        return sum(int(line.split()[1]) << 10 for line in file if line.startswith(("RssAnon", "RssShmem")))


class Anonymous(threading.Thread):
    """Watches how much memory is this process's own, at most."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0
        self.done = threading.Event()

    def run(self) -> None:
        while not self.done.wait(0.02):
            self.most = max(self.most, anonymous())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", required=True)
    parser.add_argument("--chunks", type=int, default=1_000_000)
    parser.add_argument("--generations", type=int, default=10_000)
    parser.add_argument("--steps", default=",".join(STEPS), help="which, by commas, of: %(default)s")
    parser.add_argument("--keep", action="store_true", help="do not remove the store afterwards")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    given = parser.parse_args()
    folder = os.path.join(os.path.abspath(given.folder), "scale")
    if given.step:
        began = time.perf_counter()
        watch = Anonymous()
        watch.start()
        results = STEPS[given.step](folder, given.chunks, given.generations)
        watch.done.set()
        results[f"({given.step})"] = (
            f"{time.perf_counter() - began:.1f} s in all, {time.process_time():.1f} s of CPU; "
            f"peak {peak() >> 20} MiB with what is mapped, {watch.most >> 20} MiB of its own"
        )
        print(json.dumps(results))
        return
    print(f"{given.chunks:,} chunks, {given.generations:,} generations")
    for step in given.steps.split(","):
        os.sync()
        argv = [sys.executable, "-m", "bench.scale", "--folder", given.folder, "--step", step]
        argv += ["--chunks", str(given.chunks), "--generations", str(given.generations)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            print(f"{step:42} failed", flush=True)
            continue
        for name, value in json.loads(done.stdout).items():
            print(f"{name:42} {value}", flush=True)
    if not given.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
