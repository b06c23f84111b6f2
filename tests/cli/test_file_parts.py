"""Dumps that are files: only regular files are replaced, and what is doubtful is reported."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess]


@pytest.fixture
def store(castore: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CASTORE_STORE", str(tmp_path / "store"))
    castore("init", tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("path", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", "link"])
def test_what_standard_input_gives_has_no_place_to_be_restored_to(castore: Run, store: Path, tmp_path: Path, path: str) -> None:
    if path == "link":
        (tmp_path / "link").symlink_to("/dev/stdin")
        path = str(tmp_path / "link")
    taken = castore("snapshot", "s", "--dump", f"db={path}", input="the dump")
    assert "no program is known that restores the part 'db'" in taken.stderr
    assert castore("cat", "s@latest:db").stdout == "the dump"
    refused = castore("rollback", "s", "--to", "latest", expect=2)
    assert "no program is known" in refused.stderr
    assert Path("/dev/null").is_char_device()


def test_a_file_that_is_standard_input_is_not_replaced(castore: Run, store: Path, tmp_path: Path) -> None:
    """A shell's < FILE: /dev/stdin is a link to a regular file then."""
    (tmp_path / "dump").write_text("x")
    command = [sys.executable, "-m", "castore", "snapshot", "s", "--dump", "db=/dev/stdin"]
    with open(tmp_path / "dump") as file:
        subprocess.run(command, stdin=file, check=True, capture_output=True)
    castore("rollback", "s", "--to", "latest", expect=2)


def test_a_pipe_is_read_as_a_stream(castore: Run, store: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("from the pipe",))
    writer.start()
    castore("snapshot", "s", "--dump", f"db={tmp_path / 'pipe'}")
    writer.join()
    assert castore("cat", "s@latest:db").stdout == "from the pipe"
    castore("rollback", "s", "--to", "latest", expect=2)


def test_an_open_file_is_one_part_only(castore: Run, store: Path) -> None:
    castore("snapshot", "s", "--dump", "a=-", "--dump", "b=/dev/stdin", input="x", expect=2)
    castore("snapshot", "s", "--dump", "a=/dev/fd/99", expect=2)


@pytest.mark.parametrize("engine", ["file", "sqlite"])
@pytest.mark.parametrize("path", ["/dev/null", "/dev/stdin", "pipe", "directory"])
def test_engines_take_regular_files_only(castore: Run, store: Path, home: Path, tmp_path: Path, engine: str, path: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "directory").mkdir()
    path = os.path.join(tmp_path, path)
    (home / "castore.toml").write_text(f'[service.s.parts.db]\nengine = "{engine}"\npath = "{path}"\n')
    castore("snapshot", "s", expect=2)
    castore("log", "s", expect=6)


@pytest.mark.parametrize("live", ["device", "pipe", "link to a device", "directory", "socket"])
@pytest.mark.parametrize("engine", ["file", "sqlite"])
def test_a_rollback_replaces_regular_files_only(
    castore: Run, store: Path, home: Path, tmp_path: Path, engine: str, live: str
) -> None:
    import socket
    import sqlite3

    path = tmp_path / "db"
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE t (x)")
    database.close()
    (home / "castore.toml").write_text(f'[service.s.parts.db]\nengine = "{engine}"\npath = "{path}"\n')
    castore("snapshot", "s")
    path.unlink()
    if live == "device":
        if os.geteuid() != 0:
            pytest.skip("only root makes devices")
        os.mknod(path, 0o20600, os.makedev(1, 3))
    elif live == "pipe":
        os.mkfifo(path)
    elif live == "directory":
        path.mkdir()
    elif live == "socket":
        with socket.socket(socket.AF_UNIX) as listener, contextlib.chdir(tmp_path):
            listener.bind("db")
    else:
        path.symlink_to("/dev/null")
    before = os.lstat(path)
    for options in (["--dry-run"], [], ["--no-pre-rollback"]):
        refused = castore("rollback", "s", "--to", "latest", *options, expect=1)
        assert "not a regular file" in refused.stderr
    now = os.lstat(path)
    assert (now.st_ino, now.st_mode) == (before.st_ino, before.st_mode)
    assert Path("/dev/null").is_char_device()


def test_a_file_with_the_longest_name_is_rolled_back(castore: Run, store: Path, tmp_path: Path) -> None:
    path = tmp_path / ("n" * 120 + "\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 67 + "n")
    assert len(os.fsencode(path.name)) == 255
    path.write_text("first")
    castore("snapshot", "s", "--dump", f"db={path}")
    path.write_text("second")
    castore("rollback", "s", "--to", "1")
    assert path.read_text() == "first"
    assert [one.name for one in tmp_path.iterdir() if "castore-" in one.name] == []


def test_a_file_that_changes_while_it_is_read_is_reported(store: Path, tmp_path: Path) -> None:
    from castore.engines.file import File

    path = tmp_path / "db"
    path.write_bytes(b"x" * 100)
    buffer = memoryview(bytearray(64))
    for change, changed in ((lambda: None, False), (lambda: path.write_bytes(b"y" * 100), True), (lambda: os.utime(path, ns=(1, 1)), True)):
        with File(path=str(path)).dump() as stream:
            assert stream.readinto(buffer) == 64
            change()
            while stream.readinto(buffer):
                pass
            assert bool(stream.warnings) is changed


def test_a_growing_file_gives_exit_code_3(castore: Run, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "db"
    path.write_bytes(os.urandom(1 << 25))
    ended = threading.Event()

    def touch() -> None:
        while not ended.is_set():
            os.utime(path)

    toucher = threading.Thread(target=touch)
    toucher.start()
    try:
        taken = castore("snapshot", "s", "--dump", f"db={path}", expect=3)
    finally:
        ended.set()
        toucher.join()
    assert "changed while being read" in taken.stderr


@pytest.mark.parametrize("path", ["-", "/dev/stdin"])
def test_an_empty_standard_input_is_refused(castore: Run, store: Path, path: str) -> None:
    refused = castore("snapshot", "s", "--dump", f"db={path}", input="", expect=4)
    assert "--allow-empty" in refused.stderr
    castore("log", "s", expect=6)
    castore("snapshot", "s", "--allow-empty", "--dump", f"db={path}", input="")
    assert castore("cat", "s@latest:db").stdout == ""


def test_holes_of_a_dump_stay_holes(castore: Run, store: Path, tmp_path: Path) -> None:
    path = tmp_path / "db"
    with open(path, "wb") as file:
        file.write(b"begin")
        file.seek(64 << 20)
        file.write(b"middle")
        file.truncate(128 << 20)
    content = path.read_bytes()
    castore("snapshot", "s", "--dump", f"db={path}")
    castore("restore", "s@1:db", tmp_path / "out")
    path.write_text("other")
    castore("rollback", "s", "--to", "1")
    for restored in (tmp_path / "out" / "db", path):
        assert restored.read_bytes() == content
        assert restored.stat().st_blocks * 512 < 1 << 20


@pytest.mark.parametrize("sizes", [[0], [1], [4096], [4095, 1, 4096], [5000, 3000, 10_000], [4096, 4097]])
def test_sparse_writing_keeps_every_byte(tmp_path: Path, sizes: list[int]) -> None:
    from castore.fs.sparse import write_sparse

    for first in (b"\0", b"x"):
        chunks = [(first if at % 2 else b"\0") * size for at, size in enumerate(sizes)]
        chunks.append(b"\0" * 9000 + b"y" + b"\0" * 9000)
        with open(tmp_path / "out", "wb") as file:
            assert write_sparse(file.fileno(), chunks) == sum(map(len, chunks))
        assert (tmp_path / "out").read_bytes() == b"".join(chunks)
