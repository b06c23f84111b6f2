"""Passphrases that change, and secrets that stay in castore's own memory."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

OLD, NEW = {"CASTORE_PASSPHRASE_COMMAND": "echo old"}, {"CASTORE_NEW_PASSPHRASE_COMMAND": "echo new"}


def secret_of(path):
    (line,) = [line for line in Path(path).read_text().splitlines() if not line.startswith("#")]
    return line


def test_a_passphrase_is_set_changed_and_removed(castore, tmp_path):
    path = tmp_path / "identity"
    public = castore("key", "new", path).stdout.strip()
    plain, notes = secret_of(path), path.read_text().splitlines()[:-1]
    castore("key", "passphrase", path, env={"CASTORE_NEW_PASSPHRASE_COMMAND": "echo old"})
    assert secret_of(path).startswith("castore-locked-")
    assert castore("key", "show", "--identity", path, env=OLD).stdout.split()[0] == public
    first = secret_of(path)
    done = castore("key", "passphrase", "--identity", path, env={**OLD, **NEW})
    assert public in done.stdout
    assert secret_of(path) != first
    castore("key", "show", "--identity", path, env=OLD, expect=7)
    fresh = {"CASTORE_PASSPHRASE_COMMAND": "echo new"}
    assert castore("key", "show", "--identity", path, env=fresh).stdout.split()[0] == public
    castore("key", "passphrase", path, "--remove", env=fresh)
    assert secret_of(path) == plain
    assert path.read_text().splitlines()[:-1] == notes
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert os.listdir(tmp_path) == ["home", "identity"] or set(os.listdir(tmp_path)) == {"home", "identity"}


def test_what_fails_leaves_the_identity_as_it_was(castore, tmp_path):
    path = tmp_path / "identity"
    castore("key", "new", path, "--passphrase", env=OLD)
    before = path.read_bytes()
    wrong = {"CASTORE_PASSPHRASE_COMMAND": "echo wrong"}
    castore("key", "passphrase", path, env={**wrong, **NEW}, expect=7)
    castore("key", "passphrase", path, env={**OLD, "CASTORE_NEW_PASSPHRASE_COMMAND": "true"}, expect=7)
    castore("key", "passphrase", path, env={**OLD, "CASTORE_NEW_PASSPHRASE_COMMAND": "false"}, expect=7)
    castore("key", "passphrase", tmp_path / "none", env=NEW, expect=7)
    assert path.read_bytes() == before


def test_each_guess_at_a_passphrase_takes_three_passes_over_256_mib():
    # In a Python of its own: those of the tests derive keys cheaply.
    script = (
        "from castore.crypto import identity\n"
        "text = identity.Identity.generate().locked_text('open')\n"
        "lock = identity.read('castore-locked-', text)[:identity._LOCK.size]\n"
        "print(*identity._LOCK.unpack(lock)[1:])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "3 262144\n"


# Memory

DUMPABLE = "import ctypes; print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"


def test_the_command_line_is_closed_to_others_and_what_it_runs_is_not(castore, tmp_path):
    asked = f"{sys.executable} -c '{DUMPABLE}'"
    castore("init", tmp_path / "store")
    env = {"CASTORE_STORE": str(tmp_path / "store")}
    limits = resource.getrlimit(resource.RLIMIT_CORE)
    core = f"{sys.executable} -c 'import resource; print(resource.getrlimit(resource.RLIMIT_CORE))'"
    castore("snapshot", "s", "--exec", f"d={asked}", "--exec", f"c={core}", env=env)
    assert castore("cat", "s@1:d", env=env).stdout == "1\n"
    assert castore("cat", "s@1:c", env=env).stdout == f"{limits}\n"
    script = (
        "import sys; sys.argv = ['castore', 'key', 'show', '--identity', '/none']\n"
        "from castore.cli import main\n"
        "try: main.main()\n"
        f"except SystemExit: {DUMPABLE}"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_no_core_is_left():
    script = (
        "import os, resource\n"
        "hard = resource.getrlimit(resource.RLIMIT_CORE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))\n"
        "from castore.cli.hardening import close_memory\n"
        "close_memory()\n"
        "os.abort()"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    _, status = os.waitpid(process.pid, 0)
    process.returncode = 0
    assert os.WIFSIGNALED(status)
    assert not os.WCOREDUMP(status)


def test_an_identity_in_the_environment_is_not_passed_on_and_a_name_is(castore, tmp_path):
    path = tmp_path / "identity"
    castore("init", tmp_path / "store", "--identity", path)
    store = {"CASTORE_STORE": str(tmp_path / "store")}
    shown = "sh -c 'echo [$CASTORE_IDENTITY] [$CASTORE_PASSPHRASE_COMMAND]'"
    env = {**store, "CASTORE_IDENTITY": secret_of(path), "CASTORE_PASSPHRASE_COMMAND": "ask"}
    castore("snapshot", "s", "--exec", f"d={shown}", env=env)
    assert castore("cat", "s@1:d", env=env).stdout == "[] [ask]\n", "castore itself has it still"
    castore("snapshot", "s", "--exec", f"d={shown}", env={**env, "CASTORE_IDENTITY": secret_of(path).upper()})
    assert castore("cat", "s@2:d", env=env).stdout == "[] [ask]\n"
    castore("snapshot", "s", "--exec", f"d={shown}", env={**env, "CASTORE_IDENTITY": str(path)})
    assert castore("cat", "s@3:d", env=env).stdout == f"[{path}] [ask]\n"
