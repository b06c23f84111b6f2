"""Data directories that a server program makes once in a test run, and that are copied from then on."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

_VARIABLE = "CASTORE_TEST_TEMPLATES"
_templates = os.environ.get(_VARIABLE, "")
"""Where the templates are; read once, since tests remove variables."""


def folder_for_servers() -> str:
    """Return where servers have their data and what they reach: CASTORE_TEST_SERVER_FOLDER, or /tmp.

    Its path is short, as that of a socket has to be, and other users may enter it.
    """
    return os.environ.get("CASTORE_TEST_SERVER_FOLDER", "/tmp")


def begin_run() -> None:
    """Make the directory of the templates; processes that are started later share it."""
    global _templates  # noqa: PLW0603 - one of a process
    _templates = os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="castore-templates-", dir=folder_for_servers())
    os.chmod(_templates, 0o711)


def end_run() -> None:
    """Remove the templates."""
    shutil.rmtree(_templates, ignore_errors=True)


def copied(argv: tuple[str, ...], make: Callable[[str], None], destination: str) -> None:
    """Make `destination` a copy of what `make` makes in an empty directory. argv: what the content depends on.

    The directory that is passed to `make` is in another one, that the user of the server may enter.
    """
    folder = os.path.join(_templates, hashlib.sha256("\0".join(argv).encode()).hexdigest()[:16])
    with open(f"{folder}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.exists(folder):
            os.mkdir(folder)
            os.chmod(folder, 0o777)
            try:
                make(os.path.join(folder, "data"))
            except BaseException:
                shutil.rmtree(folder)
                raise
            os.chmod(folder, 0o700)
    subprocess.run(["cp", "-a", "--reflink=auto", os.path.join(folder, "data"), destination], check=True)
