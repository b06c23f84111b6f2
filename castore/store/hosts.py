"""Which host a generation belongs to: machines may use one service name in one store.

A host is known by a hash of its `host` in castore.toml, else of its machine id, so that a machine whose host
name changes stays one host. Records of older castores have the host name only.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import NotFoundError, StorageError
from castore.store.places import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation

ALL_HOSTS: Final = "*"
_MACHINE_IDS: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_OWN_ID: Final = "machine-id"
"""The file in castore's state that holds a random id, where the system has no machine id."""
_SHORTEST_PREFIX: Final = 4


@dataclass(frozen=True)
class Host:
    """A host as a generation records it."""

    name: str
    """For display."""
    id: str


def this_host(store_id: bytes, state: str, configured: str) -> Host:
    """Return this host; configured: `host` of castore.toml, or empty. state: castore's state folder."""
    name = configured or os.uname().nodename
    known_by = f"host {configured}" if configured else f"machine {_machine_id(state) or name}"
    # The machine id itself is confidential (machine-id(5)).
    material = store_id + known_by.encode("utf-8", "surrogateescape")
    return Host(name, blake3(material, derive_key_context="castore 1 host").hexdigest(8))


def _machine_id(state: str) -> str:
    """Return the machine id; a random one that is kept in `state` where the system has none."""
    for path in _MACHINE_IDS:
        with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
            text = file.read(100).strip()
            if _MACHINE_ID.fullmatch(text) and text.strip("0"):
                return text
    path = os.path.join(state, _OWN_ID)
    with contextlib.suppress(StorageError):
        if (kept := read_private(path)) is not None:
            return kept.strip()
        drawn = os.urandom(16).hex()
        write_private(path, f"{drawn}\n".encode())
        return drawn
    return ""


def host_key(generation: Generation) -> str:
    """Return what tells hosts apart: the id, or the name in a record of an older castore."""
    return generation.host_id or f"name {generation.host}"


class HostGroups:
    """The hosts of some generations."""

    def __init__(self, generations: Iterable[Generation]) -> None:
        self._ids: dict[str, set[str]] = {}
        """Ids that a host name stands for."""
        self._plain: set[str] = set()
        """Host names in records without an id."""
        self._names: dict[str, str] = {}
        """The name of a host's newest generation, by key."""
        newest: dict[str, int] = {}
        for one in generations:
            if one.host_id:
                self._ids.setdefault(one.host, set()).add(one.host_id)
            else:
                self._plain.add(one.host)
            key = host_key(one)
            if one.number >= newest.get(key, 0):
                newest[key], self._names[key] = one.number, one.host

    def key(self, generation: Generation) -> str:
        """Return the key of a generation's host; a name without an id is the only id that has the name."""
        ids = self._ids.get(generation.host, set())
        return next(iter(ids)) if not generation.host_id and len(ids) == 1 else host_key(generation)

    def names(self) -> dict[str, str]:
        """Return the name of each host, by key."""
        joined = {f"name {name}" for name in self._plain if len(self._ids.get(name, ())) == 1}
        return {key: name for key, name in self._names.items() if key not in joined}

    def named(self, host: str) -> set[str]:
        """Return the keys of the hosts that a name, or the beginning of an id, stands for."""
        found = self._ids.get(host, set()) | ({f"name {host}"} if host in self._plain else set())
        if not found and len(host) >= _SHORTEST_PREFIX:
            found = {key for ids in self._ids.values() for key in ids if key.startswith(host)}
        return found


def refuse_unknown_host(service: str, host: str, groups: HostGroups) -> None:
    """Raise NotFoundError if no generation of a service is of a host with this name."""
    if not groups.named(host):
        known = ", ".join(sorted(set(groups.names().values())))
        raise NotFoundError(f"no generation of {service!r} is of host {host!r}; its hosts: {known}")
