"""Where things are on this machine, and where an identity comes from."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
import sys
import time

import pytest

from castore.cli import environment, identity_files
from castore.crypto.identity import Identity
from castore.errors import ConfigError, IdentityError, NotFoundError, UsageError
from castore.services.config import load
from castore.state import directories


@pytest.fixture(autouse=True)
def clean(monkeypatch, tmp_path):
    """A machine on which nothing is set, and a home of its own."""
    for name in list(os.environ):
        if name.startswith(("CASTORE_", "XDG_")):
            monkeypatch.delenv(name)
    home = tmp_path / "home"
    work = tmp_path / "work"
    home.mkdir()
    work.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    monkeypatch.setattr(environment, "_SYSTEM_FILE", str(tmp_path / "etc" / "castore.toml"))
    return home


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return str(path)


def test_the_configuration_is_the_first_that_is_there(monkeypatch, tmp_path, clean):
    assert environment.find_config(None) is None
    system = write(tmp_path / "etc" / "castore.toml")
    assert environment.find_config(None) == system
    own = write(clean / ".config" / "castore" / "castore.toml")
    assert environment.find_config(None) == own
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert environment.find_config(None) == system
    own = write(tmp_path / "xdg" / "castore" / "castore.toml")
    assert environment.find_config(None) == own
    here = write(tmp_path / "work" / "castore.toml")
    assert environment.find_config(None) == here
    monkeypatch.setenv("CASTORE_CONFIG", "")
    assert environment.find_config(None) == here
    monkeypatch.setenv("CASTORE_CONFIG", "~/asked.toml")
    assert environment.find_config(None) == f"{clean}/asked.toml"
    assert environment.find_config("option.toml") == f"{tmp_path}/work/option.toml"


def test_a_strangers_configuration_in_the_working_directory_is_refused(tmp_path):
    here = write(tmp_path / "work" / "castore.toml")
    os.chmod(here, 0o666)
    assert environment.find_config(None) == here
    with pytest.raises(ConfigError, match=f"not read: other users may write.*chmod go-w {here}"):
        load(here)
    os.chmod(here, 0o644)
    if os.geteuid() == 0:
        os.chown(here, 12345, 12345)
        with pytest.raises(ConfigError, match=f"belongs to the user id 12345, .*chown root {here}"):
            load(here)


def test_folders_follow_the_user_and_xdg(monkeypatch, clean):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert environment.default_store() == f"{clean}/.local/share/castore"
    assert directories.machine_paths().state == f"{clean}/.local/state/castore"
    assert directories.machine_paths().cache == f"{clean}/.cache/castore"
    assert directories.identity_path(b"\x01" * 16) == f"{clean}/.config/castore/{'01' * 16}.identity"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert environment.default_store() == f"{clean}/.local/share/castore"
    assert directories.machine_paths().state == "/var/lib/castore"
    assert directories.machine_paths().cache == "/var/cache/castore"
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", f"/x/{name.lower()}")
    assert environment.default_store() == "/x/data/castore"
    assert directories.machine_paths().state == "/x/state/castore"
    assert directories.machine_paths().cache == "/x/cache/castore"
    assert directories.identity_path(b"\x01" * 16) == f"/x/config/castore/{'01' * 16}.identity"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert directories.machine_paths().cache == "/var/cache/castore"


def test_variables(monkeypatch):
    assert not environment.debugging()
    assert environment.store_from_environment() is None
    monkeypatch.setenv("CASTORE_DEBUG", "1")
    monkeypatch.setenv("CASTORE_STORE", "/s")
    assert environment.debugging()
    assert environment.store_from_environment() == "/s"


def get(option=None, default="/no/such"):
    return identity_files.identity_provider(option, lambda: default)()


def test_the_identity_is_the_first_that_is_given(monkeypatch, tmp_path):
    made = [Identity.generate() for _ in range(5)]
    files = [
        write(tmp_path / str(n), f"# an identity\n{one.text()}\n") for n, one in enumerate(made)
    ]
    recipients = [one.recipient for one in made]
    assert get(default=files[0]).recipient == recipients[0]
    monkeypatch.setenv("CASTORE_IDENTITY_COMMAND", shlex.join(["cat", files[1]]))
    assert get(default=files[0]).recipient == recipients[1]
    monkeypatch.setenv("CASTORE_IDENTITY", files[2])
    assert get(default=files[0]).recipient == recipients[2]
    monkeypatch.setenv("CASTORE_IDENTITY", made[3].text())
    assert get(default=files[0]).recipient == recipients[3]
    assert get(files[4], default=files[0]).recipient == recipients[4]


def test_nothing_is_read_before_the_identity_is_needed(monkeypatch):
    monkeypatch.setenv("CASTORE_IDENTITY_COMMAND", "false")
    identity_files.identity_provider(None, lambda: pytest.fail("asked too early"))


def test_without_an_identity_the_ways_to_give_one_are_named():
    with pytest.raises(IdentityError) as caught:
        get()
    for way in ("--identity", "CASTORE_IDENTITY ", "CASTORE_IDENTITY_COMMAND", "/no/such"):
        assert way in str(caught.value)

    def no_store():
        raise NotFoundError("no store")

    with pytest.raises(IdentityError, match="--identity"):
        identity_files.identity_provider(None, no_store)()


def test_an_identity_that_cannot_be_had_is_an_error_that_names_its_source(monkeypatch, tmp_path):
    with pytest.raises(IdentityError, match="cannot read the identity /no/such: No such file"):
        get("/no/such")
    with pytest.raises(IdentityError, match="junk: there is no identity in this text"):
        get(write(tmp_path / "junk", "junk"))
    monkeypatch.setenv("CASTORE_IDENTITY", "castore-identity-abc")
    with pytest.raises(IdentityError, match="CASTORE_IDENTITY: the identity is mistyped"):
        get()
    monkeypatch.delenv("CASTORE_IDENTITY")
    for command, match in [
        ("false", "CASTORE_IDENTITY_COMMAND: false failed: it exited with status 1"),
        ("no-such-program", "CASTORE_IDENTITY_COMMAND: there is no program"),
        ("printf '\\377'", "CASTORE_IDENTITY_COMMAND: what it prints is not text"),
        ("echo junk", "what CASTORE_IDENTITY_COMMAND prints: there is no identity"),
    ]:
        monkeypatch.setenv("CASTORE_IDENTITY_COMMAND", command)
        with pytest.raises(IdentityError, match=match):
            get()
    monkeypatch.setenv("CASTORE_IDENTITY_COMMAND", "cat 'x")
    with pytest.raises(UsageError, match="cannot be split"):
        get()


def test_a_locked_identity_takes_its_passphrase_from_a_program(monkeypatch, tmp_path):
    identity = Identity.generate()
    path = write(tmp_path / "locked", identity.locked_text("open sesame "))
    with pytest.raises(IdentityError, match="locked: it is locked with a passphrase: set CASTORE_PASS"):
        get(path)
    monkeypatch.setenv("CASTORE_PASSPHRASE_COMMAND", "echo 'open sesame '")
    assert get(path).recipient == identity.recipient
    monkeypatch.setenv("CASTORE_PASSPHRASE_COMMAND", "echo 'open sesame'")
    with pytest.raises(IdentityError, match="locked: "):
        get(path)
    monkeypatch.setenv("CASTORE_PASSPHRASE_COMMAND", "true")
    with pytest.raises(IdentityError, match="printed no passphrase"):
        get(path)


def test_on_a_terminal_identity_and_passphrase_are_asked_for_and_not_shown():
    identity = Identity.generate()
    script = (
        "import fcntl, termios\n"
        "fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n"
        "from castore.cli import identity_files\n"
        "print('is', identity_files.identity_provider(None, lambda: '/no/such')().recipient.text)"
    )
    terminal, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    seen = b""

    def wait_for(what):
        nonlocal seen
        while what not in seen:
            seen += os.read(terminal, 4096)
        time.sleep(0.2)

    try:
        wait_for(b"castore-locked-...): ")
        os.write(terminal, identity.locked_text("sesame").encode() + b"\n")
        wait_for(b"Passphrase of the identity: ")
        os.write(terminal, b"sesame\n")
        wait_for(identity.recipient.text.encode())
    finally:
        os.close(terminal)
        process.wait(timeout=30)
    assert b"sesame" not in seen
