"""Stores on other machines, by the command line: an S3 server, a directory reached by ssh, an SFTP server."""

from __future__ import annotations

import filecmp
import itertools
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

KINDS = ("s3", "ssh", "sftp")
_numbers = itertools.count()


@pytest.fixture
def servers(seaweedfs, shared_sshd):
    shared_sshd.authorize()
    return seaweedfs, shared_sshd


@pytest.fixture(params=KINDS)
def remote(request, servers, monkeypatch):
    """The URL of a place for a new store."""
    s3, sshd = servers
    for name, value in {**s3.environment, **sshd.environment}.items():
        monkeypatch.setenv(name, value)
    number = next(_numbers)
    places = {
        "s3": f"s3://castore-test/store-{number}",
        "ssh": f"ssh://castore-test{sshd.folder}/store-{number}",
        "sftp": f"sftp://castore-test{sshd.folder}/store-{number}",
    }
    monkeypatch.setenv("CASTORE_STORE", places[request.param])
    return places[request.param]


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    top.mkdir()
    for number in range(20):
        (top / f"small-{number}").write_bytes(random.Random(number).randbytes(3000))
    (top / "large").write_bytes(random.Random(99).randbytes(3 << 20))
    return top


def _same(one, other):
    names = sorted(os.listdir(one))
    assert names == sorted(os.listdir(other))
    assert filecmp.cmpfiles(one, other, names, shallow=False) == (names, [], [])


def test_packs_are_hashed_by_the_server(castore, servers, tree, monkeypatch, tmp_path, home):
    _, sshd = servers
    for name, value in sshd.environment.items():
        monkeypatch.setenv(name, value)
    place = f"{sshd.folder}/hashed"
    monkeypatch.setenv("CASTORE_STORE", f"ssh://castore-test{place}")
    castore("init")
    castore("snapshot", "wiki", "--tree", f"d={tree}")
    # At this limit, 3 MB take longer than the time.
    assert "no damage found" in castore("verify", "--packs", "--limit-download", "20K", timeout=60).stdout
    (pack,) = sorted(Path(place, "packs").iterdir(), key=lambda path: path.stat().st_size)[-1:]
    pack.chmod(0o600)
    with pack.open("r+b") as file:
        file.seek(1 << 20)
        file.write(b"damaged")
    assert "its bytes are not those that were written" in castore("verify", "--packs", expect=5).stdout


def test_a_store_on_another_machine_is_used_as_one_on_this_one(castore, remote, tree, tmp_path, home):
    made = castore("init").stdout
    assert f"store:     {remote}\n" in made
    castore("snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}")
    shutil.copytree(tree, tmp_path / "r1")
    (tree / "large").write_bytes(random.Random(99).randbytes(2 << 20) + b"changed")
    (tree / "small-3").unlink()
    castore("snapshot", "wiki", "--revision", "r2", "--tree", f"d={tree}")
    shutil.copytree(tree, tmp_path / "r2")
    castore("restore", "wiki@r1:d", tmp_path / "restored")
    _same(tmp_path / "restored", tmp_path / "r1")
    castore("rollback", "wiki", "--to", "r1", "--yes")
    _same(tree, tmp_path / "r1")
    assert castore("cat", "wiki@r2:d/large", binary=True).stdout == (tmp_path / "r2" / "large").read_bytes()
    assert "no damage found" in castore("verify", "--packs").stdout
    castore("forget", "wiki@r2", "--yes")
    castore("prune")
    assert "no damage found" in castore("verify").stdout

    # A machine that never saw the store needs the URL and the identity.
    identity = made.split("identity:  ")[1].split("\n")[0]
    new = {f"XDG_{kind}_HOME": str(tmp_path / "new" / kind) for kind in ("STATE", "CACHE", "DATA")}
    castore("restore", "wiki@r1:d", tmp_path / "new-machine", "--identity", identity, env=new)
    _same(tmp_path / "new-machine", tmp_path / "r1")


def test_a_second_store_at_the_same_place_is_refused(castore, remote):
    castore("init")
    assert f"{remote} holds a castore store already" in castore("init", expect=2).stderr


def test_a_place_without_a_store_is_named_with_the_way_out(castore, remote):
    failed = castore("log", expect=6).stderr
    assert remote in failed
    assert f"castore init {remote}" in failed


def test_an_unknown_scheme_makes_no_directory(castore, home):
    failed = castore("init", "s4://bucket/x", expect=2).stderr
    assert "no store of the kind s4://" in failed
    assert "s3://" in failed
    castore("snapshot", "x", "--tree", "d=/etc/hostname", expect=2, env={"CASTORE_STORE": "gopher://x/y"})
    assert sorted(os.listdir(home)) == []


def test_a_url_in_castore_toml_names_the_store(castore, remote, tree, home, monkeypatch):
    monkeypatch.delenv("CASTORE_STORE")
    config = home / "castore.toml"
    config.write_text(f'store = "{remote}"\n[service.wiki]\nrevision.value = "r1"\n[service.wiki.parts.d]\nengine = "tree"\npath = "{tree}"\n')
    castore("init", "--config", config)
    castore("snapshot", "wiki", "--config", config)
    assert "wiki" in castore("log", "--config", config).stdout
    config.write_text('store = "s4://bucket/x"\n')
    assert "store: 's4://bucket/x'" in castore("config", "check", "--config", config, expect=2).stderr


def test_a_new_process_reads_a_store_although_it_is_confined(castore, remote, tree):
    """The processes of the other tests inherit imported modules; some write files when they are imported."""
    castore("init")
    castore("snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}")
    done = subprocess.run([sys.executable, "-m", "castore", "log"], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "wiki" in done.stdout


def test_a_place_that_cannot_be_reached_is_not_called_unsound(castore, servers, monkeypatch):
    s3, _ = servers
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    for command in (("store", "probe"), ("init",)):
        failed = castore(*command, "s3://castore-test/x", expect=1)
        assert "the server refuses these credentials" in failed.stderr
        assert "a snapshot may be unreadable" not in failed.stderr + failed.stdout


def test_a_probe_of_a_missing_directory_names_the_way_out(castore, servers, monkeypatch, tmp_path):
    _, sshd = servers
    for name, value in sshd.environment.items():
        monkeypatch.setenv(name, value)
    missing = tmp_path / "missing"
    for address in (missing, f"ssh://castore-test{missing}", f"sftp://castore-test{missing}"):
        assert f"castore init {address}" in castore("store", "probe", address, expect=6).stderr
        assert not missing.exists()


def test_a_url_is_no_directory_to_restore_to(castore, home):
    assert "is a URL" in castore("restore", "wiki@1:d", "s3://bucket/x", expect=2).stderr
    assert os.listdir(home) == []
