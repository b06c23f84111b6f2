"""Files of the distribution's packages, unpacked and not installed: applications that nobody here wrote."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.support.postgres import missing

WORDPRESS = ("wordpress", "php-getid3", "libjs-underscore")
"""The package, and those with files that it includes."""


def unpacked(*packages: str) -> Path:
    """Return a directory with the files of packages of Debian; they are downloaded once for each `.venv`."""
    place = Path(sys.prefix) / "packages" / "+".join(packages)
    if place.is_dir():
        return place
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        missing(f"there is no apt-get to download {', '.join(packages)} with")
    place.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.parent) as folder:
        top = Path(folder)
        (top / "files").mkdir(mode=0o755)
        if (failure := _download(top, packages)) and os.geteuid() == 0:
            # The lists of a machine that installed nothing are empty.
            subprocess.run(["apt-get", "-qq", "update"], check=False, capture_output=True, stdin=subprocess.DEVNULL)
            failure = _download(top, packages)
        if failure:
            missing(f"the packages {', '.join(packages)} cannot be downloaded: {failure}")
        for archive in top.glob("*.deb"):
            subprocess.run(["dpkg-deb", "--extract", archive, top / "files"], check=True)
        if not place.is_dir():
            os.rename(top / "files", place)
    return place


def _download(folder: Path, packages: tuple[str, ...]) -> str:
    argv = ["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *packages]
    done = subprocess.run(argv, cwd=folder, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return done.stderr.strip()[-500:] if done.returncode else ""


def php(*modules: str) -> str:
    """Return the PHP of the command line, which has these modules."""
    program = shutil.which("php")
    if program is None:
        missing("there is no php in PATH (php-cli)")
    there = subprocess.run([program, "-m"], check=True, capture_output=True, text=True).stdout.split()
    if lacking := [one for one in modules if one not in there]:
        missing(f"php has no {', '.join(lacking)}")
    return program
