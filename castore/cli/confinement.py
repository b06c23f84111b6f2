"""Confine, by Landlock, a process that only reads a store to the rights that it needs.

Such a command decodes bytes that an attacker may have written. If a decoder has a vulnerability, the process
can still only write castore's own files; it can run no program and open no connection. Reading stays allowed:
modules, time zones and user databases are read when they are needed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ctypes
    from collections.abc import Iterable

# Of linux/landlock.h. The numbers of the calls are the same on all processors.
_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_VERSION: Final = 1
_BENEATH: Final = 1
_EXECUTE: Final = 1 << 0
_WRITE_FILE: Final = 1 << 1
_TRUNCATE: Final = 1 << 14
_CHANGES: Final = _WRITE_FILE | _TRUNCATE | sum(1 << bit for bit in range(4, 14))
"""Write, truncate, remove, create of any type, and rename from one directory to another."""
_NETWORK: Final = 1 << 0 | 1 << 1
"""TCP: bind, connect."""
_SCOPES: Final = 1 << 0 | 1 << 1
"""Abstract sockets and signals of processes that are not confined with this one."""
_OLDEST: Final = 3
"""Version of the interface: before 2 a rename from one directory to another could not be allowed, before 3
truncation could not be denied."""
_PR_SET_NO_NEW_PRIVS: Final = 38
_DEVICES: Final = ("/dev/null", "/dev/tty")
_allowed: Final[list[bool]] = []


def allow_confinement() -> None:
    """Record that this process only runs castore, so that all of it may be confined until it exits."""
    _allowed.append(True)


def confine(writable: Iterable[str], *, network: bool = False, programs: bool = False) -> bool:
    """Deny this process changes outside these directories, and all programs; return whether it is confined.

    Call it before threads are started. A path that does not exist is replaced by the nearest existing
    directory above it. network: leave TCP allowed. programs: leave programs allowed, which are confined, too.
    Return False if the kernel has no Landlock or a version that is too old, and in a process that does more
    than run castore.
    """
    if not _allowed:
        return False
    import ctypes
    import struct

    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
    if version < _OLDEST:
        return False
    attributes = struct.pack("=Q", _CHANGES if programs else _EXECUTE | _CHANGES)
    if version >= 4:
        attributes += struct.pack("=Q", 0 if network else _NETWORK)
    if version >= 6:
        attributes += struct.pack("=Q", _SCOPES)
    rules = libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if rules < 0:
        return False
    try:
        for path in {_existing(path) for path in writable} | set(filter(os.path.exists, _DEVICES)):
            _allow(libc, rules, path)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        return bool(libc.syscall(_RESTRICT_SELF, rules, 0) == 0)
    finally:
        os.close(rules)


def _existing(path: str) -> str:
    path = os.path.realpath(path)
    while not os.path.exists(path):
        path = os.path.dirname(path)
    return path


def _allow(libc: ctypes.CDLL, rules: int, path: str) -> None:
    import stat
    import struct

    beneath = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        allowed = _CHANGES if stat.S_ISDIR(os.fstat(beneath).st_mode) else _WRITE_FILE | _TRUNCATE
        # If it fails, the command fails with an error when it writes there: nothing is lost unnoticed.
        libc.syscall(_ADD_RULE, rules, _BENEATH, struct.pack("=Qi", allowed, beneath), 0)
    finally:
        os.close(beneath)
