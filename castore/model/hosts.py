"""Which host a generation belongs to: several machines may use one service name in one store.

A host is a name that an admin certified for a machine's own key (`castore key adopt`). A generation is signed
with that key, so its host is proven. A machine that is renamed keeps its key, and a machine that was replaced
passed its name on to another one. The history of a host is what all keys with its name have signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from castore.errors import NotFoundError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from castore.model.generation import Generation

ALL_HOSTS: Final = "*"
_SHORTEST_PREFIX: Final = 4


class Host(msgspec.Struct, frozen=True):
    """A host as recorded in a generation."""

    name: str
    """The certified name; for an admin's own machine, its system host name."""
    id: str
    """The public key that signs, in hexadecimal."""


def host_key(generation: Generation) -> str:
    """Return the key of a generation's host, using its record only."""
    return generation.host


class HostGroups:
    """The hosts of generations; key: returns a generation's host (`HostNames.name_of` knows more)."""

    def __init__(
        self, generations: Iterable[Generation], key: Callable[[Generation], str] = host_key
    ) -> None:
        self._key = key
        self._hosts: set[str] = set()
        self._earlier: dict[str, set[str]] = {}
        """The hosts that have generations under a name or an id, by that name or id."""
        for generation in generations:
            host = key(generation)
            self._hosts.add(host)
            for name in (generation.host, generation.host_id):
                self._earlier.setdefault(name, set()).add(host)

    def key(self, generation: Generation) -> str:
        """Return the name of a generation's host."""
        return self._key(generation)

    def hosts(self) -> set[str]:
        """Return the names of the hosts."""
        return set(self._hosts)

    def named(self, host: str) -> set[str]:
        """Return the names of the hosts that a name, an earlier name, or the beginning of an id may mean."""
        if host in self._hosts:
            return {host}
        return self._earlier.get(host, set()) or {
            host_id for name, hosts in self._earlier.items() if begins_id(name, host) for host_id in hosts
        }


def begins_id(host_id: str, text: str) -> bool:
    """Return whether `text` is a host's id or the beginning of one."""
    is_id = len(host_id) == 64 and not host_id.strip("0123456789abcdef")
    return is_id and len(text) >= _SHORTEST_PREFIX and host_id.startswith(text)


def refuse_unknown_host(service: str, host: str, groups: HostGroups) -> None:
    """Raise NotFoundError if no generation of a service belongs to a host with this name."""
    if not groups.named(host):
        known = ", ".join(sorted(groups.hosts()))
        raise NotFoundError(f"no generation of {service!r} belongs to host {host!r}; its hosts: {known}")
