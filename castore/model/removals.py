"""Which generations of a service were removed on purpose."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from castore.model.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Mapping


class Removals(NamedTuple):
    """The generations of a service that were removed on purpose."""

    by_maintainers: Spans = Spans()
    """Removed by admins, and by machines that may remove what others added."""
    by_hosts: Mapping[str, Spans] = MappingProxyType({})
    """Removed by other machines, which may remove only their own: by host name."""

    def includes(self, number: int, host: str) -> bool:
        """Return whether a generation of a host was removed by a key with the right to."""
        return number in self.by_maintainers or number in self.by_hosts.get(host, ())
