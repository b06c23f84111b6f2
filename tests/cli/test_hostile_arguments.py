"""Hostile arguments: usage errors, never a mistake in castore."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

Run = Callable[..., subprocess.CompletedProcess]


@pytest.mark.parametrize("every", ["", pytest.param("yes", marks=pytest.mark.slow)])
def test_no_argument_is_a_mistake_in_castore(home: Path, castore: Run, tmp_path: Path, monkeypatch, every: str) -> None:
    monkeypatch.setenv("CASTORE_TEST_ALL_ARGUMENTS", every)
    work = tmp_path / "work"
    (work / "tree").mkdir(parents=True)
    (work / "tree/a").write_text("a")
    (home / "castore.toml").write_text(f'store = "{work}/store"\n[service.s.parts.t]\nengine = "tree"\npath = "{work}/tree"\n')
    monkeypatch.setenv("CASTORE_CONFIG", str(home / "castore.toml"))
    castore("init", work / "store")
    castore("snapshot", "s", "--tree", f"t={work}/tree", "--exec", "d=echo x")
    program = [sys.executable, "-m", "tests.support.hostile_arguments"]
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run(program, cwd=work, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout[done.stdout.index("[") :]) == []


def test_byte_order_marks_are_accepted(home: Path, castore: Run, tmp_path: Path) -> None:
    mark = "\ufeff".encode()
    (tmp_path / "dump").write_text("x")
    text = f'store = "{tmp_path}/store"\r\n[service.s.parts.d]\r\nengine = "file"\r\npath = "{tmp_path}/dump"\r\n'
    (home / "castore.toml").write_bytes(mark + text.encode())
    castore("init", tmp_path / "store", "--identity", tmp_path / "identity")
    castore("snapshot", "s")
    plain = (tmp_path / "identity").read_bytes()
    line = next(one for one in plain.splitlines() if not one.startswith(b"#"))
    for content in (mark + plain, mark + line, mark + b"# a comment\r\n" + line + b"\r\n"):
        (tmp_path / "marked").write_bytes(content)
        assert castore("cat", "s@1:d", "--identity", tmp_path / "marked").stdout == "x"
    assert castore("cat", "s@1:d", env={"CASTORE_IDENTITY": (mark + line).decode()}).stdout == "x"
    rescue = ROOT / "tools/rescue.py"
    command = [sys.executable, rescue, tmp_path / "store", "--identity", tmp_path / "marked"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_castore_toml_with_hostile_values_is_a_usage_error(home: Path, castore: Run, tmp_path: Path) -> None:
    castore("init", tmp_path / "store")
    part = '[service.s.parts.d]\nengine = "file"\npath = "/x"\n'
    for text in (
        part.replace("/x", "/a\\u0000b"), part + "timeout = nan\n", part + "timeout = -1e400\n", part + f"timeout = {'9' * 400}\n",
        f"[service.s]\nhealth-timeout = nan\n{part}", f"[service.s]\nkeep = {{ last = {'9' * 30} }}\n{part}",
        f"[service.s]\nkeep = {{ within = '{'9' * 30}d' }}\n{part}", '[service."a\\u0000b"]\n', 'store = "a\\u0000b"\n' + part,
        f"[service.s]\nstop = ['a\\u0000b']\n{part}".replace("'", '"'), "\udcff",
    ):
        (home / "castore.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
        for command in (("config", "check"), ("snapshot", "s")):
            done = castore(*command, "--store", tmp_path / "store", expect=2)
            assert "mistake in castore" not in done.stderr
