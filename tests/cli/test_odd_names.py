"""File names, arguments and paths with bytes that are not UTF-8, in an ASCII locale: in every command."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from castore.model.generation import Details, Origin, decode_details, encode

Run = Callable[..., subprocess.CompletedProcess]

NAMES = [b"caf\xe9", "日本é".encode(), b"\xff\xfe", b"new\nline", b"esc\x1b[31m", b"tab\t\\x"]


class Odd:
    """A service whose paths and names are odd, and castore in the locale C with a standard output in ASCII."""

    def __init__(self, castore: Run, tmp_path: Path) -> None:
        self._castore = castore
        self.root = os.fsencode(tmp_path) + b"/r\xe9p\xff \xc3\xa9"
        self.top, self.dump, self.store = self.root + b"/tr\xe9e", self.root + b"/d\xfcmp", self.root + b"/st\xf6re"
        os.mkdir(self.root)
        for name in NAMES:
            os.makedirs(self.top + b"/d" + name)
            for inner in NAMES:
                self.write(self.top + b"/d" + name + b"/" + inner, inner)
        os.symlink(b"targ\xe9t", self.top + b"/link\xff")
        self.write(self.dump, b"first")

    @staticmethod
    def read(path: bytes) -> bytes:
        with open(path, "rb") as file:
            return file.read()

    @staticmethod
    def write(path: bytes, content: bytes) -> None:
        with open(path, "wb") as file:
            file.write(content)

    def run(self, *args: str | bytes, expect: int = 0, plain: bool = True) -> str:
        """Run a command, and with --json; return what the first printed."""
        env = {
            "LC_ALL": "C", "LANG": "C", "PYTHONIOENCODING": "ascii",
            "CASTORE_STORE": os.fsdecode(self.store), "HOME": os.fsdecode(self.root),
        }
        done = self._castore(*args, expect=expect, env=env)
        shown = done.stdout + done.stderr
        for word in ("mistake", "Traceback", "codec", "Unicode", "\\udc"):
            assert word not in shown, (args, shown)
        if plain:
            assert "\x1b" not in shown
        return shown

    def json(self, *args: str | bytes, expect: int = 0):
        return json.loads(self.run(*args, "--json", expect=expect).split("\ncastore: ")[0])


@pytest.fixture
def odd(castore: Run, tmp_path: Path) -> Odd:
    made = Odd(castore, tmp_path)
    made.run("init", made.store)
    made.run("snapshot", "s", b"--tree", b"t=" + made.top, b"--dump", b"d=" + made.dump, "--revision", "r1")
    return made


def test_a_snapshot_with_odd_paths_rolls_back(odd: Odd) -> None:
    odd.write(odd.dump, b"second")
    odd.write(odd.top + b"/d\xff\xfe/caf\xe9", b"changed")
    odd.run("snapshot", "s", b"--tree", b"t=" + odd.top, b"--dump", b"d=" + odd.dump, "--revision", "r2")
    assert "d\\xff\\xfe/caf\\xe9" in odd.run("diff", "s@1", "s@2")
    assert "\\xff" in odd.run("rollback", "s", "--to", "r1", "--dry-run")
    odd.run("rollback", "s", "--to", "r1")
    assert odd.read(odd.dump) == b"first"
    assert odd.read(odd.top + b"/d\xff\xfe/caf\xe9") == b"caf\xe9"
    odd.run("rollback", "s", "--undo")
    assert odd.read(odd.dump) == b"second"
    odd.run("drill", "s")
    odd.run("prune", "--keep-last", "1")


def test_programs_with_odd_arguments_dump_and_restore(odd: Odd) -> None:
    program = b"d=cp /dev/stdin '" + odd.dump + b"'"
    odd.run("snapshot", "p", b"--exec", b"d=cat '" + odd.dump + b"'", "--revision", "r1")
    odd.write(odd.dump, b"second")
    odd.run("rollback", "p", "--to", "1", b"--restore", program)
    assert odd.read(odd.dump) == b"first"
    failed = odd.run("snapshot", "p", b"--exec", b"d=sh -c 'printf \"\\377\" >&2; exit 1'", expect=4)
    assert "\\xff" in failed
    assert "\\xff" in odd.run("events", "p")
    assert odd.json("events", "p")[0]["ok"] is False


def test_stored_odd_names_are_shown_escaped(odd: Odd) -> None:
    odd.write(odd.top + b"/d\xff\xfe/more", b"1")
    odd.run("snapshot", "s", b"--tree", b"t=" + odd.top, b"--dump", b"d=" + odd.dump)
    for args in (
        ("log", "s"), ("show", "s@1"), ("ls", "-R", "s@1:t"), ("ls", b"s@1:t/dcaf\xe9"), ("find", "*"), ("find", b"*\xe9*"),
        ("find", odd.top + b"/d*"), ("history", b"s:t/dcaf\xe9/caf\xe9"), ("history", "s:t"), ("show", b"s@1:t/d\xff\xfe"), ("stats",),
        ("diff", "s@1", "s@2"), ("verify", "--read-data"), ("repair",), ("reindex",), ("events",), ("forget", "s@1", "--yes"), ("log",),
    ):
        odd.run(*args)
        if args[0] not in {"forget", "repair", "reindex"}:
            odd.json(*args)
    odd.run("cat", b"s@2:t/desc\x1b[31m/caf\xe9", plain=False)
    assert "\\u65e5" in odd.run("ls", "s@2:t")


def test_odd_destinations_are_restored_into(odd: Odd) -> None:
    odd.run("restore", "s@1", odd.root + b"/out\xff")
    assert "is not empty" in odd.run("restore", "s@1", odd.root + b"/out\xff", expect=2)
    odd.json("restore", b"s@1:t/dcaf\xe9/caf\xe9", odd.root + b"/out2\xff")
    os.mkdir(odd.root + b"/in\xff")
    odd.write(odd.root + b"/in\xff/x\xff", b"1")
    odd.json("restore", "--in-place", "--dry-run", "s@1:t", odd.root + b"/in\xff")
    assert "x\\xff" in odd.run("restore", "--in-place", "--dry-run", "s@1:t", odd.root + b"/in\xff")
    odd.run("restore", "--in-place", "s@1:t", odd.root + b"/in\xff", expect=2)
    odd.run("restore", "--in-place", "--yes", "s@1:t", odd.root + b"/in\xff")
    odd.run("recover", odd.root + b"/in\xff")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ((b"s\xff",), 2), (("log", b"s\xff"), 2), (("show", b"s@\xff"), 6), (("ls", b"s@1:\xff"), 6), (("ls", b"s@1:t/\xff"), 6),
        (("find", "x", b"\xff"), 2), (("history", b"s:t/\xff"), 6), (("rollback", "s", "--to", b"\xff"), 6), (("forget", b"\xff@1", "--yes"), 2),
        (("snapshot", "s", "--tree", b"t\xff=/"), 2), (("snapshot", "s", "--tree", b"t=/no\xff"), 2), (("snapshot", "s", "--dump", b"t=/no\xff"), 2),
        (("snapshot", "s", "--exclude", b"\xff", "--tree", "t=/proc/self/fdinfo"), 2), (("log", "--store", b"/no\xff"), 6),
        (("log", "--config", b"/no\xff"), 2), (("prune", b"\xff"), 6), (("pin", "s@1", "--note", b"\xff"), 2), (("log", b"--\xff"), 2),
        (("key", "paper", "--out", b"/no\xff"), 2), (("log", "--host", b"\xff", "s"), 6), (("recover", b"\xff"), 2), (("drill", b"s@\xff"), 6),
    ],
)  # fmt: skip
def test_odd_arguments_are_named_in_one_message(odd: Odd, args: tuple[str | bytes, ...], code: int) -> None:
    shown = odd.json(*args, expect=code)
    assert shown["error"]["code"] == code
    assert "internal" not in shown["error"]["kind"]


def test_odd_configurations_are_named(odd: Odd, tmp_path: Path) -> None:
    config = tmp_path / "castore.toml"
    config.write_bytes(b'# \xff\nstore = "/t"\n')
    assert "line 1 is not valid UTF-8" in odd.run("config", "check", "--config", str(config), expect=2)
    odd.run("config", "init", odd.root + b"/new\xff.toml")
    config.write_text(f'[service.c]\nrevision = {{ link = "{tmp_path}/link" }}\n[service.c.parts.t]\nengine = "tree"\npath = "~/é"\n')
    os.symlink(b"r\xff", tmp_path / "link")
    assert "not UTF-8" in odd.run("snapshot", "c", "--config", str(config), expect=2)
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("é")
    os.mkdir(odd.root + "/é".encode())
    odd.write(odd.root + "/é/f".encode(), b"1")
    odd.run("snapshot", "c", "--config", str(config))
    assert "\\xe9" in odd.run("log", "c", "--config", str(config))
    odd.run("config", "show", "--config", str(config))
    odd.run("guard", "--config", str(config), "c", "--", b"false", b"\xff", expect=9)
    odd.run("guard", "--config", str(config), "c", "--", b"/no\xff", expect=9)


def test_what_cannot_be_text_is_recorded_as_bytes() -> None:
    odd = os.fsdecode(b"/a\xff")
    origin = Origin(dump=("cat", odd), restore=("é",), engine="file", settings={"path": odd, "n": 1, "l": [odd]})
    details = Details({"p": origin}, (("p", b"\xff", f"about {odd}"),))
    found = decode_details(encode(details))
    assert found.origins["p"] == origin
    assert found.warnings == (("p", b"\xff", "about /a\\xff"),)
