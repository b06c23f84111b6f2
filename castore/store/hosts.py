"""The names of hosts: this one, earlier names of it, and the hosts that it took over."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from castore.errors import ConfigError
from castore.model.hosts import Host, HostGroups, begins_id
from castore.model.names import host_name
from castore.model.odd_text import escaped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from castore.model.generation import Generation
    from castore.state.service_state import ServiceState
    from castore.store.format.config import StoreConfig
    from castore.store.keys.key_manager import KeyManager
    from castore.store.options import StoreOptions


class HostNames:
    """Decides which generations belong to this host."""

    def __init__(self, keys: KeyManager, state: ServiceState, options: StoreOptions) -> None:
        self._keys = keys
        self._state = state
        self._configured = options.host
        self._former = options.former_hosts
        self._names: tuple[StoreConfig | None, dict[str, str]] = (None, {})

    @property
    def current(self) -> Host:
        """This host, as recorded in generations. Raises IdentityError if this machine may not add."""
        return Host(self.name, self._keys.writer_key.signer.public.hex())

    @property
    def name(self) -> str:
        """The certified name of this machine, or else its name in castore.toml or in the system."""
        return self._keys.certified_host or self._configured or host_name(escaped(os.uname().nodename))

    def check_configured(self) -> None:
        """Refuse to add if this machine is certified under another name. Raises ConfigError."""
        certified, name = self._keys.certified_host, self._configured
        if name and certified not in {"", name}:
            raise ConfigError(
                f"castore.toml: host: this machine is {certified} in the store {self._keys.location}, "
                f"and not {name}; change the file, or the store with 'castore key adopt --host {name}'"
            )

    def is_own(self, generation: Generation) -> bool:
        """Return whether a generation belongs to this host, or to one that this host took over."""
        if self.is_of_this_host(generation):
            return True
        taken_over = self._state.taken_over(generation.service)
        return generation.number <= taken_over.get(self.name_of(generation), 0)

    def is_of_this_host(self, generation: Generation) -> bool:
        """Return whether a generation was taken on this host."""
        if self._former and self._is_former(generation):
            return True
        return self.name_of(generation) == self.name

    def name_of(self, generation: Generation) -> str:
        """Return the present name of a generation's host: the host of the key that signed it."""
        return self._present_names().get(generation.host_id, generation.host)

    def groups(self, generations: Iterable[Generation]) -> HostGroups:
        """Return the hosts of generations, by their present names; usable after the store is closed."""
        names = self._present_names()
        return HostGroups(generations, lambda one: names.get(one.host_id, one.host))

    def _present_names(self) -> dict[str, str]:
        """Return the present host name of each machine, by its key in hex."""
        config = self._keys.config
        known, names = self._names
        if known is not config:
            names = {writer.key.hex(): writer.host for writer in config.writers}
            self._names = config, names
        return names

    def _is_former(self, generation: Generation) -> bool:
        return generation.host in self._former or any(
            begins_id(generation.host_id, former_id) for former_id in self._former
        )
