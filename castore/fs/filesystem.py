"""The file system that a file is on: whether a network has it, and how all of it is synced."""

from __future__ import annotations

import os
from typing import Final

from castore.kernel import lib

_NETWORKS: Final = {
    0x6969: "NFS",
    0xFF534D42: "SMB",
    0xFE534D42: "SMB",
    0x517B: "SMB",
    0x5346414F: "AFS",
    0x73757245: "Coda",
    0x00C36400: "Ceph",
    0x01021997: "9P",
    0x7461636F: "OCFS2",
    0x01161970: "GFS2",
    0x0BD00BD0: "Lustre",
    0x65735546: "FUSE",
    0x786F4256: "VirtualBox",
    0xBACBACBC: "VMware",
    0x47504653: "GPFS",
    0x19830326: "BeeGFS",
}
"""Network file systems by f_type of statfs(2). FUSE may be local, but mostly is not."""


def sync_file_system(fd: int) -> None:
    """Make everything durable that was written to the file system of an open file. Raises OSError."""
    if code := lib.scan_sync(fd):
        raise OSError(code, os.strerror(code))


def network_of(path: str) -> str | None:
    """Return the name of the network file system that has a path; None if it is local or unknown."""
    return _NETWORKS.get(lib.scan_file_system(os.fsencode(path)))
