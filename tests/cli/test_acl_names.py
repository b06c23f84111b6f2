"""Access control lists are restored for the users and groups of the same names, as owners are."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from castore.fs.acl import ACCESS_ACL
from tests.support.stores import Sandbox

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="other users' files need root")


SOURCE = {"alice": 41001, "bob": 41002, "carol": 41003}
SWAPPED = {"alice": 41002, "bob": 41001}
WITHOUT_BOB = {"alice": 41002, "mallory": 41001}
ONE = {"alice": 41009, "bob": 41009}


class Machine:
    """Runs castore where /etc/passwd and /etc/group have these users, each with a group of the same name."""

    def __init__(self, folder, sandbox, users):
        self.folder = folder
        folder.mkdir()
        identity = folder / "identity"
        identity.write_text(sandbox.identity.text() + "\n")
        identity.chmod(0o600)
        (folder / "castore.toml").write_text("")
        lines = [f"{name}:x:{number}:{number}::/:/bin/sh\n" for name, number in users.items()]
        (folder / "passwd").write_text("root:x:0:0:root:/root:/bin/sh\n" + "".join(lines))
        (folder / "group").write_text("root:x:0:\n" + "".join(f"{name}:x:{number}:\n" for name, number in users.items()))
        self.environment = os.environ | {
            "CASTORE_STORE": str(sandbox.store),
            "CASTORE_IDENTITY": str(identity),
            "XDG_STATE_HOME": str(folder / "state"),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "CASTORE_CONFIG": str(folder / "castore.toml"),
        }

    def run(self, *command, expect=0):
        users = 'mount --bind "$0/passwd" /etc/passwd && mount --bind "$0/group" /etc/group && exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", users, self.folder, *command],
            check=False, capture_output=True, text=True, env=self.environment,
        )
        assert done.returncode == expect, done.stderr
        return done.stdout + done.stderr

    def castore(self, *arguments, expect=0):
        return self.run(sys.executable, "-m", "castore", *arguments, expect=expect)

    def acl(self, path):
        """Return the named entries that getfacl shows, without the comments."""
        shown = self.run("getfacl", "--omit-header", "--absolute-names", path).splitlines()
        return [line.partition("\t")[0] for line in shown if line and "::" not in line]


@pytest.fixture
def sandbox(tmp_path):
    return Sandbox(tmp_path / "sandbox")


@pytest.fixture
def source(tmp_path, sandbox):
    """A machine, and a tree on it."""
    top = tmp_path / "live"
    (top / "d").mkdir(parents=True)
    (top / "f").write_text("secret")
    (top / "plain").write_text("p")
    (top / "d" / "in").write_text("i")
    machine = Machine(tmp_path / "one", sandbox, SOURCE)
    machine.run("setfacl", "-m", "u:alice:rw,u:bob:r,u:41077:r,g:alice:r,g:carol:rw", top / "f")
    machine.run("setfacl", "-m", "u:alice:rwx,d:u:alice:rx,d:g:bob:r", top / "d")
    machine.run("setfacl", "-m", "u:alice:x", top)
    machine.castore("snapshot", "s", "--tree", f"t={top}")
    return machine


MAPPED = ["user:alice:rw-", "user:41077:r--", "group:alice:r--", "group:41003:rw-"]


def test_a_list_is_restored_for_the_users_of_the_same_names(tmp_path, sandbox, source):
    other = Machine(tmp_path / "two", sandbox, SWAPPED)
    out = tmp_path / "out"
    other.castore("restore", "s@1:t", out)
    assert other.acl(out / "f") == ["user:bob:r--", *MAPPED]
    assert other.acl(out / "d") == ["user:alice:rwx", "default:user:alice:r-x", "default:group:bob:r--"]
    assert other.acl(out) == ["user:alice:--x"]
    assert other.acl(out / "d" / "in") == []


def test_numbers_are_kept_where_asked_for(tmp_path, sandbox, source):
    other = Machine(tmp_path / "two", sandbox, WITHOUT_BOB)
    out = tmp_path / "out"
    other.castore("restore", "--numeric-ids", "s@1:t", out)
    for path in ("f", "d", "."):
        for key in (ACCESS_ACL, "system.posix_acl_default"):
            if key in os.listxattr(tmp_path / "live" / path):
                assert os.getxattr(out / path, key) == os.getxattr(tmp_path / "live" / path, key)


def test_a_number_without_a_name_here_gets_nothing_from_a_user_that_exists_here(tmp_path, sandbox, source):
    """Bob is unknown here, and Bob's number is Alice's: what she gets is what she had."""
    other = Machine(tmp_path / "two", sandbox, WITHOUT_BOB)
    out = tmp_path / "out"
    said = other.castore("restore", "s@1:t", out, expect=3)
    assert "the stored users 41001, 41002 are all 41002 here, which gets the permissions rw-" in said
    assert other.acl(out / "f") == MAPPED


def test_two_names_of_one_number_get_what_both_had(tmp_path, sandbox, source):
    other = Machine(tmp_path / "two", sandbox, ONE)
    out = tmp_path / "out"
    assert "41001, 41002 are all 41009 here" in other.castore("restore", "s@1:t", out, expect=3)
    assert "user:alice:r--" in other.acl(out / "f")
    # setfacl refuses to change a list with an id twice.
    other.run("setfacl", "-m", "u:root:r", out / "f")


def test_in_place_compares_the_names_of_lists(tmp_path, sandbox, source):
    other = Machine(tmp_path / "two", sandbox, SWAPPED)
    live = tmp_path / "live"
    other.castore("restore", "--in-place", "--yes", "s@1:t", live)
    assert "user:bob:r--" in other.acl(live / "f")
    assert "user:alice:rw-" in other.acl(live / "f")
    before = [(path, os.stat(live / path).st_ctime_ns) for path in ("f", "d", ".")]
    assert " 0 steps" in other.castore("restore", "--in-place", "--yes", "s@1:t", live)
    assert [(path, os.stat(live / path).st_ctime_ns) for path in ("f", "d", ".")] == before
    other.run("setfacl", "-x", "u:alice", live / "f")
    other.castore("restore", "--in-place", "--yes", "s@1:t", live)
    assert "user:alice:rw-" in other.acl(live / "f")
    other.run("setfacl", "-x", "u:alice", live / "f")
    other.castore("restore", "--in-place", "--yes", "s@1:t/f", live / "f")
    assert "user:alice:rw-" in other.acl(live / "f")


def test_a_user_whose_name_is_not_text_is_a_number(tmp_path, sandbox):
    machine = Machine(tmp_path / "one", sandbox, {})
    with open(machine.folder / "passwd", "ab") as file:
        file.write(b"b\xf6b:x:41002:41002::/:/bin/sh\n")
    (tmp_path / "f").write_text("")
    machine.run("setfacl", "-m", "u:41002:r", tmp_path / "f")
    os.chown(tmp_path / "f", 41002, 41002)
    machine.castore("snapshot", "s", "--tree", f"t={tmp_path}", "--exclude", "/sandbox", "--exclude", "/one")
    machine.castore("restore", "s@1:t/f", tmp_path / "out")
    assert (tmp_path / "out" / "f").stat().st_uid == 41002
