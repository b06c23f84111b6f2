"""No HOME, a user id without a name, a deleted working directory: defaults that make sense, or one clear error."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys

import pytest

from tests.support.checkout import ROOT

UNKNOWN = 54321
COMMANDS = [
    ["init"], ["snapshot", "s", "--tree", "t=/etc/ssl"], ["log"], ["show", "s@latest"], ["ls", "s@latest"],
    ["cat", "s@latest:t/x"], ["diff", "s@1", "s@2"], ["restore", "s@latest", "out"], ["recover"],
    ["rollback", "s", "--to", "latest"], ["guard", "s", "--", "true"], ["follow", "s"], ["revision", "s"],
    ["drill", "s"], ["pin", "s@1"], ["unpin", "s@1"], ["forget", "s@1", "--yes"], ["prune"], ["compact"], ["events"],
    ["config", "check"], ["config", "show"], ["key", "list"], ["key", "new", "id"], ["verify"], ["repair"],
    ["reindex"], ["stats"],
]  # fmt: skip


def run(arguments, *, cwd, env=None, uid=None, launcher=()):
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", **(env or {})}
    for name in ("PYTHONPATH", "VIRTUAL_ENV"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return subprocess.run(
        [*launcher, sys.executable, "-c", "from castore.cli.main import main; main()", *arguments],
        cwd=cwd, env=environment, user=uid, group=uid, extra_groups=[] if uid else None,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip


@pytest.fixture
def reachable(tmp_path, monkeypatch):
    """A directory that every user may write, as /tmp is; a skip where an unknown user cannot be."""
    if os.geteuid() != 0:
        pytest.skip("only root can be another user")
    for folder in (tmp_path, *tmp_path.parents[:3]):
        if folder.stat().st_mode & 0o777 == 0o700:  # pytest's own
            folder.chmod(0o711)
    work = tmp_path / "work"
    work.mkdir()
    work.chmod(0o1777)
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        monkeypatch.setattr(sys, "executable", python)
        monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, [str(ROOT), *sys.path])))
        monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
        with contextlib.suppress(OSError):
            if run(["ls", "--help"], cwd=work, uid=UNKNOWN).returncode == 0:
                return work
    pytest.skip("no Python runs castore for an unknown user")


@pytest.mark.parametrize("home", [None, "", "relative", "~"])
def test_an_unknown_user_without_a_home_gets_one_clear_error_and_no_directory(reachable, home):
    env = {} if home is None else {"HOME": home}
    needing = [one for one in COMMANDS if one[:2] != ["key", "new"]]
    for arguments in needing if home is None else needing[:3]:
        done = run(arguments, cwd=reachable, env=env, uid=UNKNOWN)
        assert done.returncode in {2, 6, 7}, (arguments, done.stderr)
        assert done.stderr.count("\n") == 1, done.stderr
        assert "mistake" not in done.stderr
        if done.returncode == 2 and "castore.toml" not in done.stderr:
            assert f"no home directory is known for the user id {UNKNOWN}: set HOME" in done.stderr, arguments
        assert os.listdir(reachable) == []


def test_an_unknown_user_with_a_home_works(reachable):
    for arguments in (["snapshot", "s", "--tree", "t=."], ["log"], ["restore", "s@latest", "out"], ["verify"]):
        done = run(arguments, cwd=reachable, env={"HOME": str(reachable)}, uid=UNKNOWN)
        assert done.returncode in {0, 3}, done.stderr


def test_a_known_user_without_home_has_that_of_the_user_database(tmp_path):
    done = run(["log"], cwd=tmp_path, env={"XDG_STATE_HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)})
    assert "~" not in os.listdir(tmp_path)
    assert "no home" not in done.stderr


def test_tildes_that_no_shell_has_replaced_are_replaced(castore, home):
    castore("init", "--store=~/s")
    (home / "d").mkdir()
    castore("snapshot", "x", "--tree", "t=~/d", env={"CASTORE_STORE": "~/s"})
    castore("restore", "--store=~/s", "x@latest:t", "~/out")
    castore("init", "~/second", "--identity=~/own.identity")
    castore("key", "new", "~/new.identity")
    assert {"s", "out", "second", "own.identity", "new.identity"} <= set(os.listdir(home))
    assert "~" not in os.listdir(home)


def test_every_command_works_or_says_so_in_a_deleted_directory(castore, home, tmp_path):
    castore("init")
    (home / "d").mkdir()
    castore("snapshot", "s", "--tree", f"t={home}/d")
    castore("snapshot", "s", "--tree", f"t={home}/d")
    env = {name: value for name, value in os.environ.items() if name.startswith(("XDG_", "HOME"))}
    launcher = ("sh", "-c", 'mkdir "$0" && cd "$0" && rmdir "$0" && exec "$@"', str(tmp_path / "deleted"))
    for arguments in COMMANDS[1:]:
        done = run(arguments, cwd=tmp_path, env=env, launcher=launcher)
        assert "mistake" not in done.stderr, (arguments, done.stderr)
        assert done.stderr.count("\n") <= 4, (arguments, done.stderr)
        if arguments[0] in {"log", "show", "ls", "diff", "prune", "compact", "stats", "verify", "snapshot", "drill"}:
            assert done.returncode == 0, (arguments, done.stderr)
        if "out" in arguments or "id" in arguments:
            assert done.returncode == 2
            assert "working directory" in done.stderr, arguments
