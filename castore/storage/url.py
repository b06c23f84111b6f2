"""URLs of stores."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from castore.errors import UsageError

_URL: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_AUTHORITY: Final = re.compile(
    r"(?:(?P<user>[^@/]*)@)?(?P<host>\[[0-9A-Fa-f:.]+\]|[^@/:\[\]]+)(?::(?P<port>[0-9]{1,5}))?"
)
_KEPT: Final = "/~!$&'()*+,;=:@-._"
"""The characters that the path of a URL has as they are."""


class StoreUrl:
    """A URL of a store: `SCHEME://[USER@]HOST[:PORT]/PATH`. For an object store, HOST is the bucket.

    Raises UsageError for a URL that cannot be one: it has a password, a query, a control character or `..`.
    """

    def __init__(self, text: str) -> None:
        matched = _URL.fullmatch(text)
        if matched is None:
            raise UsageError(f"{text!r} is not a URL")
        self.scheme = matched[1].lower()
        rest, _, path = matched[2].partition("/")
        authority = _AUTHORITY.fullmatch(rest)
        if authority is None or any(ord(character) <= 0x20 or ord(character) == 0x7F for character in text):
            raise UsageError(
                f"{_without_password(text)!r} is not a URL: {self.scheme}://HOST/PATH, %20 for a space"
            )
        if ":" in (authority["user"] or ""):
            raise UsageError(
                f"{_without_password(text)!r} contains a password, which others can read in lists of "
                "processes and in castore.toml: use a key, an agent, or variables of the environment"
            )
        if "?" in path or "#" in path:
            raise UsageError(f"{text!r} is not the URL of a store: it has a query, or '#'")
        self.user = _decoded(authority["user"], text) if authority["user"] else None
        self.host = authority["host"]
        """The bucket of an object store; else a host, or a name of it in the configuration of SSH."""
        self.port = int(authority["port"]) if authority["port"] else None
        if self.port is not None and not 0 < self.port < 65536:
            raise UsageError(f"{text!r}: there is no port {self.port}")
        self.path = "/".join(filter(None, _decoded(path, text).split("/")))
        """Without slashes at its ends; empty for the top of a bucket."""
        if {".", ".."} & {*self.path.split("/")}:
            raise UsageError(f"{text!r} is not the URL of a store: its path has '.' or '..'")

    def __str__(self) -> str:
        """Return the one form of the URL, under which this machine remembers the store."""
        user = "" if self.user is None else quote(self.user, safe="") + "@"
        port = "" if self.port is None else f":{self.port}"
        path = "/" + quote(self.path, safe=_KEPT) if self.path else ""
        return f"{self.scheme}://{user}{self.host}{port}{path}"


def _decoded(text: str, url: str) -> str:
    try:
        decoded = unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise UsageError(f"{url!r} is not a URL: what its percent signs stand for is not UTF-8") from None
    if any(ord(character) < 0x20 or ord(character) == 0x7F for character in decoded):
        raise UsageError(f"{url!r} is not the URL of a store: it has a control character")
    return decoded


def _without_password(url: str) -> str:
    return re.sub(r":.*@", "@", url.replace("://", "\0", 1)).replace("\0", "://", 1)
