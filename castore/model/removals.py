"""Which generations of a service were removed on purpose."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from castore.model.spans import Spans

if TYPE_CHECKING:
    from collections.abc import Mapping


class Removals(NamedTuple):
    """Which generations of a service were removed on purpose."""

    by_maintainers: Spans = Spans()
    """By admins, and machines that may remove what others added."""
    by_hosts: Mapping[str, Spans] = MappingProxyType({})
    """By other machines, of their own: by host name."""

    def includes(self, number: int, host: str) -> bool:
        """Whether a generation of a host was removed by somebody who may."""
        return number in self.by_maintainers or number in self.by_hosts.get(host, ())
