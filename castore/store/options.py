"""How a store is created, and how this process uses an open one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from castore.store.format.config import DEFAULT_AVERAGE

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from castore.store.keys.trust import Agree


def _silent(_text: str) -> None:
    return None


def _nothing(_store_id: bytes) -> None:
    return None


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is opened, and the settings of castore.toml and of the command line that apply to it."""

    local_key: bool = True
    """Use the writer key of this machine, if it has one. Otherwise the identity opens the store."""
    accept_older: bool = False
    """Accept a store that is older than this machine has seen it, and record it as it is."""
    trust: Collection[bytes] = ()
    """Public keys of admins that are accepted in addition to those that this machine trusts."""
    agree: Agree | None = None
    """Asks the user whether to accept a configuration that no trusted admin signed.

    It is called only if this machine has no writer key.
    """
    host: str = ""
    """`host` of castore.toml."""
    former_hosts: Collection[str] = ()
    """`former-hosts` of castore.toml: earlier names of this host, or beginnings of its ids."""
    recipients: Collection[str] = ()
    """`recipients` of castore.toml, as text; empty if it is not set."""
    isolate_writers: bool = False
    """`isolate-writers` of castore.toml: new snapshots share no content that another machine added."""
    base_cache: int | None = None
    """The maximum size of the base cache in bytes; None for the default."""
    chosen_host: str | None = None
    """The host whose generations are selected: ALL_HOSTS for every host, None for this one."""
    say: Callable[[str], None] = _silent
    """Receives messages for the user about a selection."""


class NewStore(msgspec.Struct, frozen=True, kw_only=True):
    """The properties of a new store."""

    average_chunk_size: int = DEFAULT_AVERAGE
    """Mean length of a chunk, in bytes."""
    host: str = ""
    """The name under which this machine is certified; by default its host name."""
    admins: Sequence[bytes] = ()
    """Public keys whose configurations are accepted, in addition to the admin key of the identity."""
    before_create: Callable[[bytes], None] = _nothing
    """Called with the store's id before the store exists, to keep what must exist by then: an identity."""
    options: StoreOptions = msgspec.field(default_factory=StoreOptions)
    """How it is opened."""
