"""tools/castore uses what is installed, under any PATH and Python, and survives a failed set-up."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.checkout import ROOT


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A copy of the checkout whose .venv has what this Python has, without asking a registry."""
    root = tmp_path_factory.mktemp("checkout") / "castore"
    files = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, check=True,
    ).stdout.decode().split("\0")
    if "tools/castore" not in files:
        pytest.skip("not in a checkout of git")
    for name in filter(None, files):
        if not name.startswith("tests/") and (ROOT / name).exists():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root / ".venv")], check=True)
    inner = next((root / ".venv" / "lib").glob("python*")) / "site-packages"
    for name in map(Path, sys.path):
        if name.name == "site-packages":
            (inner / "outer.pth").write_text(f"{name}\n")
    (root / ".venv" / "base.stamp").write_text(f"{root} {os.path.realpath(root / '.venv/bin/python')}\n")
    return root


@pytest.fixture
def checkout(built, tmp_path):
    """A copy of `built` at its own path."""
    copy = tmp_path / "castore"
    subprocess.run(["cp", "-a", str(built), str(copy)], check=True)
    base = copy / ".venv" / "base.stamp"
    base.write_text(base.read_text().replace(str(built), str(copy)))
    return copy


def run(root, *arguments, path=None, **more):
    """Run tools/castore without a registry; return (exit code, output, errors)."""
    home = root.parent / "home"
    home.mkdir(exist_ok=True)
    environment = {"HOME": str(home), "PATH": path or os.environ["PATH"], "PIP_NO_INDEX": "1", **more}
    done = subprocess.run(
        [str(root / "tools" / "castore"), *arguments],
        env=environment, cwd=home, capture_output=True, text=True, check=False, timeout=200,
    )
    return done.returncode, done.stdout, done.stderr


def stamp(root):
    """Make the .venv count as set up for the present sources."""
    text = subprocess.run(
        ["sh", "-c", f"root={root}; . {root}/tools/environment.sh; base_now; sources_now"],
        capture_output=True, text=True, check=True,
    ).stdout
    (root / ".venv" / "plain.stamp").write_text(text)
    for built in (ROOT / "castore" / "kernel" / "_ffi.py", *(ROOT / "castore" / "kernel").glob("*.so")):
        shutil.copy(built, root / "castore" / "kernel")
    program = root / ".venv" / "bin" / "castore"
    program.write_text(f'#!{root}/.venv/bin/python\nimport sys; sys.path.insert(0, "{root}"); from castore.cli.main import main; main()\n')
    program.chmod(0o755)


@pytest.mark.parametrize("changes", [{"path": "/usr/bin:/bin"}, {"path": "/nonexistent"}, {"PYTHON": "/no/python"}, {"PYTHONHOME": "/nonexistent"}])
def test_another_path_or_python_uses_what_is_installed(checkout, changes):
    stamp(checkout)
    mark = checkout / ".venv" / "mark"
    mark.touch()
    assert run(checkout, "--version", **changes) == (0, "castore 0.1.0\n", "")
    assert mark.exists()


def test_the_modules_of_another_python_are_not_imported(checkout, tmp_path):
    stamp(checkout)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "click.py").write_text("raise SystemExit('the module of another Python')\n")
    assert run(checkout, "--version", PYTHONPATH=str(tmp_path / "other")) == (0, "castore 0.1.0\n", "")
    (checkout / "castore" / "kernel" / "chunker.c").write_text("#error broken\n")
    code, out, errors = run(checkout, "--version", PYTHONPATH=str(tmp_path / "other"), PYTHONHOME="/nonexistent")
    assert (code, out) == (0, "castore 0.1.0\n"), errors


def test_a_failed_rebuild_leaves_a_castore_that_runs(checkout):
    stamp(checkout)
    pyproject = checkout / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"click>=8.1"', '"click>=99"'))
    code, out, errors = run(checkout, "--version")
    assert (code, out) == (0, "castore 0.1.0\n")
    assert "could not be brought up to date" in errors
    assert "No matching distribution" in errors
    assert not (checkout / ".venv.old").exists()


def test_a_kernel_that_does_not_compile_leaves_a_castore_that_runs(checkout):
    stamp(checkout)
    with (checkout / "castore" / "kernel" / "chunker.c").open("a") as file:
        file.write("#error broken\n")
    code, out, errors = run(checkout, "--version")
    assert (code, out) == (0, "castore 0.1.0\n")
    assert "could not be brought up to date" in errors


def test_a_checkout_that_moved_runs_although_nothing_can_be_installed(checkout):
    stamp(checkout)
    moved = checkout.parent / "moved castore"
    checkout.rename(moved)
    code, out, errors = run(moved, "--version", path="/usr/bin:/bin", PYTHON="/no/python")
    assert (code, out) == (0, "castore 0.1.0\n"), errors


def test_nothing_that_runs_is_an_error(checkout):
    shutil.rmtree(checkout / ".venv")
    code, _, errors = run(checkout, "--version", PYTHON="/no/python")
    assert code == 1
    assert "there is no /no/python" in errors
    assert "cannot be set up" in errors


def test_an_interrupted_rebuild_keeps_the_environment_of_before(checkout):
    stamp(checkout)
    (checkout / ".venv").rename(checkout / ".venv.old")
    (checkout / ".venv").mkdir()  # as far as the rebuild got
    code, out, errors = run(checkout, "--version", PYTHON="/no/python")
    assert (code, out) == (0, "castore 0.1.0\n"), errors


def test_a_package_whose_hash_is_not_in_the_lock_is_not_installed(checkout):
    stamp(checkout)
    pyproject = checkout / "pyproject.toml"
    pyproject.write_text(pyproject.read_text().replace('"click>=8.1"', '"click>=99"'))
    packages = checkout.parent / "packages"
    packages.mkdir()
    with zipfile.ZipFile(packages / "click-99.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("click/__init__.py", "raise SystemExit('somebody else wrote this')\n")
        wheel.writestr("click-99.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: click\nVersion: 99.0\n")
        wheel.writestr("click-99.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("click-99.0.dist-info/RECORD", "")
    (checkout / "tools" / "plain.lock").write_text(f"click==99.0 --hash=sha256:{0:064x}\n")
    code, out, errors = run(checkout, "--version", PIP_FIND_LINKS=str(packages))
    assert (code, out) == (0, "castore 0.1.0\n"), errors
    assert "DO NOT MATCH THE HASHES" in errors
    assert "CASTORE_UNLOCKED=1" in errors
    assert not list((checkout / ".venv").rglob("click*"))


def test_the_lock_has_a_hash_for_each_package_and_no_address():
    for name in ("plain", "test"):
        text = (ROOT / "tools" / f"{name}.lock").read_text()
        assert not re.search(r"https?:|file:|--(extra-)?index|--find-links", text)
        for requirement in text.replace("\\\n", " ").splitlines():
            assert requirement == "--requirement plain.lock" or re.match(r"[a-z0-9-]+==\S+ +--hash=sha256:", requirement)


@pytest.fixture
def no_compiler(checkout, tmp_path):
    """A checkout that is not set up, on a machine without a compiler, and the log of an apt-get that installs nothing."""
    shutil.rmtree(checkout / ".venv")
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "apt.log"
    (programs / "apt-get").write_text(f'#!/bin/sh\necho "$*" >>{log}\nexit 1\n')
    (programs / "id").write_text("#!/bin/sh\necho ${FAKE_ID:-0}\n")
    for one in programs.iterdir():
        one.chmod(0o755)
    return checkout, f"{programs}:{os.environ['PATH']}", log


def test_no_package_of_the_distribution_is_installed_unasked(no_compiler):
    checkout, path, log = no_compiler
    code, _, errors = run(checkout, "--version", path=path, CC="/no/cc", CI="true")
    assert code == 69
    assert "apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev" in errors
    code, _, errors = run(checkout, "--version", path=path, CC="/no/cc", FAKE_ID="1000")
    assert code == 69
    assert "sudo apt-get install -y --no-install-recommends gcc libc6-dev" in errors
    assert not log.exists()


@pytest.mark.parametrize(("answer", "asked"), [(b"n\n", False), (b"\n", False), (b"\x04", False), (b"y\n", True)])
def test_on_a_terminal_the_user_is_asked_first(no_compiler, answer, asked):
    checkout, path, log = no_compiler
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [str(checkout / "tools" / "castore"), "--version"], stdin=terminal, stdout=terminal, stderr=terminal,
        env={"HOME": str(checkout.parent), "PATH": path, "PIP_NO_INDEX": "1", "CC": "/no/cc"},
    )
    os.close(terminal)
    shown = b""
    while b"[y/N] " not in shown:
        shown += os.read(controller, 1000)
    assert b"Install them with: apt-get install -y --no-install-recommends gcc libc6-dev?" in shown
    os.write(controller, answer)
    assert process.wait(60) == 69
    os.close(controller)
    assert log.exists() == asked


def test_the_tests_install_packages_in_continuous_integration(no_compiler):
    checkout, path, log = no_compiler
    command = [str(checkout / "tools" / "test"), "--version"]
    environment = {"HOME": str(checkout.parent), "PATH": path, "PIP_NO_INDEX": "1", "CC": "/no/cc"}
    options = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 200}
    assert subprocess.run(command, check=False, env=environment, **options).returncode == 69
    assert not log.exists()
    assert subprocess.run(command, check=False, env={**environment, "CI": "true"}, **options).returncode == 69
    assert log.read_text() == "-qq update\n"
