"""`castore key revoke-writer` and `key rotate`: after a machine was lost, and with an older copy of a store."""

from __future__ import annotations

import shutil


def test_the_story_of_a_lost_machine(castore, tmp_path):
    store, identity, dump = tmp_path / "store", tmp_path / "identity", tmp_path / "dump"
    kinds = ("DATA", "STATE", "CACHE", "CONFIG")
    lost, other = ({f"XDG_{kind}_HOME": str(tmp_path / name / kind) for kind in kinds} for name in ("lost", "other"))
    env = {"CASTORE_STORE": str(store)}
    castore("init", store, "--identity", identity)
    dump.write_text("first")
    castore("snapshot", "web", "--dump", f"d={dump}", env=env)
    named = {"lost": lost, "other": other}
    assert "--host NAME" in castore("key", "adopt", "--identity", identity, env={**env, **lost}, expect=2).stderr
    for name, machine in named.items():
        castore("key", "adopt", "--host", name, "--identity", identity, env={**env, **machine})
    castore("key", "revoke-writer", "lost", env=env, expect=7)
    done = castore("key", "revoke-writer", "lost", "--identity", identity, env=env)
    assert done.stderr == ""
    assert "writer lost" in (listed := castore("key", "list", env=env).stdout)
    assert listed.count("revoked") == 1
    for command in (("log",), ("snapshot", "web", "--dump", f"d={dump}"), ("log", "--identity", identity)):
        done = castore(*command, env={**env, **lost}, expect=7)
        assert "castore key adopt" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    castore("key", "adopt", env={**env, **lost}, expect=7)
    dump.write_text("second")
    castore("snapshot", "web", "--dump", f"d={dump}", env={**env, **other})
    castore("key", "rotate-writer", "--new-ids", "--identity", identity, env={**env, **other})
    assert [line.split()[1] for line in castore("log", env=env).stdout.splitlines()[1:]] == ["2", "1"]
    for number, text in ((1, "first"), (2, "second")):
        assert castore("cat", f"web@{number}:d", "--identity", identity, env=env).stdout == text
    castore("verify", "--read-data", "--identity", identity, env=env)


def test_the_story_of_an_older_copy(castore, tmp_path):
    store, dump = tmp_path / "store", tmp_path / "dump"
    env = {"CASTORE_STORE": str(store)}
    castore("init", store)
    dump.write_text("first")
    take = ("snapshot", "web", "--dump", f"d={dump}")
    castore(*take, env=env)
    shutil.copytree(store, tmp_path / "old")
    castore(*take, env=env)
    shutil.rmtree(store)
    shutil.copytree(tmp_path / "old", store)
    commands = (("log",), ("restore", "web@1", tmp_path / "out"), ("verify",), ("ls", "web@1"), ("stats",))
    for command in commands:
        done = castore(*command, env=env, expect=10)
        assert "web@2" in done.stderr
        assert "--accept-older" in done.stderr
        assert len(done.stderr.splitlines()) == 1
    castore("restore", "web@1", tmp_path / "out", "--accept-older", env=env)
    castore("log", env=env)
    done = castore(*take, "--json", env=env)
    assert '"number": 3' in done.stdout, "2 is never given again"
