"""Data directories that a server program makes once in a process of the test run, and that are copied from then on."""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable

_made: dict[tuple[str, ...], str] = {}


def folder_for_servers() -> str:
    """Return where servers have their data and what they reach: CASTORE_TEST_SERVER_FOLDER, or /tmp.

    Its path is short, as that of a socket has to be, and other users may enter it.
    """
    return os.environ.get("CASTORE_TEST_SERVER_FOLDER", "/tmp")


def copied(argv: tuple[str, ...], make: Callable[[str], None], destination: str) -> None:
    """Make `destination` a copy of what `make` makes in an empty directory. argv: what the content depends on.

    The directory that is passed to `make` is in another one, that the user of the server may enter.
    """
    if argv not in _made:
        folder = tempfile.mkdtemp(prefix="castore-template-", dir=folder_for_servers())
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        os.chmod(folder, 0o777)
        make(os.path.join(folder, "data"))
        os.chmod(folder, 0o700)
        _made[argv] = os.path.join(folder, "data")
    subprocess.run(["cp", "-a", "--reflink=auto", _made[argv], destination], check=True)
