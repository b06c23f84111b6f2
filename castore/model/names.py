"""Names that people choose: services, parts, revisions."""

from __future__ import annotations

import re

from castore.errors import UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
MAX_REVISION_BYTES = 255
_STORE_PATH = re.compile(r"/(?:[^/]+/)*store/(?P<hash>[0-9a-z]{8,})-[^/]+")
_SHOWN_HASH = 12


def check_name(what: str, name: str) -> str:
    """Return `name` if it can name a service or part (`what` says which), else raise UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot name a {what}: 1 to 100 letters, digits, dots, dashes and "
            "underscores, the first a letter or digit"
        )
    return name


def check_revision(revision: str) -> str:
    """Return `revision` if it can be recorded, else raise UsageError. Empty: none is known."""
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
    """Return the texts whose beginnings select a revision: itself, and the base name of a path."""
    base = revision.rpartition("/")[2] if revision.startswith("/") else ""
    return (revision, base) if base else (revision,)


def revision_is(revision: str, text: str) -> bool:
    """Whether `text` is a revision as it is recorded, as it is shown, or its base name if it is a path."""
    return text in {*revision_names(revision), short_revision(revision)}


def revision_begins(revision: str, prefix: str) -> bool:
    """Whether `prefix` selects a revision: its beginning, or that of a path's base name."""
    return any(name.startswith(prefix) for name in revision_names(revision))


def short_revision(revision: str) -> str:
    """Return a revision for tables: the beginning of the hash of a path in the store of Guix or Nix."""
    match = _STORE_PATH.fullmatch(revision)
    return revision if match is None else match["hash"][:_SHOWN_HASH]
