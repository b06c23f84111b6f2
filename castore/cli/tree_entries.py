"""Entries of a stored tree, as text and as JSON."""

from __future__ import annotations

import os
from typing import Any

from castore.cli import formatting
from castore.cli.document import times


def entry_line(shown: bytes, child: Any) -> str:
    """Return the line of an entry or dump in `castore ls`."""
    import stat

    from castore.model.generation import Part

    if isinstance(child, Part):
        return f"{'-' * 10}   - {'-':>8} {'-':>8} {child.size:>12} {'dump':>19} {child.name}"
    entry = child.entry
    user = child.owners.users.get(entry.uid, str(entry.uid))
    group = child.owners.groups.get(entry.gid, str(entry.gid))
    name = formatting.printable(shown)
    if stat.S_ISLNK(entry.st_mode):
        name += " -> " + formatting.printable(entry.extra.target)
    size = str(entry.size)
    if entry.extra.device:
        size = f"{os.major(entry.extra.device)}, {os.minor(entry.extra.device)}"
    mark = "+" if entry.extra.xattrs else " "
    return (
        f"{formatting.mode_text(entry.st_mode)}{mark} {user:>8} {group:>8} {size:>12} "
        f"{formatting.local_time(entry.mtime)} {name}"
    )


def plain_entry(shown: bytes, child: Any) -> dict[str, Any]:
    """Return an entry or dump for JSON."""
    from castore.model.generation import Part

    if isinstance(child, Part):
        return {"path": child.name, "type": "dump", "size": child.size}
    entry = child.entry
    return {
        "path": formatting.printable(shown),
        "type": _TYPES.get(entry.type, "unknown"),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "user": child.owners.users.get(entry.uid),
        "group": child.owners.groups.get(entry.gid),
        "size": entry.size,
        **times("mtime", entry.mtime),
        "target": formatting.printable(entry.extra.target) if entry.extra.target else None,
        "xattrs": [formatting.printable(name) for name, _ in entry.extra.xattrs],
    }


_TYPES = {1: "fifo", 2: "char", 4: "dir", 6: "block", 8: "file", 10: "link", 12: "socket"}
