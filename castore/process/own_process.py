"""Settings that belong to the whole process: castore changes them only in a process of its own.

A program that uses castore as a library keeps its signal handlers, its limits and its fault handler. The
command line declares its process as castore's own, once, at its start.
"""

from __future__ import annotations

from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_KEPT_BYTES: Final = 256 << 20
_MAPPED_BYTES: Final = 64 << 20

_own = False


def declare_own_process() -> None:
    """Allow castore to change settings of the whole process from now on."""
    global _own  # noqa: PLW0603 - it is about the process
    _own = True


def is_own_process() -> bool:
    """Return whether castore may change settings of the whole process."""
    return _own


def raise_file_limit() -> None:
    """Raise the limit of open files as far as allowed, in a process of castore's own.

    Each level of a deep tree keeps one file open. In another process, its own limit applies.
    """
    if not _own:
        return
    import contextlib
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def keep_freed_memory() -> None:
    """Have the C library keep what is freed, in a process of castore's own, and use it again.

    Chunks are some hundred KiB long, and glibc returns such blocks to the kernel at once, which clears the
    memory of the next one, page by page. Reading a dump of 450 MB took 149,000 page faults, and 16,000
    without that: 0.92 s and 0.67 s; one without deltas 0.85 s and 0.48 s. The peak of memory stays the same.
    """
    if not _own:
        return
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries have none
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def release_freed_memory() -> None:
    """Return freed memory to the kernel, in a process of castore's own: other work comes next."""
    if not _own:
        return
    import ctypes

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def freeze_imported() -> None:
    """Exclude what imports have created from searches for garbage, in a process of castore's own."""
    if not _own:
        return
    import gc

    gc.freeze()


def record_crash(path: str) -> int:
    """Have Python write to a file if this process, which must be castore's own, is killed by a fault.

    Return the descriptor to pass to `stop_recording`; -1: nothing is recorded.
    """
    if not _own:
        return -1
    import faulthandler
    import os

    if faulthandler.is_enabled():
        return -1
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError:
        return -1
    faulthandler.enable(descriptor, all_threads=False)
    return descriptor


def stop_recording(descriptor: int) -> None:
    """End what `record_crash` began."""
    if descriptor < 0:
        return
    import faulthandler
    import os

    faulthandler.disable()
    os.close(descriptor)
