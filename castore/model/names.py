"""Validate the names that people choose: services, parts, hosts, revisions; and recorded paths.

The same checks apply where a name is written and where it is decoded: a name can become a path, and
every holder of a writer key can write records that castore never writes.
"""

from __future__ import annotations

import re
from typing import Final

from castore.errors import UsageError

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
_HOST_ID: Final = r"(?:[0-9a-f]{16}(?:[0-9a-f]{48})?)?"
MAX_HOST = 255
MAX_PATH = 1 << 16
"""The most bytes in a recorded path; far more than any system call accepts."""
MAX_REVISION_BYTES = 255
_STORE_PATH: Final = r"/(?:[^/]+/)*store/(?P<hash>[0-9a-z]{8,})-[^/]+"
_SHOWN_HASH = 12


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a service or part (`what` says which), else raise UsageError."""
    if not re.fullmatch(_NAME, name):
        raise UsageError(
            f"{name!r} cannot name a {what}: 1 to 100 letters, digits, dots, dashes and "
            "underscores, the first a letter or digit"
        )
    return name


def check_host(host: str) -> str:
    """Return `host` if it can name a host, else raise UsageError. An empty name means unknown."""
    if host == "*" or "/" in host or not host.isprintable() or host != host.strip() or len(host) > MAX_HOST:
        raise UsageError(
            f"{host[:80]!r} cannot name a host: 1 to {MAX_HOST} printable characters, no '/', no white space "
            "at an end, and not '*' alone"
        )
    return host


def host_name(name: str) -> str:
    """Return the name of this machine in a form that `check_host` accepts."""
    shown = "".join(char if char.isprintable() and char != "/" else "_" for char in name[:MAX_HOST]).strip()
    return "_" if shown == "*" else shown


def check_host_id(host_id: str) -> str:
    """Return `host_id` if it identifies a host, else raise UsageError. If it is empty, the name does."""
    if not re.fullmatch(_HOST_ID, host_id):
        raise UsageError(f"{host_id[:80]!r} cannot identify a host: 16 or 64 hexadecimal digits")
    return host_id


def check_path(path: bytes) -> bytes:
    """Return `path` if it can be recorded as a part's path, else raise UsageError. Empty means no path."""
    steps = path.split(b"/")
    if path and (steps[0] or b"\0" in path or b".." in steps or b"." in steps or len(path) > MAX_PATH):
        raise UsageError(f"{path[:80]!r} is not an absolute path without '.', '..' and zero bytes")
    return path


def check_revision(revision: str) -> str:
    """Return `revision` if it can be recorded, else raise UsageError. Empty means that none is known."""
    if revision != revision.strip() or not revision.isprintable():
        raise UsageError(f"revision {revision!r} has white space at an end or unprintable characters")
    if len(revision.encode()) > MAX_REVISION_BYTES:
        raise UsageError(
            f"revision {revision[:40]!r}... is longer than {MAX_REVISION_BYTES} bytes; "
            "name a hash of it instead"
        )
    if revision == "latest":
        raise UsageError("'latest' cannot be a revision: it selects the newest generation")
    return revision


def revision_names(revision: str) -> tuple[str, ...]:
    """Return the texts whose prefixes select a revision: itself, and the base name if it is a path."""
    base = revision.rpartition("/")[2] if revision.startswith("/") else ""
    return (revision, base) if base else (revision,)


def revision_is(revision: str, text: str) -> bool:
    """Return whether `text` is a revision as recorded, as shown, or the base name if it is a path."""
    return text in {*revision_names(revision), short_revision(revision)}


def revision_begins(revision: str, prefix: str) -> bool:
    """Return whether `prefix` selects a revision: it begins the revision, or the base name of a path."""
    return any(name.startswith(prefix) for name in revision_names(revision))


def short_revision(revision: str) -> str:
    """Return a revision for tables: for a path in the store of Guix or Nix, the beginning of its hash."""
    match = re.fullmatch(_STORE_PATH, revision)
    return revision if match is None else match["hash"][:_SHOWN_HASH]
