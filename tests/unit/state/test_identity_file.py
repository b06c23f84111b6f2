"""Identity files are replaced in one step: at every moment there is a readable one."""

from __future__ import annotations

import os

import pytest

from castore.cli import identity_files
from castore.crypto import (
    Identity,
)
from castore.errors import IdentityError, StorageError
from castore.state import identity_file


@pytest.mark.parametrize("call", ["open", "write", "fsync", "rename"])
def test_at_every_moment_there_is_a_readable_identity(tmp_path, monkeypatch, call):
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


def test_a_link_to_an_identity_stays_one_and_a_form_that_does_not_open_is_not_written(tmp_path, monkeypatch):
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
