"""Paths in places where another user may write."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from castore.errors import UntrustedPathError
from castore.fs import beneath
from castore.fs.beneath import locate, open_below, open_regular, open_top

USER = 60123
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="another user's links")


def own(path: Path) -> None:
    os.chown(path, USER, USER, follow_symlinks=False)


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of another user."""
    found = tmp_path / "theirs"
    found.mkdir()
    own(found)
    return found


def test_a_path_leads_through_links_of_the_administrator(tmp_path: Path) -> None:
    (tmp_path / "real" / "top").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/../real")
    (tmp_path / "absolute").symlink_to(tmp_path / "link" / "top")
    for path in (tmp_path / "real" / "top", tmp_path / "link" / "top", tmp_path / "absolute"):
        with locate(str(path)) as found:
            assert found.path == os.fsencode(tmp_path / "real" / "top")
        fd = open_top(str(path))
        assert os.path.samestat(os.fstat(fd), os.stat(path))
        os.close(fd)
    with locate("/") as found:
        assert found.path == b"/"
    (tmp_path / "nowhere").symlink_to("real/new")
    with locate(str(tmp_path / "nowhere")) as found:
        assert (found.name, found.path) == (b"new", os.fsencode(tmp_path / "real" / "new"))
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError, match="symbolic links"):
        locate(str(tmp_path / "loop"))
    with pytest.raises(FileNotFoundError):
        locate(str(tmp_path / "none" / "top"))


@as_root
def test_no_link_is_followed_that_another_user_could_have_made(tmp_path: Path, theirs: Path) -> None:
    (tmp_path / "secret").mkdir()
    (theirs / "top").symlink_to(tmp_path / "secret")  # root's own, in their directory
    sticky = tmp_path / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "theirs").symlink_to(tmp_path / "secret")
    own(sticky / "theirs")
    (sticky / "ours").symlink_to(tmp_path / "secret")
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o775)
    (shared / "top").symlink_to(tmp_path / "secret")
    for path in (theirs / "top", theirs / "top" / "below", sticky / "theirs", shared / "top"):
        with pytest.raises(UntrustedPathError, match="not followed: name the directory"):
            locate(str(path))
    os.close(open_top(str(sticky / "ours")))
    # A directory of theirs is what it is: only links lead elsewhere.
    (theirs / "plain").mkdir()
    os.close(open_top(str(theirs / "plain")))


@pytest.mark.parametrize("openat2", [True, False])
def test_below_a_directory_no_link_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, openat2: bool
) -> None:
    if not openat2:
        monkeypatch.setattr(beneath, "_OPENAT2", 100_000)
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    (tmp_path / "a" / "link").symlink_to("b")
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        fd = open_below(top, (b"a", b"b", b"c"))
        assert os.path.samestat(os.fstat(fd), os.stat(tmp_path / "a" / "b" / "c"))
        assert not os.get_inheritable(fd)
        os.close(fd)
        for path in ((b"a", b"link"), (b"a", b"link", b"c"), (b"a", b"..", b"a"), (b"a", b""), (b"a/b",)):
            with pytest.raises(OSError, match=r"levels|directory|argument"):
                open_below(top, path)
        deep = [b"x" * 250 for _ in range(20)]
        fd = os.dup(top)
        for name in deep:
            os.mkdir(name, dir_fd=fd)
            below = os.open(name, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        found = open_below(top, tuple(deep))
        assert os.path.samestat(os.fstat(fd), os.fstat(found))
        os.close(found)
        os.close(fd)
    finally:
        os.close(top)


def test_only_a_regular_file_is_opened_whatever_takes_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("file")
    top = os.open(tmp_path, os.O_RDONLY)
    try:
        fd = open_regular(top, b"file")
        assert os.read(fd, 10) == b"content"
        assert stat.S_ISREG(os.fstat(fd).st_mode)
        os.close(fd)
        for name in (b"pipe", b"link", b".", b"none"):
            with pytest.raises(OSError, match=r"not a regular|levels|No such"):
                open_regular(top, name)
    finally:
        os.close(top)


def test_missing_directories_are_made_for_their_owner_only(tmp_path: Path) -> None:
    with locate(str(tmp_path / "a" / "b" / "c"), make=True) as found:
        os.mkdir(found.name, dir_fd=found.folder)
        found.sync()
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
