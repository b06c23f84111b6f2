"""`castore key paper` and `key enter`: from an identity file to paper and back."""

from __future__ import annotations

import os
import pty
import re
import stat
import subprocess
import sys
import time

import pytest

from castore.crypto import Identity
from castore.crypto.identity import groups

IDENTITY = Identity(bytes(range(32)))
LINE = IDENTITY.text()


@pytest.fixture(scope="module")
def locked():
    return IDENTITY.locked_text("sesame")


def secret_of(path):
    (line,) = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return line


def test_the_commands_from_file_to_paper_and_back(castore, home, tmp_path):
    store = tmp_path / "store"
    public = castore("init", store).stdout.split()[3]
    env = {"CASTORE_STORE": str(store)}
    (identity,) = home.rglob("*.identity")
    out = castore("key", "paper", env=env).stdout
    rows = re.findall(r"^ +(?:begins|\d+ to \d+)   (.*)$", out, re.MULTILINE)
    typed = "\n".join(rows).upper()
    assert str(store) in out
    assert public in out
    assert castore("key", "enter", tmp_path / "again", input=typed).stdout.strip() == public
    assert secret_of(tmp_path / "again") == secret_of(identity)
    assert stat.S_IMODE(os.stat(tmp_path / "again").st_mode) == 0o600
    castore("key", "list", "--identity", tmp_path / "again", env=env)
    for kind in ("html", "svg", "txt"):
        sheet = tmp_path / f"sheet.{kind}"
        done = castore("key", "paper", "--out", sheet, env=env)
        assert done.stdout == ""
        assert stat.S_IMODE(os.stat(sheet).st_mode) == 0o600
        assert groups(secret_of(identity))[1][3] in sheet.read_text()
        castore("key", "paper", "--out", sheet, env=env, expect=2)
    castore("key", "paper", "--out", tmp_path / "sheet.pdf", env=env, expect=2)
    assert not (tmp_path / "sheet.pdf").exists()
    # The store may be far away.
    other = {"CASTORE_STORE": "/nowhere/store"}
    assert "/nowhere/store" in castore("key", "paper", "--identity", identity, env=other).stdout
    wrong = rows[2][::-1]
    done = castore("key", "enter", tmp_path / "wrong", input="\n".join([*rows[:2], wrong, *rows[3:]]), expect=7)
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "wrong").exists()
    castore("key", "enter", tmp_path / "again", input=typed, expect=2)


def test_a_locked_identity_is_printed_and_typed_without_its_passphrase(castore, tmp_path):
    phrase = {"CASTORE_PASSPHRASE_COMMAND": "echo sesame"}
    public = castore("key", "new", tmp_path / "locked", "--passphrase", env=phrase).stdout.strip()
    out = castore("key", "paper", "--identity", tmp_path / "locked").stdout
    assert public in out
    rows = re.findall(r"^ +(?:begins|\d+ to \d+)   (.*)$", out, re.MULTILINE)
    castore("key", "enter", tmp_path / "again", input="\n".join(rows))
    assert secret_of(tmp_path / "again") == secret_of(tmp_path / "locked")
    assert castore("key", "show", "--identity", tmp_path / "again", env=phrase).stdout.split()[0] == public


def test_on_a_terminal_it_ends_with_the_last_letter(home, tmp_path):
    terminal, theirs = pty.openpty()
    argv = [sys.executable, "-m", "castore", "key", "enter", str(tmp_path / "typed")]
    process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    seen = b""
    try:
        while b"an empty line ends it" not in seen:
            seen += os.read(terminal, 4096)
        prefix, found = groups(LINE)
        for line in (prefix, " ".join(found[:4]), " ".join(found[4:8]), " ".join(found[8:])):
            os.write(terminal, line.encode() + b"\n")
            time.sleep(0.05)
        while IDENTITY.recipient.text.encode() + b"\r\n" not in seen:  # else its end may not be written yet
            seen += os.read(terminal, 4096)
    finally:
        os.close(terminal)
        assert process.wait(timeout=30) == 0
    assert secret_of(tmp_path / "typed") == LINE


def test_what_a_sheet_prints_before_its_lines_may_be_typed_too(castore, home, tmp_path):
    castore("init", tmp_path / "store", "--identity", home / "identity")
    sheet = castore("key", "paper", "--store", tmp_path / "store", "--identity", home / "identity").stdout
    begin = next(i for i, line in enumerate(sheet.splitlines()) if line.strip().startswith("begins"))
    lines = "\n".join(sheet.splitlines()[begin : begin + 4])
    castore("key", "enter", home / "typed", input=lines)
    def line(path):
        return path.read_text().splitlines()[-1]
    assert line(home / "typed") == line(home / "identity")
    done = castore("key", "enter", home / "nowhere" / "typed", input=lines, expect=2)
    assert "there is no directory" in done.stderr
    assert not (home / "nowhere").exists()
