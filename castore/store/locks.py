"""One castore at a time works on a service of a store."""

from __future__ import annotations

import contextlib
import datetime as dt
import fcntl
import os
import re
from typing import TYPE_CHECKING

from castore.errors import BusyError
from castore.store.places import make_private_directory, refusal

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def service_lock(path: str, service: str, what: str = "at work on") -> Iterator[None]:
    """Hold the lock of a service, which is the file `path`, through the block.

    what: what its holder does to the service. The kernel lets go of it when the process ends, however it
    ends. Raises BusyError.
    """
    make_private_directory(os.path.dirname(path))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refusal("open the lock", path, error) from error
    try:
        _take(descriptor, path, service, what)
        now = dt.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"pid {os.getpid()} since {now}\n".encode(), 0)
        yield
    finally:
        # The file stays: were it removed, two processes could hold locks on two files of its name.
        os.close(descriptor)


def _take(descriptor: int, path: str, service: str, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        holder = f" ({text})" if re.fullmatch(r"pid \d+ since [-+: 0-9]+", text) else ""
        raise BusyError(
            f"another castore{holder} is {what} {service!r}; try again when it has ended"
        ) from None
    except OSError as error:
        raise refusal("lock", path, error) from error
