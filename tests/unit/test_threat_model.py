"""What docs/threat-model.md claims, where no other test shows it."""

from __future__ import annotations

import os
import random
import stat

import pytest

from castore.content.streams import StreamReader
from castore.crypto import Recipient
from castore.errors import IdentityError, UsageError
from castore.kernel import padme
from castore.maintenance.verify import verify as verify_store
from castore.progress import Progress
from castore.services.reading import read
from castore.services.selectors import select
from castore.services.sources import Tree, file_source
from castore.store.format.pack import PACK_BYTES
from tests.support.stores import Sandbox

MARK = b"Zebra crossing, 7 o'clock"


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path / "sandbox", average=4096)


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "Secret-Directory"
    (top / "Hidden-Name").mkdir(parents=True)
    (top / "Hidden-Name" / "Private-File.txt").write_bytes(MARK * 50)
    (top / "Large-File").write_bytes(random.Random(1).randbytes(100_000) + MARK)
    os.symlink("Link-Target-Somewhere", top / "link")
    return top


def take(sandbox, tree, **options):
    return sandbox.snapshot(
        "Service-Name",
        {"Part-Name": Tree(str(tree)), "dump": file_source(str(tree / "Large-File"))},
        **options,
    )


def stored(sandbox):
    return {path: path.read_bytes() for path in sandbox.store.rglob("*") if path.is_file()}


def test_no_plaintext_reaches_the_store(sandbox, tree):
    take(sandbox, tree, revision="Revision-Name")
    with sandbox.open() as store:
        store.sync()
        store.generations.pin("Service-Name", 1, "Reason-For-It")
    words = [MARK, b"Secret-Directory", b"Hidden-Name", b"Private-File", b"Large-File", b"Link-Target"]
    words += [b"Service-Name", b"Part-Name", b"Revision-Name", b"Reason-For-It"]
    host = os.uname().nodename.encode()
    words += [host] if len(host) > 7 else []  # a short one is in random bytes, too
    objects = stored(sandbox)
    assert {path.parent.name for path in objects} == {"config", "generations", "packs", "pins", "sessions"}
    for path, data in objects.items():
        for word in words:
            assert word not in data, path
            assert word not in os.fsencode(path.relative_to(sandbox.store)), path


def test_the_same_content_looks_different_in_two_stores(tmp_path, tree):
    identity = None
    seen = []
    for name in ("one", "two"):
        sandbox = Sandbox(tmp_path / name, average=4096, **({} if identity is None else {"identity": identity}))
        identity = sandbox.identity
        take(sandbox, tree)
        with sandbox.open() as store:
            store.sync()
            ids = {record for _, record, _, _ in store.index.locations.records()}
            chunk = store.reader.chunk_id(MARK)
        seen.append((ids, chunk, set(stored(sandbox).values())))
    assert seen[0][1] != seen[1][1]
    assert not any(a & b for a, b in ((seen[0][0], seen[1][0]), (seen[0][2], seen[1][2])))
    # No id is stored in the clear either.
    for (ids, _, objects) in seen:
        assert not any(one in data for one in ids for data in objects)


def test_pack_lengths_reveal_little(sandbox, tmp_path):
    lengths = set()
    for size in range(1, 60):
        path = tmp_path / f"d{size}"
        path.write_bytes(random.Random(size).randbytes(size * 997))
        sandbox.snapshot("s", {"d": file_source(str(path))})
    for path in (sandbox.store / "packs").iterdir():
        length = path.stat().st_size
        assert length == PACK_BYTES or padme(length) == length
        lengths.add(length)
    assert len(lengths) < 59


def test_a_writer_reads_no_state(sandbox, tree):
    take(sandbox, tree)
    with sandbox.open(identity=False) as store, StreamReader(store) as reader:
        store.sync()
        assert [one.service for one in store.generations.all()] == ["Service-Name"]
        with pytest.raises(IdentityError):
            b"".join(read(reader, select(store, "Service-Name@1:dump")))
        with pytest.raises(IdentityError):
            verify_store(store, Progress(), read_data=True)


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),
        b"\1" + bytes(31),
        bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
    ],
)
def test_a_recipient_of_low_order_is_refused(key):
    with pytest.raises(UsageError, match="not a public key"):
        Recipient(key).seal(b"x" * 48)


def test_what_is_stored_in_the_clear_is_for_its_owner_only(sandbox, tree):
    take(sandbox, tree)
    found = 0
    for top in (sandbox.places.state, sandbox.places.cache):
        for folder, names, files in os.walk(top):
            for name in [*names, *files]:
                info = os.lstat(os.path.join(folder, name))
                assert stat.S_IMODE(info.st_mode) & 0o077 == 0, os.path.join(folder, name)
                found += 1
    assert found > 5
    for path in sandbox.store.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
