"""Passphrases that change, and secrets that stay in castore's own memory."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from castore.cli import identity_files
from castore.crypto import (
    Cipher,
    Identity,
    RecordSealer,
)
from castore.crypto import (
    identity as keys,
)
from castore.errors import CastoreError, IdentityError, StorageError
from castore.state import identity_file

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


@pytest.fixture
def cheap(monkeypatch):
    monkeypatch.setattr(keys, "_OPERATIONS", 1)
    monkeypatch.setattr(keys, "_MEMORY_KIB", 8)


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_at_every_moment_there_is_a_readable_identity(tmp_path, monkeypatch, cheap, call):
    identity = Identity.generate()
    path = tmp_path / "identity"
    identity_file.write_identity(str(path), identity, None)
    before = path.read_bytes()
    real = getattr(os, call)

    def failing(*args, **options):
        if call != "open" or str(path) in str(args[0]):
            raise OSError(28, "No space left on device")
        return real(*args, **options)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises(StorageError):
        identity_file.change_passphrase(str(path), identity_files.stored_passphrase, lambda: "new")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["identity"]


def test_a_link_to_an_identity_stays_one_and_a_form_that_does_not_open_is_not_written(tmp_path, cheap, monkeypatch):
    identity = Identity.generate()
    path, link = tmp_path / "identity", tmp_path / "link"
    identity_file.write_identity(str(path), identity, None)
    link.symlink_to("identity")
    identity_file.change_passphrase(str(link), identity_files.stored_passphrase, lambda: "new")
    assert link.is_symlink()
    assert Identity.parse(path.read_text(), lambda: "new").recipient == identity.recipient
    before = path.read_bytes()
    monkeypatch.setattr(identity_files, "stored_passphrase", lambda: "new")
    monkeypatch.setattr(Identity, "locked_text", lambda *_: Identity.generate().text())
    with pytest.raises(IdentityError, match="cannot be decrypted"):
        identity_file.change_passphrase(str(path), identity_files.stored_passphrase, lambda: "other")
    assert path.read_bytes() == before


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


def test_keys_are_wiped_when_they_go():
    identity = Identity(bytes(range(32)))
    sealer = RecordSealer(Cipher.AEGIS_256, bytes(range(32)), bytes(16))
    buffers = [identity._secret._data, sealer._key._data]
    assert all(buffer == bytes(range(32)) for buffer in buffers)
    del identity, sealer
    assert all(buffer == bytes(32) for buffer in buffers)


def test_a_key_of_a_passphrase_is_wiped(monkeypatch, cheap):
    wiped = []
    real = keys.wipe
    monkeypatch.setattr(keys, "wipe", lambda buffer: (real(buffer), wiped.append(bytes(keys.taken(buffer, 8) if not isinstance(buffer, bytearray) else buffer))))
    locked = Identity.generate().locked_text("sesame and more")
    Identity.parse(locked, lambda: "sesame and more")
    assert len(wiped) == 4, "the passphrase and the key, twice"
    assert not any(any(one) for one in wiped)


def test_errors_and_reprs_hold_no_secret(cheap):
    identity = Identity.generate()
    secret = bytes(identity._secret)
    assert secret.hex() not in repr([identity, identity._secret])
    assert repr(identity._secret) == "Secret(...)"
    wrong = identity.text()[:-2]
    for attempt in (lambda: Identity.parse(wrong, None), lambda: keys.check_identity(wrong)):
        with pytest.raises(CastoreError) as refused:
            attempt()
        assert wrong[20:30] not in str(refused.value)
