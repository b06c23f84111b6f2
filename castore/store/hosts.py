"""Which host a generation belongs to: machines may use one service name in one store.

A host is known by a hash of its `host` in castore.toml, else of its machine id, so that a machine whose host
name changes stays one host. Records of older castores have the host name only.

Machines that were cloned from one image may have one machine id. A machine notes which generations it took
under which host names, so that those of its clones are not its own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from blake3 import blake3

from castore.errors import NotFoundError, StorageError
from castore.model.names import host_name
from castore.model.odd_text import escaped
from castore.store.places import read_private, write_private

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.model.generation import Generation

ALL_HOSTS: Final = "*"
_MACHINE_IDS: Final = ("/etc/machine-id", "/var/lib/dbus/machine-id")
_MACHINE_ID: Final = re.compile(r"[0-9a-f]{32}")
_OWN_ID: Final = "machine-id"
"""The file in castore's state that holds a random id, where the system has no machine id."""
_SHORTEST_PREFIX: Final = 4
_BY_NAME: Final = "name "
"""Begins the key of a host that is known by its name only."""


@dataclass(frozen=True)
class Host:
    """A host as a generation records it."""

    name: str
    """For display."""
    id: str


def this_host(store_id: bytes, state: str, configured: str) -> Host:
    """Return this host; configured: `host` of castore.toml, or empty. state: castore's state folder."""
    name = configured or host_name(escaped(os.uname().nodename))
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
    """Return the key of a host: the id, or the name in a record of an older castore."""
    return generation.host_id or f"{_BY_NAME}{generation.host}"


class HostGroups:
    """The hosts of some generations; key: identifies the host of one (`Remembered.host_key` knows more)."""

    def __init__(
        self, generations: Iterable[Generation], key: Callable[[Generation], str] = host_key
    ) -> None:
        self._key = key
        self._ids: dict[str, set[str]] = {}
        """The ids of the hosts that have a name."""
        self._plain: set[str] = set()
        """Host names in records without an id."""
        self._names: dict[str, str] = {}
        """The name of a host's newest generation, by key."""
        newest: dict[str, int] = {}
        for one in generations:
            found = key(one)
            if found.startswith(_BY_NAME):
                self._plain.add(one.host)
            else:
                self._ids.setdefault(one.host, set()).add(found)
            if one.number >= newest.get(found, 0):
                newest[found], self._names[found] = one.number, one.host

    def key(self, generation: Generation) -> str:
        """Return the key of a generation's host; a name without an id is the only id that has the name."""
        found = self._key(generation)
        ids = self._ids.get(generation.host, set())
        return next(iter(ids)) if found.startswith(_BY_NAME) and len(ids) == 1 else found

    def names(self) -> dict[str, str]:
        """Return the name of each host, by key; with its id, where several have the name."""
        joined = {f"{_BY_NAME}{name}" for name in self._plain if len(self._ids.get(name, ())) == 1}
        names = {key: name for key, name in self._names.items() if key not in joined}
        shared = Counter(names.values())
        return {key: name if shared[name] == 1 else _with_id(name, key) for key, name in names.items()}

    def label(self, generation: Generation) -> str:
        """Return the host name of a generation; with the host's id, where several hosts have had the name."""
        ids = self._ids.get(generation.host, ())
        return generation.host if len(ids) < 2 else _with_id(generation.host, self.key(generation))

    def named(self, host: str) -> set[str]:
        """Return the keys of the hosts that a name, or the beginning of an id, may mean."""
        plain = f"{_BY_NAME}{host}"
        found = set(self._ids.get(host, set()))
        if host in self._plain and len(found) != 1:
            found.add(plain)
        return found or {
            key for ids in self._ids.values() for key in ids if begins_id(key, host)
        }


def begins_id(host_id: str, text: str) -> bool:
    """Whether `text` is a host's id or the beginning of one."""
    return len(text) >= _SHORTEST_PREFIX and host_id.startswith(text)


def _with_id(name: str, key: str) -> str:
    return name if key.startswith(_BY_NAME) else f"{name} ({key.partition(' ')[0]})"


def refuse_unknown_host(service: str, host: str, groups: HostGroups) -> None:
    """Raise NotFoundError if no generation of a service is of a host with this name."""
    if not groups.named(host):
        known = ", ".join(sorted(set(groups.names().values())))
        raise NotFoundError(f"no generation of {service!r} is of host {host!r}; its hosts: {known}")
