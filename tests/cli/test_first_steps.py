"""What a user meets first: an empty store, a disk that is not mounted, a check that must not ask."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


def test_log_says_that_there_is_no_generation(castore: Run, home: Path) -> None:
    castore("init")
    empty = castore("log")
    assert (empty.stdout, empty.stderr) == ("", "castore: there is no generation; take one with: castore snapshot SERVICE\n")
    assert castore("log", "--quiet").stderr == ""
    assert castore("log", "--json").stdout.strip() == "[]"
    castore("snapshot", "s", "--exec", "d=echo x", "--revision", "r1")
    assert "of a revision that begins with 'r2'" in castore("log", "--revision", "r2").stderr


@pytest.mark.parametrize("is_mount_point", [False, True])
def test_init_makes_no_new_store_where_one_is_missing(castore: Run, tmp_path: Path, is_mount_point: bool) -> None:
    store = tmp_path / "disk" / "store"
    store.parent.mkdir()
    castore("init", store)
    castore("snapshot", "s", "--exec", "d=echo x", "--store", store)
    away = tmp_path / "away"
    store.rename(away)
    if is_mount_point:
        store.mkdir()
    refused = castore("init", store, expect=2).stderr
    assert f"the store at {store} is missing: this machine has used a store there; mount its file system" in refused
    if is_mount_point:
        store.rmdir()
    away.rename(store)
    assert castore("cat", "s@1:d", "--store", store).stdout == "x\n"
    shutil.rmtree(store)
    castore("init", "--replace-lost", store)
    castore("snapshot", "s", "--exec", "d=echo y", "--store", store)


def test_a_new_user_gets_from_config_init_to_a_store(castore: Run, home: Path) -> None:
    assert "castore config init" in castore("config", "check", expect=2).stderr
    config = home / ".config/castore/castore.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[service.s.parts.d]\nengine = "tree"\npath = "{home}/data"\n')
    (home / "data").mkdir()
    store = home / ".local/share/castore"
    assert f"castore init {store}\n" in castore("config", "check", expect=2).stdout
    castore("init", store)
    castore("key", "adopt", "--host", "other")
    config.write_text(f'host = "web"\n{config.read_text()}')
    for command in (["config", "check"], ["snapshot", "s"]):
        done = castore(*command, expect=2)
        assert "castore key adopt --host web" in done.stdout + done.stderr
    castore("key", "adopt", "--host", "web")
    castore("config", "check")
    castore("snapshot", "s")


def test_in_place_of_a_dump_says_how_a_dump_is_restored(castore: Run, tmp_path: Path) -> None:
    castore("init")
    castore("snapshot", "s", "--exec", "d=echo x")
    refused = castore("restore", "--in-place", "s@latest:d", tmp_path / "file", expect=2).stderr
    assert "castore cat s@1:d >FILE" in refused
    assert "castore rollback s --to 1" in refused


def test_config_check_asks_nothing_on_a_terminal(castore: Run, home: Path, tmp_path: Path) -> None:
    castore("init", tmp_path / "store")
    for identity in (home / ".config/castore").glob("*.identity"):
        identity.unlink()
    (tmp_path / "tree").mkdir()
    config = tmp_path / "castore.toml"
    config.write_text(f'store = "{tmp_path}/store"\n[service.s.parts.t]\nengine = "tree"\npath = "{tmp_path}/tree"\n')
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "castore", "config", "check", "--config", str(config)]
    running = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave)
    os.close(slave)
    try:
        running.wait(timeout=120)
        output = os.read(master, 65536).decode()
    finally:
        running.kill()
        running.wait()
        os.close(master)
    assert running.returncode == 0, output
    assert "identity: not available" in output
