"""The settings of a castore.toml as structs, and its tables before their nested tables are decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from castore.errors import ConfigProblemsError

if TYPE_CHECKING:
    from castore.engines.base import Engine


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A TOML table in which unknown keys are refused."""


class Revision(_Table, frozen=True):
    """The source of a service's revision: exactly one of these keys."""

    value: str | None = None
    """The revision itself."""
    link: str | None = None
    """A symbolic link, whose target is the revision."""
    command: tuple[str, ...] | None = None
    """A program that prints the revision."""
    paths: tuple[str, ...] | None = None
    """Files, directories and links: the revision is a hash over their contents and targets."""


class TreePart(_Table, frozen=True):
    """A part that is a directory."""

    path: str
    exclude: tuple[str, ...] = ()
    """Patterns as in .gitignore, relative to `path`."""
    one_file_system: bool = False
    """Leave out file systems that are mounted below `path`."""
    exclude_caches: bool = False
    """Leave out the contents of directories with a CACHEDIR.TAG."""


class PartSettings(_Table, frozen=True):
    """One part of a service."""

    engine: str
    source: TreePart | Engine[Any]
    """The keys of the engine."""
    before: tuple[str, ...] = ()
    """Program to run before the service's parts are taken."""
    after: tuple[str, ...] = ()
    """Program to run after the parts were taken, or failed to be taken."""
    run_as: str | None = None
    """The user that runs `before` and `after`; None: castore's own user."""


class Keep(_Table, frozen=True):
    """Retention rules: a generation is kept if any of these rules keeps it."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0
    per_revision: int = 1
    """Generations per revision. The newest one of the live revision is always kept."""
    within: str | None = None
    """Keep every generation that is not older than this: "36h", "14d"."""


class ServiceKeys(_Table, frozen=True, kw_only=True):
    """The keys of a service that need no further decoding."""

    schedule: str | None = None
    """When the daemon takes a generation: "02:30", or five fields as in a crontab."""
    before: tuple[str, ...] = ()
    """Program to run before the parts are taken."""
    after: tuple[str, ...] = ()
    """Program to run after the parts were taken, or failed to be taken."""
    stop: tuple[str, ...] = ()
    """Program that stops the service before a rollback swaps its state."""
    start: tuple[str, ...] = ()
    """Program that starts the service again."""
    health: tuple[str, ...] = ()
    """Program that exits with 0 if the service works."""
    health_timeout: float = 60.0
    """Seconds within which `health`, which is repeated, has to succeed."""
    undo: tuple[str, ...] = ()
    """Program that reverts a deployment that failed under `guard`."""
    follow: Literal["restore", "tell"] = "tell"
    """What `follow` does for a revision that was configured before: restore its state, or report it."""
    drill_check: tuple[str, ...] = ()
    """Program that checks what a drill restored."""
    timeout: float | None = None
    """Seconds that each program of this service may take."""
    run_as: str | None = None
    """The user that runs the hooks, and the programs of parts without their own `run-as`."""


class Service(ServiceKeys, frozen=True):
    """One service: its parts, hooks and retention rules."""

    revision: Revision | None = None
    parts: dict[str, PartSettings] = {}
    """The parts by name, in the order in which they are taken."""
    keep: Keep | None = None
    """Retention rules; None: every generation is kept."""


class Settings(_Table, frozen=True):
    """The settings of one castore.toml."""

    store: str | None = None
    """The store's directory, absolute, or its URL."""
    recipients: tuple[str, ...] = ()
    """The recipients of a store that is created with these settings: castore-pub-..."""
    base_cache: int | None = None
    """Bytes that the unencrypted base cache of this machine may use; 0: no cache; None: the default."""
    limit_upload: int | None = None
    """Bytes that are sent to the store in a second at most; None: no limit."""
    limit_download: int | None = None
    """Bytes that are received from the store in a second at most; None: no limit."""
    host: str | None = None
    """The name that this machine is certified for; None: the one that it already has in the store."""
    former_hosts: tuple[str, ...] = ()
    """Earlier names of this machine, or beginnings of its earlier ids."""
    isolate_writers: bool = False
    """Whether new snapshots share no chunks with those of other machines."""
    service: dict[str, Service] = {}
    """The services without mistakes, by name."""
    path: str = ""
    """The path of the file that was read."""
    faults: dict[str, tuple[str, ...]] = {}
    """The mistakes of each other service, by name."""
    partial: dict[str, Service] = {}
    """The decodable parts of those services: for finding more mistakes, never to be acted on."""

    def of(self, name: str) -> Service | None:
        """Return a service, or None. Raises ConfigProblemsError if its description has mistakes."""
        if problems := self.faults.get(name):
            raise ConfigProblemsError(*problems)
        return self.service.get(name)

    def refuse_faults(self) -> None:
        """Raise ConfigProblemsError if the description of any service has a mistake."""
        if self.faults:
            raise ConfigProblemsError(*(problem for problems in self.faults.values() for problem in problems))


class ServiceTable(ServiceKeys, frozen=True):
    """A service whose nested tables are not decoded."""

    revision: dict[str, Any] | None = None
    parts: dict[str, Any] = {}
    keep: dict[str, Any] | None = None


class DefaultsTable(ServiceKeys, frozen=True):
    """The keys that apply to every service which does not set them itself."""

    revision: dict[str, Any] | None = None
    keep: dict[str, Any] | None = None
    exclude: tuple[str, ...] = ()
    """Patterns for every tree, applied before the tree's own."""


class HooksTable(_Table, frozen=True):
    """The keys of a part that do not belong to its engine."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    run_as: str | None = None


class TopTable(_Table, frozen=True):
    """The top level of a castore.toml, whose services are not decoded."""

    store: str | None = None
    recipients: tuple[str, ...] = ()
    base_cache: str | None = None
    limit_upload: str | None = None
    limit_download: str | None = None
    host: str | None = None
    former_hosts: tuple[str, ...] = ()
    isolate_writers: bool = False
    service: dict[str, Any] = {}
    defaults: dict[str, Any] = {}
