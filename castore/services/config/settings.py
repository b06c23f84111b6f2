"""The settings in a castore.toml, as structs, and its tables before their parts are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from castore.errors import ConfigProblemsError

if TYPE_CHECKING:
    from castore.engines.base import Engine


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A TOML table whose keys are all known."""


class Revision(_Table, frozen=True):
    """Where a service's revision comes from: exactly one of these."""

    value: str | None = None
    """The revision itself."""
    link: str | None = None
    """A symbolic link, whose target it is."""
    command: tuple[str, ...] | None = None
    """A program that prints it."""
    paths: tuple[str, ...] | None = None
    """Files, directories and links: it is a hash over what they hold or lead to."""


class TreePart(_Table, frozen=True):
    """A directory."""

    path: str
    exclude: tuple[str, ...] = ()
    """Patterns as in .gitignore, relative to `path`."""
    one_file_system: bool = False
    """Leave out what is mounted below it."""
    exclude_caches: bool = False
    """Leave out what directories with a CACHEDIR.TAG hold."""


class PartSettings(_Table, frozen=True):
    """One part of a service."""

    engine: str
    source: TreePart | Engine
    """What the engine's own keys say."""
    before: tuple[str, ...] = ()
    """A program that is run before the service's parts are taken."""
    after: tuple[str, ...] = ()
    """A program that is run when they are taken, and when that failed."""
    run_as: str | None = None
    """The user that `before` and `after` are run as; None: castore's own."""


class Keep(_Table, frozen=True):
    """Which generations are kept: those that any of these rules keeps."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    per_revision: int = 1
    """Of each revision; the newest of one that is live is kept whatever is said."""
    within: str | None = None
    """All that are not older than this: "36h", "14d"."""


class ServiceKeys(_Table, frozen=True, kw_only=True):
    """What of a service is decoded as it stands."""

    schedule: str | None = None
    """When the daemon takes a generation: "02:30", or five fields as in a crontab."""
    before: tuple[str, ...] = ()
    """A program that is run before parts are taken."""
    after: tuple[str, ...] = ()
    """A program that is run when they are taken, and when that failed."""
    stop: tuple[str, ...] = ()
    """A program that stops the service, before a roll-back exchanges its state."""
    start: tuple[str, ...] = ()
    """A program that starts it again."""
    health: tuple[str, ...] = ()
    """A program that exits with 0 if the service works."""
    health_timeout: float = 60.0
    """Seconds in which `health`, tried again and again, has to succeed."""
    undo: tuple[str, ...] = ()
    """A program that takes a deployment back that `guard` found failed."""
    follow: Literal["restore", "tell"] = "tell"
    """What `follow` does where the present revision was here before."""
    drill_check: tuple[str, ...] = ()
    """A program that looks at what a drill restored."""
    timeout: float | None = None
    """Seconds that each program of this service may take."""
    run_as: str | None = None
    """The user that hooks, and the programs of parts without a `run-as` of their own, are run as."""


class Service(ServiceKeys, frozen=True):
    """What is kept of one service."""

    revision: Revision | None = None
    parts: dict[str, PartSettings] = {}
    """In the order in which they are taken."""
    keep: Keep | None = None
    """None: all."""


class Settings(_Table, frozen=True):
    """A whole castore.toml."""

    store: str | None = None
    """The store's directory, absolute."""
    recipients: tuple[str, ...] = ()
    """To whom a store made with these settings is sealed: castore-pub-..."""
    reference_cache: int | None = None
    """Bytes that this machine may keep unsealed to make deltas with; 0: none; None: as it sees fit."""
    host: str | None = None
    """The name under which this machine is certified; None: the one that it has in the store."""
    former_hosts: tuple[str, ...] = ()
    """Names, or beginnings of ids, that this machine was known by before."""
    isolate_writers: bool = False
    """Whether new snapshots share nothing that another machine has added."""
    service: dict[str, Service] = {}
    """The services that are described without a mistake."""
    path: str = ""
    """The file that this was read from."""
    faults: dict[str, tuple[str, ...]] = {}
    """What is wrong with each of the other services."""
    partial: dict[str, Service] = {}
    """What could be understood of those: to look for more mistakes, never to be acted on."""

    def of(self, name: str) -> Service | None:
        """Return the description of a service; None: there is none. Raises ConfigProblemsError."""
        if problems := self.faults.get(name):
            raise ConfigProblemsError(*problems)
        return self.service.get(name)

    def refuse_faults(self) -> None:
        """Raise ConfigProblemsError where the description of any service has a mistake."""
        if self.faults:
            raise ConfigProblemsError(*(one for problems in self.faults.values() for one in problems))


class ServiceTable(ServiceKeys, frozen=True):
    """Service, its parts not decoded."""

    revision: dict[str, Any] | None = None
    parts: dict[str, Any] = {}
    keep: dict[str, Any] | None = None


class DefaultsTable(ServiceKeys, frozen=True):
    """What holds for every service that does not say otherwise."""

    revision: dict[str, Any] | None = None
    keep: dict[str, Any] | None = None
    exclude: tuple[str, ...] = ()
    """Patterns of every tree, which come before its own."""


class HooksTable(_Table, frozen=True):
    """What a part's table holds beside its engine's keys."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    run_as: str | None = None


class TopTable(_Table, frozen=True):
    """Settings, its services not decoded."""

    store: str | None = None
    recipients: tuple[str, ...] = ()
    reference_cache: str | None = None
    host: str | None = None
    former_hosts: tuple[str, ...] = ()
    isolate_writers: bool = False
    service: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
