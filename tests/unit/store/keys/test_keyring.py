"""A closed store keeps no identity: not by a reference, and not in memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import castore
from castore.crypto import Identity, MachineKey, RecordSealer, WriterKey
from castore.crypto.sodium import Secret
from castore.errors import IdentityError, UsageError
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import file_source
from castore.store import open_store
from castore.store.keys.keyring import IdentitySource, Keyring
from tests.support.stores import Sandbox, take_snapshot

CHILD = """
import sys
from castore.crypto import Identity
from castore.services.details import read_details
from castore.store import MachinePaths, open_store

store_path, state, cache, masked, mask = sys.argv[1:]
masked, mask = bytes.fromhex(masked), bytes.fromhex(mask)

def provide():
    key = bytearray(32)
    for at in range(32):
        key[at] = masked[at] ^ mask[at]
    identity = Identity(key)
    for at in range(32):
        key[at] = 0
    return identity

store = open_store(store_path, MachinePaths(state, cache), provide)
read_details(store, store.generations.get("s", 1))
print("open", flush=True)
sys.stdin.readline()
store.close()
print("closed", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path / "sandbox")
    (tmp_path / "file").write_bytes(b"state" * 1000)
    sandbox.snapshot("s", {"f": file_source(str(tmp_path / "file"))})
    return sandbox


def test_a_closed_store_holds_no_identity_without_the_cyclic_collector(sandbox: Sandbox):
    secret = bytearray(bytes(sandbox.identity._secret))
    given: list[weakref.ref] = []

    def provide() -> Identity:
        identity = Identity(bytes(secret))
        given.append(weakref.ref(identity))
        return identity

    gc.collect()
    gc.disable()
    try:
        store = open_store(str(sandbox.store), sandbox.places, provide)
        restore_parts(store, select(store, "s@1:f"), str(sandbox.folder / "out"), sandbox.ownership, castore.Progress())
        assert given[0]() is not None
        keyring = weakref.ref(store.keys.ring)
        store.close()
        assert given[0]() is None
        assert keyring() is None
        gone = weakref.ref(store)
        del store
        assert gone() is None
    finally:
        gc.enable()
    assert len(given) == 1


def _reachable(start: object) -> list[object]:
    """Return all objects that an object references, directly or through others, apart from modules and types."""
    found: dict[int, object] = {}
    todo = [start]
    while todo:
        one = todo.pop()
        if id(one) in found or isinstance(one, ModuleType | type):
            continue
        found[id(one)] = one
        # Not the globals of a function, which lead to everything.
        todo += [one.__closure__, one.__defaults__] if isinstance(one, FunctionType) else gc.get_referents(one)
    return list(found.values())


def test_no_key_is_reachable_from_a_closed_store(sandbox: Sandbox):
    store = sandbox.open()
    restore_parts(store, select(store, "s@1:f"), str(sandbox.folder / "out"), sandbox.ownership, castore.Progress())
    kinds = (WriterKey, MachineKey, Identity, Keyring, RecordSealer, Secret)
    secrets = [store.keys.writer_key.secret, store.keys.writer_key.machine.seed, sandbox.identity._secret]
    assert {type(one) for one in _reachable(store)} >= set(kinds)
    store.close()
    left = _reachable(store)
    # The provider of the identity, which the sandbox keeps, is dropped, too.
    assert not [one for one in left if isinstance(one, kinds)]
    assert not [one for one in left if isinstance(one, bytes | bytearray) and bytes(one) in map(bytes, secrets)]
    with pytest.raises(UsageError, match="is closed"):
        _ = store.keys.writer_key


def test_a_dropped_store_keeps_no_key_in_a_reference_cycle(sandbox: Sandbox):
    gc.collect()
    gc.disable()
    try:
        store = sandbox.open()
        restore_parts(store, select(store, "s@1:f"), str(sandbox.folder / "out"), sandbox.ownership, castore.Progress())
        sandbox.folder.joinpath("dump").write_bytes(b"more")
        take_snapshot(store, "s", {"d": file_source(str(sandbox.folder / "dump"))})
        keys = [weakref.ref(one) for one in (store, store.keys, store.keys.writer_key, store.keys.ring)]
        del store
        assert [one() for one in keys] == [None] * 4
    finally:
        gc.enable()


def _holds(pid: int, key: bytes) -> bool:
    with open(f"/proc/{pid}/maps", encoding="ascii") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            place, rights = line.split()[:2]
            if not rights.startswith("rw"):
                continue
            start, end = (int(one, 16) for one in place.split("-"))
            try:
                memory.seek(start)
                if key in memory.read(end - start):
                    return True
            except (OSError, OverflowError):
                continue
    return False


def test_a_closed_store_leaves_no_identity_in_memory(sandbox: Sandbox):
    key = bytes(sandbox.identity._secret)
    mask = os.urandom(32)
    masked = bytes(one ^ other for one, other in zip(key, mask, strict=True))
    argv = [sys.executable, "-c", CHILD, str(sandbox.store), sandbox.places.state, sandbox.places.cache, masked.hex(), mask.hex()]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == "open\n"
        assert _holds(child.pid, key)
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "closed\n"
        assert not _holds(child.pid, key)
        child.stdin.write("\n")
        child.stdin.flush()


def test_a_failure_to_get_the_identity_keeps_no_frame_of_it():
    class Held:
        """Something secret in a local variable."""

    held: list[weakref.ref] = []

    def provide() -> Identity:
        secret = Held()
        held.append(weakref.ref(secret))
        raise IdentityError("wrong passphrase")

    source = IdentitySource(provide)
    for _ in range(2):
        with pytest.raises(IdentityError, match="wrong passphrase") as caught:
            source.get()
        del caught
    gc.collect()
    assert len(held) == 1
    assert held[0]() is None
    source.close()
    with pytest.raises(IdentityError, match="none was given"):
        source.get()
