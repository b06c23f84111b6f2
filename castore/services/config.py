"""castore.toml: which store, whose recipients, and what there is to keep of each service.

It is decoded level by level, so that a complaint names the exact key. A part's table is read
by the engine that its `engine` names (castore/services/engines).
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import threading
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

import msgspec

from castore import engines
from castore.errors import ConfigError, ConfigProblemsError, UntrustedPathError, UsageError
from castore.fs.trusted import read_trusted
from castore.model.names import check_host, check_name, check_revision
from castore.process.users import account_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

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


class _ServiceKeys(_Table, frozen=True, kw_only=True):
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


class Service(_ServiceKeys, frozen=True):
    """What is kept of one service."""

    revision: Revision | None = None
    parts: dict[str, PartSettings] = {}
    """In the order in which they are taken."""
    keep: Keep | None = None
    """None: all."""


_OF_HOOKS: Final = ("before", "after", "run-as")
"""Keys of a part that are not its engine's, or not only."""
_PROGRAMS: Final = ("before", "after", "stop", "start", "health", "undo", "drill-check")


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


class _ServiceTable(_ServiceKeys, frozen=True):
    """Service, its parts not decoded."""

    revision: dict[str, Any] | None = None
    parts: dict[str, Any] = {}
    keep: dict[str, Any] | None = None


class _DefaultsTable(_ServiceKeys, frozen=True):
    """What holds for every service that does not say otherwise."""

    revision: dict[str, Any] | None = None
    keep: dict[str, Any] | None = None
    exclude: tuple[str, ...] = ()
    """Patterns of every tree, which come before its own."""


class _HooksTable(_Table, frozen=True):
    """What a part's table holds beside its engine's keys."""

    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    run_as: str | None = None


class _TopTable(_Table, frozen=True):
    """Settings, its services not decoded."""

    store: str | None = None
    recipients: tuple[str, ...] = ()
    reference_cache: str | None = None
    host: str | None = None
    former_hosts: tuple[str, ...] = ()
    isolate_writers: bool = False
    service: dict[str, Any] = {}
    defaults: dict[str, Any] = {}


def load(
    path: str,
    *,
    home: str | None = None,
    programs: bool | Collection[str] = True,
    tolerant: bool = False,
) -> Settings:
    """Read and check a castore.toml.

    home: what a leading `~/` of a path stands for; None: such a path is refused.
    programs: check that the programs exist that all services name, or that these services name. A caller
    that only wants to know where the store is, on a machine that has none of the services yet, does without.
    tolerant: accept mistakes in the descriptions of services: `Settings.of` raises them for its service only.

    Raises ConfigProblemsError, with all mistakes, each as `FILE: KEY.PATH: reason`.
    """
    import tomllib  # noqa: PLC0415 - 10 ms, and most commands read no castore.toml

    try:
        # It names programs to run. An editor may have put a byte-order mark at its beginning.
        document = tomllib.loads(read_trusted(path).decode("utf-8-sig"))
    except UntrustedPathError as error:
        raise ConfigError(f"{path}: not read: {error}") from error
    except OSError as error:
        untrusted = "not read" if error.errno is None else "cannot read this file"
        raise ConfigError(f"{path}: {untrusted}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}: not TOML: line {line} is not valid UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    except RecursionError:
        raise ConfigError(f"{path}: not TOML that can be read: it is nested too deeply") from None
    settings = _Reader(path, home, programs=programs).settings(document)
    if not tolerant:
        settings.refuse_faults()
    return settings


_Decoded = TypeVar("_Decoded", bound=msgspec.Struct)
_Keys = tuple[str | int, ...]


class _Reader:
    """One reading of one file; every method is given the keys that lead to its value."""

    def __init__(
        self, path: str, home: str | None, *, programs: bool | Collection[str]
    ) -> None:
        self._path = path
        self._home = home
        self._programs = programs
        self._defaults: dict[str, Any] = {}
        """The keys that a service gets where it has none of its own."""
        self._exclude: tuple[str, ...] = ()
        self._checked = False
        """Whether the service's programs are looked for."""
        self._problems: list[str] = []
        """All mistakes so far of the service, or of what concerns every service."""

    def settings(self, document: dict[str, Any]) -> Settings:
        found = Settings(path=self._path)
        with self._collecting():
            found = self._top(document)
        services, faults = found.service, {}
        tables = document.get("service")
        for name, table in tables.items() if isinstance(tables, dict) else ():
            general, self._problems = self._problems, []
            with self._collecting():
                services[name] = self._service(name, table, ("service", name))
            if self._problems:
                faults[name] = tuple(self._problems)
            self._problems = general
        if self._problems:
            raise ConfigProblemsError(*self._problems, *(one for own in faults.values() for one in own))
        partial = {name: services.pop(name) for name in faults if name in services}
        return msgspec.structs.replace(found, service=services, faults=faults, partial=partial)

    def _top(self, document: dict[str, Any]) -> Settings:
        top = self._convert_partly(document, _TopTable, ())
        store = size = None
        recipients: tuple[str, ...] = ()
        with self._collecting():
            store = None if top.store is None else self._absolute(top.store, ("store",))
        with self._collecting():
            recipients = self._recipients(top.recipients)
        self._read_defaults(top.defaults)
        with self._collecting():
            size = self._size(top.reference_cache, ("reference-cache",))
        with self._collecting():
            self._check_host(top.host, ("host",))
        for name in top.former_hosts:
            with self._collecting():
                self._check_host(name, ("former-hosts",))
        return Settings(
            store=store,
            recipients=recipients,
            reference_cache=size,
            host=top.host,
            former_hosts=top.former_hosts,
            isolate_writers=top.isolate_writers,
            service={},
            path=self._path,
        )

    def _check_host(self, host: str | None, keys: _Keys) -> None:
        if host is None:
            return
        if not host:
            raise self._error(keys, "it is empty; the name of a host was expected")
        try:
            check_host(host)
        except UsageError as error:
            raise self._error(keys, str(error)) from error

    def _read_defaults(self, table: dict[str, Any]) -> None:
        keys: _Keys = ("defaults",)
        with self._collecting():
            defaults = self._convert(table, _DefaultsTable, keys)
            with self._collecting():
                if defaults.revision is not None:
                    self._revision(defaults.revision, (*keys, "revision"))
            with self._collecting():
                if defaults.keep is not None:
                    self._keep(defaults.keep, (*keys, "keep"))
            self._check_keys(defaults, keys)
            self._exclude = defaults.exclude
            self._defaults = {key: value for key, value in table.items() if key != "exclude"}

    @contextlib.contextmanager
    def _collecting(self) -> Iterator[None]:
        """Note the mistake that the block raises, and go on after it."""
        try:
            yield
        except ConfigProblemsError as error:
            self._problems += error.problems
        except ConfigError as error:
            self._problems.append(str(error))

    def _size(self, text: str | None, keys: _Keys) -> int | None:
        """Return the bytes that a size like "5 GB" or "off" stands for."""
        if text is None or text == "off":
            return None if text is None else 0
        match = _SIZE.fullmatch(text)
        if match is None:
            raise self._error(
                keys, f'a size such as "5 GB" or "500 MiB", or "off", was expected, not {text!r}'
            )
        # No disk is larger.
        return int(min(float(match[1]) * _UNITS[match[2].upper()], 1 << 62))

    def _recipients(self, texts: tuple[str, ...]) -> tuple[str, ...]:
        if texts:
            # libsodium is loaded only for a file that names recipients.
            from castore.crypto.identity import Recipient  # noqa: PLC0415

            for position, text in enumerate(texts):
                try:
                    Recipient.parse(text)
                except UsageError as error:
                    raise self._error(("recipients", position), str(error)) from error
        return texts

    def _service(self, name: str, table: Any, keys: _Keys) -> Service:
        with self._collecting():
            self._named("service", name, keys)
        self._checked = self._programs if isinstance(self._programs, bool) else name in self._programs
        if not isinstance(table, dict):
            raise self._error(keys, f"expected a table, got {_kind_of(table)}")
        service = self._convert_partly({**self._defaults, **table}, _ServiceTable, keys)
        self._check_keys(service, keys)
        revision = keep = None
        with self._collecting():
            if service.revision is not None:
                revision = self._revision(service.revision, (*keys, "revision"))
        with self._collecting():
            if service.keep is not None:
                keep = self._keep(service.keep, (*keys, "keep"))
        parts = {}
        for part, part_table in service.parts.items():
            with self._collecting():
                before = len(self._problems)
                found = self._part(part, part_table, service, (*keys, "parts", part))
                if len(self._problems) == before:
                    parts[part] = found
        plain = {field: getattr(service, field) for field in _ServiceKeys.__struct_fields__}
        return Service(revision=revision, keep=keep, parts=parts, **plain)

    def _check_keys(self, service: _ServiceKeys, keys: _Keys) -> None:
        for key in _PROGRAMS:
            if argv := getattr(service, key.replace("-", "_")):
                with self._collecting():
                    self._program(argv, (*keys, key))
        with self._collecting():
            self._check_user(service.run_as, (*keys, "run-as"))
        with self._collecting():
            self._check_schedule(service.schedule, (*keys, "schedule"))
        for key, seconds in (("timeout", service.timeout), ("health-timeout", service.health_timeout)):
            with self._collecting():
                self._check_seconds(seconds, (*keys, key))

    def _check_user(self, name: str | None, keys: _Keys) -> None:
        """Refuse a user that no program can be run as here."""
        if self._checked:
            try:
                account_of(name)
            except ConfigError as error:
                raise self._error(keys, str(error)) from None

    def _check_schedule(self, text: str | None, keys: _Keys) -> None:
        if text is None or _TIME.fullmatch(text) or len(text.split()) == 5:
            return
        raise self._error(keys, f'"HH:MM" or five fields as in a crontab were expected, not {text!r}')

    def _check_seconds(self, seconds: float | None, keys: _Keys) -> None:
        """Refuse what no clock can wait for: TOML has nan and inf, too."""
        if seconds is None or (math.isfinite(seconds) and 0 < seconds <= threading.TIMEOUT_MAX):
            return
        raise self._error(keys, f"seconds, a number above 0, were expected, not {seconds:g}")

    def _keep(self, table: dict[str, Any], keys: _Keys) -> Keep:
        keep = self._convert(table, Keep, keys)
        rules = {field.encode_name: getattr(keep, field.name) for field in msgspec.structs.fields(Keep)}
        for name, value in rules.items():
            if isinstance(value, int) and value < 0:
                raise self._error((*keys, name), f"a number from 0 on was expected, not {value}")
        if not any(rules.get(name) for name in table):
            reason = "no rule in it keeps anything: say how many, as in { daily = 7 }; without it all stay"
            raise self._error(keys, reason)
        if keep.within is not None and parse_span(keep.within) is None:
            reason = f'a span like "36h" or "14d" was expected, not {keep.within!r}'
            raise self._error((*keys, "within"), reason)
        return keep

    def _revision(self, table: dict[str, Any], keys: _Keys) -> Revision:
        revision = self._convert(table, Revision, keys)
        if len(table) != 1:
            raise self._error(keys, "exactly one of value, link, command and paths was expected")
        if revision.value is not None:
            try:
                check_revision(revision.value)
            except UsageError as error:
                raise self._error((*keys, "value"), str(error)) from error
            if not revision.value:
                raise self._error((*keys, "value"), "it is empty")
        if revision.command is not None:
            self._program(revision.command, (*keys, "command"))
        if revision.link is not None:
            link = self._absolute(revision.link, (*keys, "link"))
            revision = msgspec.structs.replace(revision, link=link)
        if revision.paths is not None:
            if not revision.paths:
                raise self._error((*keys, "paths"), "it is empty")
            paths = [
                self._absolute(path, (*keys, "paths", at)) for at, path in enumerate(revision.paths)
            ]
            revision = msgspec.structs.replace(revision, paths=tuple(paths))
        return revision

    def _part(
        self, name: str, table: Any, service: _ServiceTable, keys: _Keys
    ) -> PartSettings:
        with self._collecting():
            self._named("part", name, keys)
        if not isinstance(table, dict):
            raise self._error(keys, f"expected a table, got {_kind_of(table)}")
        engine = table.get("engine")
        if engine is None:
            known = " or ".join(f'"{one}"' for one in ("tree", *engines.names()))
            raise self._error((*keys, "engine"), f"this key is missing; {known} was expected")
        hooks: dict[str, Any] = {key: table[key] for key in _OF_HOOKS if key in table}
        around = self._convert(hooks, _HooksTable, keys)
        run_as = service.run_as if around.run_as is None else around.run_as
        with self._collecting():
            self._check_user(around.run_as, (*keys, "run-as"))
        for key, argv in (("before", around.before), ("after", around.after)):
            if argv:
                with self._collecting():
                    self._program(argv, (*keys, key))
        own = {key: value for key, value in table.items() if key not in {"engine", *_OF_HOOKS}}
        if engine == "tree":
            tree = self._convert_partly(own, TreePart, keys)
            path = self._absolute(tree.path, (*keys, "path"))
            exclude = (*self._exclude, *tree.exclude)
            source: TreePart | Engine = msgspec.structs.replace(tree, path=path, exclude=exclude)
        else:
            source = self._engine(engine, own, service, run_as, keys)
        runs = bool(around.before or around.after) or getattr(source, "runs_programs", False)
        if around.run_as is not None and not runs:
            reason = f"the engine {engine!r} runs no program and the part has no hooks: remove this key"
            raise self._error((*keys, "run-as"), reason)
        return PartSettings(engine, source, around.before, around.after, run_as)

    def _engine(
        self, name: Any, table: dict[str, Any], service: _ServiceTable, run_as: str | None, keys: _Keys
    ) -> Engine:
        if not isinstance(name, str):
            raise self._error((*keys, "engine"), f"expected text, got {name!r}")
        try:
            kind = engines.find(name)
        except UsageError as error:
            raise self._error((*keys, "engine"), str(error)) from error
        part: Engine = self._convert_partly(table, kind, keys)
        changes: dict[str, Any] = {}
        with self._collecting():
            self._check_seconds(part.timeout, (*keys, "timeout"))
        encoded = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
        for field in kind.paths:
            if (path := getattr(part, field)) is not None:
                with self._collecting():
                    changes[field] = self._absolute(path, (*keys, encoded[field]))
        for field in kind.programs:
            argv = getattr(part, field)
            if argv or encoded[field] in table:
                with self._collecting():
                    self._program(argv, (*keys, encoded[field]))
        if part.timeout is None and service.timeout is not None:
            changes["timeout"] = service.timeout
        if kind.runs_programs:
            changes["run_as"] = run_as
        return msgspec.structs.replace(part, **changes)

    def _named(self, what: str, name: str, keys: _Keys) -> None:
        try:
            check_name(what, name)
        except UsageError as error:
            raise self._error(keys, str(error)) from error

    def _absolute(self, path: str, keys: _Keys) -> str:
        """Return `path` with `~` replaced; refuse what depends on where castore is started."""
        if self._home is not None and (path == "~" or path.startswith("~/")):
            path = self._home + path[1:]
        if not os.path.isabs(path):
            homeless = ", since no home directory is known" if path.startswith("~") else ""
            raise self._error(
                keys, f"{path!r} is a relative path{homeless}; an absolute one was expected"
            )
        if "\0" in path:
            raise self._error(keys, f"{path!r} cannot be a path: it holds a zero byte")
        return os.path.normpath(path)

    def _program(self, argv: tuple[str, ...], keys: _Keys) -> None:
        if not argv or not argv[0]:
            raise self._error(keys, "it is empty; a program and its arguments were expected")
        if any("\0" in argument for argument in argv):
            raise self._error(keys, "an argument holds a zero byte, which no program can be given")
        program = argv[0]
        if "/" in program and not os.path.isabs(program):
            raise self._error(
                (*keys, 0),
                f"{program!r} is a relative path; an absolute one, or a name to be looked up in "
                "PATH, was expected",
            )
        if self._checked and shutil.which(program) is None:
            where = "there" if os.path.isabs(program) else "in PATH"
            raise self._error((*keys, 0), f"there is no program {program!r} {where}")

    def _convert(self, table: dict[str, Any], kind: type[_Decoded], keys: _Keys) -> _Decoded:
        """Decode a table. Raises ConfigProblemsError with what is wrong with each of its keys."""
        before, self._problems = self._problems, []
        try:
            with self._collecting():
                decoded = self._convert_partly(table, kind, keys)
            found = self._problems
        finally:
            self._problems = before
        if found:
            raise ConfigProblemsError(*found)
        return decoded

    def _convert_partly(self, table: dict[str, Any], kind: type[_Decoded], keys: _Keys) -> _Decoded:
        """Decode a table; note what is wrong with each key, and decode the others.

        Raises ConfigProblemsError where a key is missing or unusable that is required.
        """
        left = dict(table)
        while True:
            try:
                return msgspec.convert(left, kind)
            except msgspec.ValidationError as error:
                refusal, key = self._refusal(kind, keys, str(error), left)
            if key not in left:
                # A required key that was removed here has its own complaint already.
                raise ConfigProblemsError(*([] if key in table else [str(refusal)]))
            self._problems.append(str(refusal))
            del left[key]

    def _refusal(
        self, kind: type[msgspec.Struct], keys: _Keys, complaint: str, table: dict[str, Any]
    ) -> tuple[ConfigError, str]:
        """Put msgspec's complaint about `table` in castore.toml's own words; return its key, too."""
        names = [field.encode_name for field in msgspec.structs.fields(kind)]
        if unknown := [name for name in table if name not in names]:
            error = self._error((*keys, unknown[0]), f"unknown key; known here: {', '.join(names)}")
            return error, unknown[0]
        if missing := _MISSING.match(complaint):
            return self._error((*keys, missing[1]), "this key is missing"), missing[1]
        depth = len(keys)
        reason, _, place = complaint.partition(" - at ")
        value: Any = table
        for name, position in _STEP.findall(place):
            # msgspec does not say which key of a table of tables: the one that holds none.
            step = name or (
                int(position)
                if position.isdigit()
                else next(key for key, inner in value.items() if not isinstance(inner, dict))
            )
            keys, value = (*keys, step), value[step]
        for word, plain in _WORDS.items():
            reason = reason.replace(f"`{word}`", plain)
        key = str(keys[depth]) if len(keys) > depth else ""
        return self._error(keys, reason[:1].lower() + reason[1:]), key

    def _error(self, keys: _Keys, reason: str) -> ConfigError:
        return ConfigError(f"{self._path}: {_dotted(keys)}: {reason}")


_UNITS: Final = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12} | {
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}
_SIZE: Final = re.compile("([0-9]+(?:[.][0-9]+)?) ?(" + "|".join(_UNITS) + ")", re.IGNORECASE)
_TIME: Final = re.compile("([01]?[0-9]|2[0-3]):[0-5][0-9]")
_SPAN: Final = re.compile("([0-9]{1,9}) ?([hdwmy])")
_HOURS: Final = {"h": 1, "d": 24, "w": 7 * 24, "m": 31 * 24, "y": 366 * 24}
_MISSING: Final = re.compile("Object missing required field `(.*?)`")
_STEP: Final = re.compile(r"\.([A-Za-z0-9_-]+)|\[(\d+|\.\.\.)\]")
_BARE: Final = re.compile("[A-Za-z0-9_-]+")
_WORDS: Final = {
    "str": "text",
    "str | null": "text",
    "int": "a number",
    "float": "a number",
    "bool": "true or false",
    "array": "a list",
    "array | null": "a list",
    "object": "a table",
    "object | null": "a table",
}
"""msgspec's names of types, which are JSON's, and what a reader of TOML calls them."""


def _kind_of(value: Any) -> str:
    """Return what a reader of TOML calls a value's type."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    return "a list" if isinstance(value, list) else "text"


def parse_span(text: str) -> int | None:
    """Return the seconds of a span like "36h", "14d", "8w", "6m", "1y"; None if it is none."""
    match = _SPAN.fullmatch(text)
    return int(match[1]) * _HOURS[match[2]] * 3600 if match else None


def _dotted(keys: _Keys) -> str:
    """Return keys as castore.toml would write them; a list's positions in brackets."""
    text = ""
    for key in keys:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            dot = "." if text else ""
            # A TOML string is quoted and escaped as one of JSON.
            text += dot + (key if _BARE.fullmatch(key) else msgspec.json.encode(key).decode())
    return text
