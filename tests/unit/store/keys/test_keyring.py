"""A closed store keeps no identity: not by a reference, and not in memory."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

import castore
from castore.crypto import Identity
from castore.errors import IdentityError
from castore.services.restore import restore as restore_parts
from castore.services.selectors import select
from castore.services.sources import file_source
from castore.store import open_store
from castore.store.keys.keyring import IdentitySource
from tests.support.stores import Sandbox

CHILD = """
import sys
from castore.crypto import Identity
from castore.services.rollback.plan import read_details
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
read_details(store, store.generation("s", 1))
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
        keyring = weakref.ref(store._keyring)
        store.close()
        assert given[0]() is None
        assert keyring() is None
        gone = weakref.ref(store)
        del store
        assert gone() is None
    finally:
        gc.enable()
    assert len(given) == 1


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
