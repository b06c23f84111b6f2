"""Commands that only read a store can change nothing else, run nothing and connect nowhere."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys

import pytest

CREATE_RULESET = 444
supported = ctypes.CDLL(None).syscall(CREATE_RULESET, None, ctypes.c_size_t(0), 1)
pytestmark = pytest.mark.skipif(supported < 4, reason="the kernel has no Landlock of version 4")

# What a broken decoder would do: it is tried when the store has been opened.
BREAK_OUT = """
import os, socket, subprocess, sys
from castore.store import Store

def denied(action):
    try:
        action()
    except PermissionError:
        return "denied"
    except OSError as error:
        return type(error).__name__
    return "allowed"

def connect():
    with socket.socket() as one:
        one.connect(("127.0.0.1", 9))

victim = sys.argv.pop(1)
ATTEMPTS = [
    lambda: open(victim, "a"),
    lambda: os.truncate(victim, 0),
    lambda: os.unlink(victim),
    lambda: os.rename(victim, victim + "2"),
    lambda: os.symlink("x", victim + "3"),
    lambda: os.mkdir(victim + "4"),
    lambda: subprocess.run(["true"]),
    connect,
]
opened = Store.open
def broken(*args, **options):
    store = opened(*args, **options)
    found = [denied(action) for action in ATTEMPTS]
    print(" ".join(found), file=sys.stderr)
    return store
Store.open = broken
from castore.__main__ import main
main()
"""


@pytest.fixture
def stored(castore, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_text("content")
    castore("snapshot", "web", "--tree", f"t={tmp_path / 'tree'}")
    castore("snapshot", "web", "--tree", f"t={tmp_path / 'tree'}")
    (tmp_path / "victim").write_text("as it was")
    return tmp_path


def broken(stored, home, *words):
    """Run castore with a decoder that is broken; return what it could do, and the exit code."""
    done = subprocess.run(
        [sys.executable, "-c", BREAK_OUT, str(stored / "victim"), *words],
        env=dict(os.environ), cwd=home, capture_output=True, text=True, check=False, timeout=100,
    )
    assert (stored / "victim").read_text() == "as it was"
    return done.stderr.splitlines()[0].split(), done.returncode


@pytest.mark.parametrize(
    "words",
    [
        ("log",), ("show", "web@1"), ("ls", "web@1"), ("cat", "web@1:t/file"), ("diff", "web@1", "web@2"), ("find", "file"),
        ("history", "web:t/file"), ("verify", "--read-data"), ("stats",),
    ],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_broken_decoder_changes_nothing_runs_nothing_and_connects_nowhere(stored, home, words):
    assert broken(stored, home, *words) == (["denied"] * 8, 0)


def test_a_restore_changes_only_the_directory_of_its_destination(stored, home):
    (stored / "into").mkdir()
    # Names of users may be in a directory service: TCP stays allowed.
    found, code = broken(stored, home, "restore", "web@1", str(stored / "into" / "out"))
    assert (found, code) == (["denied"] * 7 + ["ConnectionRefusedError"], 0)
    assert (stored / "into" / "out" / "t" / "file").read_text() == "content"


def test_a_destination_may_be_a_link_to_a_directory(stored, castore):
    (stored / "elsewhere").mkdir()
    (stored / "links").mkdir()
    (stored / "links" / "out").symlink_to(stored / "elsewhere")
    castore("restore", "web@1", stored / "links" / "out")
    assert (stored / "elsewhere" / "t" / "file").read_text() == "content"


def test_an_identity_that_a_program_prints_is_read(stored, home, castore):
    (identity,) = (home / ".config" / "castore").glob("*.identity")
    moved = home / "moved"
    identity.rename(moved)
    environment = {"CASTORE_IDENTITY_COMMAND": f"cat {moved}"}
    assert castore("cat", "web@1:t/file", env=environment).stdout == "content"


def test_without_landlock_commands_work_unconfined(stored, home):
    """As on an old kernel: the call fails there."""
    script = "import castore.cli.confinement as c; c._CREATE_RULESET = 9999\n" + BREAK_OUT.replace("in ATTEMPTS", "in ATTEMPTS[:1]")
    done = subprocess.run(
        [sys.executable, "-c", script, str(stored / "victim"), "cat", "web@1:t/file"],
        env=dict(os.environ), cwd=home, capture_output=True, text=True, check=False, timeout=100,
    )
    assert (done.stderr, done.stdout, done.returncode) == ("allowed\n", "content", 0)
