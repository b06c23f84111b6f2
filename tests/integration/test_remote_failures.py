"""Remote stores when servers are down, snapshots are killed, extras are missing, or castore itself is not installed."""

from __future__ import annotations

import contextlib
import filecmp
import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.checkout import ROOT
from tests.support.seaweedfs import free_ports


@pytest.fixture
def sshd(shared_sshd, home, monkeypatch):
    shared_sshd.authorize()
    for name, value in shared_sshd.environment.items():
        monkeypatch.setenv(name, value)
    return shared_sshd


@pytest.fixture
def tree(tmp_path):
    top = tmp_path / "tree"
    top.mkdir()
    (top / "file").write_bytes(random.Random(1).randbytes(300_000))
    return top


def _identity(output: str) -> str:
    return output.partition("identity:  ")[2].partition("\n")[0]


@pytest.mark.parametrize(("kind", "way_out"), [("ssh", "repeat the command when"), ("sftp", "sftp castore-test"), ("s3", "AWS_ENDPOINT_URL")])
def test_a_server_that_is_down_is_named_with_the_next_step(castore, sshd, monkeypatch, kind, way_out):
    for name, value in {"ENDPOINT_URL": f"http://127.0.0.1:{free_ports(1)[0]}", "ACCESS_KEY_ID": "k", "SECRET_ACCESS_KEY": "s", "REGION": "r"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    url = "s3://castore-test/down" if kind == "s3" else f"{kind}://castore-test{sshd.folder}/down"
    sshd.stop()
    try:
        begun = time.monotonic()
        failed = castore("log", "--store", url, expect=1).stderr
        assert time.monotonic() - begun < 60, "the patience is 15 seconds, on a machine that may be busy"
    finally:
        sshd.start()
    assert url in failed
    assert way_out in failed
    assert "[Errno" not in failed


def test_a_snapshot_that_was_killed_while_it_uploads_is_repeated_without_what_was_stored(castore, sshd, tree, monkeypatch):
    store = Path(sshd.folder, "killed")
    monkeypatch.setenv("CASTORE_STORE", f"ssh://castore-test{store}")
    castore("init")
    castore("snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}")
    first = {path.name for path in (store / "packs").rglob("*") if path.is_file()}
    for number in range(2):
        (tree / f"more-{number}").write_bytes(random.Random(number + 7).randbytes(48 << 20))
    argv = [sys.executable, "-m", "castore", "snapshot", "wiki", "--revision", "r2", "--tree", f"d={tree}"]
    with subprocess.Popen(argv, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + 60
        while {path.name for path in (store / "packs").rglob("*") if path.is_file()} <= first:
            assert time.monotonic() < end
            assert process.poll() in {None, 0}
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    if process.returncode:  # a busy machine may notice the first pack too late
        assert "r2" not in castore("log").stdout
    castore("cat", "wiki@r1:d/file", binary=True)
    castore("snapshot", "wiki", "--revision", "r2", "--tree", f"d={tree}")
    stored = sum(path.stat().st_size for path in (store / "packs").rglob("*") if path.is_file())
    assert stored < 130 << 20, "a pack that was stored is stored again"
    assert castore("cat", "wiki@r2:d/more-1", binary=True).stdout == (tree / "more-1").read_bytes()


def test_two_machines_add_to_one_store_at_the_same_time(castore, seaweedfs, tree, tmp_path, monkeypatch):
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CASTORE_STORE", "s3://castore-test/two-machines")
    identity = _identity(castore("init").stdout)
    other = {f"XDG_{kind}_HOME": str(tmp_path / "other" / kind) for kind in ("STATE", "CACHE", "DATA", "CONFIG")}
    castore("key", "adopt", "--host", "other", "--identity", identity, "--yes", env=other)

    def snapshots(env):
        for number in range(2):
            castore("snapshot", "wiki", "--revision", f"r{number}", "--tree", f"d={tree}", env=env)

    with ThreadPoolExecutor(2) as machines:
        for done in [machines.submit(snapshots, env) for env in ({}, other)]:
            done.result()
    for env in ({}, other):
        listed = [line for line in castore("log", "--host", "*", env=env).stdout.split("\n") if line.startswith("wiki")]
        assert len(listed) == 4
        assert sum("other" in line for line in listed) == 2
    assert "no damage found" in castore("verify").stdout


@pytest.mark.parametrize(("package", "url", "extra"), [("obstore", "s3://b/x", "castore[s3]"), ("asyncssh", "sftp://h/x", "castore[sftp]")])
def test_an_extra_that_is_not_installed_is_named(home, package, url, extra):
    program = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == {package!r}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from castore.__main__ import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", program, "log", "--store", url], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"pip install '{extra}'" in done.stderr


def test_rescue_restores_a_copy_of_a_bucket(castore, seaweedfs, tree, tmp_path, monkeypatch):
    for name, value in seaweedfs.environment.items():
        monkeypatch.setenv(name, value)
    url = "s3://castore-test/rescued"
    monkeypatch.setenv("CASTORE_STORE", url)
    identity = _identity(castore("init").stdout)
    castore("snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}")
    _copy_bucket("rescued", tmp_path / "copy")
    argv = [sys.executable, ROOT / "tools" / "rescue.py", tmp_path / "copy", "--identity", identity, "wiki", "1", tmp_path / "out"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert filecmp.cmp(tmp_path / "out" / "d" / "file", tree / "file", shallow=False)


def _copy_bucket(folder: str, to: Path) -> None:
    """Copy the objects below a folder of the bucket, as `aws s3 sync` and `rclone copy` do."""
    import obstore
    from obstore.store import S3Store

    store = S3Store("castore-test", endpoint=os.environ["AWS_ENDPOINT_URL"], client_options={"allow_http": True})
    for page in obstore.list(store, folder):
        for found in page:
            path = to / found["path"].removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(bytes(obstore.get(store, found["path"]).bytes()))


def test_children_of_the_server_that_are_killed_do_not_end_a_snapshot(castore, sshd, tree, monkeypatch):
    store = Path(sshd.folder, "cut")
    monkeypatch.setenv("CASTORE_STORE", f"ssh://castore-test{store}")
    castore("init")
    (tree / "large").write_bytes(random.Random(3).randbytes(70 << 20))
    argv = [sys.executable, "-m", "castore", "snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as process:
        end = time.monotonic() + 60
        while not any(path.is_file() for path in (store / "packs").rglob("*")):
            assert time.monotonic() < end
            assert process.poll() in {None, 0}
            time.sleep(0.002)
        _kill_children(sshd.process_id)
        _, printed = process.communicate(timeout=120)
    if process.returncode:
        assert process.returncode == 1, printed
        assert f"ssh://castore-test{store}" in printed
        castore("snapshot", "wiki", "--revision", "r1", "--tree", f"d={tree}")
    assert castore("cat", "wiki@r1:d/large", binary=True).stdout == (tree / "large").read_bytes()


def _kill_children(parent: int) -> None:
    """Kill the processes that serve the connections of sshd."""
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
