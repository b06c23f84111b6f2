"""Files that decide what castore does, or hold a secret: what another user could have written is not read."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

import pytest

from castore.engines.password import Secret
from castore.errors import ConfigError, UntrustedPathError
from castore.fs.trusted import UntrustedFileError, read_trusted
from castore.services.config import load

USER = 12345


root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a" / "b" / "secret"
    path.parent.mkdir(parents=True, mode=0o755)
    path.write_text("word\n")
    return path


def test_a_file_that_only_its_owner_can_write_is_read(file: Path):
    assert read_trusted(str(file)) == b"word\n"
    (file.parent / "link").symlink_to(file)
    assert read_trusted(str(file.parent / "link")) == b"word\n"
    with pytest.raises(UntrustedFileError, match="more than 3 bytes"):
        read_trusted(str(file), most=3)


@pytest.mark.parametrize("mode", [0o602, 0o620, 0o666])
def test_a_file_that_others_may_write_is_not_read(file: Path, mode: int):
    file.chmod(mode)
    with pytest.raises(UntrustedFileError, match=f"chmod go-w {file}$"):
        read_trusted(str(file))


@root_only
def test_what_the_message_on_a_file_names_works(tmp_path: Path):
    folder = tmp_path / "it's a folder"
    folder.mkdir(mode=0o755)
    for name, mode, owner in (("a b", 0o664, 0), ("c$d", 0o644, USER)):
        path = folder / name
        path.write_text("word\n")
        path.chmod(mode)
        os.chown(path, owner, owner)
        with pytest.raises(UntrustedFileError) as refused:
            read_trusted(str(path))
        subprocess.run(["sh", "-c", str(refused.value).rpartition(": ")[2]], check=True)
        assert read_trusted(str(path)) == b"word\n"


@root_only
def test_a_directory_above_that_others_may_write_is_refused(file: Path):
    for folder in (file.parent, file.parent.parent):
        folder.chmod(0o775)
        with pytest.raises(UntrustedFileError, match=f"chmod go-w {folder}$"):
            read_trusted(str(file))
        folder.chmod(0o1777)  # as /tmp: others cannot exchange what is in it
        assert read_trusted(str(file))
        folder.chmod(0o755)
        os.chown(folder, USER, USER)
        with pytest.raises(UntrustedFileError, match="keep the file where only root can write: move it there") as refused:
            read_trusted(str(file))
        assert "chown" not in str(refused.value), "a service may need its directory"
        assert read_trusted(str(file), also=[USER])
        os.chown(folder, 0, 0)


@root_only
def test_a_link_of_another_user_is_not_followed(file: Path):
    link = file.parent / "link"
    link.symlink_to("/etc/shadow")
    os.chown(link, USER, USER, follow_symlinks=False)
    with pytest.raises(UntrustedPathError, match="is a symbolic link that another user could have made"):
        read_trusted(str(link))


@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "directory"])
def test_what_is_not_a_regular_file_is_refused_without_waiting(file: Path, kind: str):
    path = file.parent / "odd"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(os.path.relpath(path))
    elif kind == "device":
        path = Path("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(UntrustedFileError, match=f"it is a {kind}, not a regular file"):
        read_trusted(str(path))
    with pytest.raises(ConfigError, match=f"not read: it is a {kind}"):
        load(str(path))
    with pytest.raises(ConfigError, match=f"cannot read the password in {path}: it is a {kind}"):
        Secret(file=str(path)).get()


@root_only
def test_a_password_file_may_belong_to_the_user_it_is_for(file: Path):
    import pwd

    nobody = pwd.getpwnam("nobody")
    os.chown(file, nobody.pw_uid, nobody.pw_gid)
    with pytest.raises(ConfigError, match="belongs to the user nobody"):
        Secret(file=str(file)).get()
    assert Secret(file=str(file)).get(nobody) == "word"
