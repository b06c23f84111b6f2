"""Decode a castore.toml, level by level, so that an error names the exact key.

The table of a part is decoded by the class of the engine that its `engine` names (castore/engines).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from castore import engines
from castore.errors import ConfigError, ConfigProblemsError, UntrustedPathError, UsageError
from castore.fs.trusted import read_trusted
from castore.model.names import check_revision
from castore.services.config.problems import Problems, kind_of
from castore.services.config.settings import (
    DefaultsTable,
    HooksTable,
    Keep,
    PartSettings,
    Revision,
    Service,
    ServiceKeys,
    ServiceTable,
    Settings,
    TopTable,
    TreePart,
)
from castore.services.config.values import ValueChecks, parse_span

if TYPE_CHECKING:
    from collections.abc import Collection

    from castore.engines.base import Engine
    from castore.services.config.problems import Keys

_OF_HOOKS: Final = ("before", "after", "run-as")
"""Keys that every part may have, whatever its engine."""
_PROGRAMS: Final = ("before", "after", "stop", "start", "health", "undo", "drill-check")


def load(
    path: str,
    *,
    home: str | None = None,
    programs: bool | Collection[str] = True,
    tolerant: bool = False,
) -> Settings:
    """Read and check a castore.toml.

    home: replaces a leading `~` of a path; None: such a path is refused.
    programs: check that the programs of all services exist, or those of the named services. A caller that
    needs only the store's path, on a machine without the services, passes False.
    tolerant: accept mistakes in the descriptions of services; `Settings.of` raises those of its service.

    Raises ConfigError if the file cannot be read or is not TOML, and ConfigProblemsError with all mistakes,
    each as `FILE: KEY.PATH: reason`.
    """
    import tomllib  # noqa: PLC0415 - takes 10 ms, and most commands read no castore.toml

    try:
        # The file names programs to run, so its owner is checked. Editors may write a byte-order mark.
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
        raise ConfigError(f"{path}: cannot read this TOML: it is nested too deeply") from None
    settings = _Decoder(path, home, programs=programs).settings(document)
    if not tolerant:
        settings.refuse_faults()
    return settings


class _Decoder:
    """Decodes one file; every method takes the path (`keys`) of its table."""

    def __init__(self, path: str, home: str | None, *, programs: bool | Collection[str]) -> None:
        self._path = path
        self._programs = programs
        self._problems = Problems(path)
        self._values = ValueChecks(self._problems, home)
        self._defaults: dict[str, Any] = {}
        """Values of keys that a service does not set itself."""
        self._exclude: tuple[str, ...] = ()

    def settings(self, document: dict[str, Any]) -> Settings:
        settings = Settings(path=self._path)
        with self._problems.collecting():
            settings = self._top(document)
        services, faults = settings.service, {}
        tables = document.get("service")
        for name, table in tables.items() if isinstance(tables, dict) else ():
            general, self._problems.found = self._problems.found, []
            with self._problems.collecting():
                services[name] = self._service(name, table, ("service", name))
            if self._problems.found:
                faults[name] = tuple(self._problems.found)
            self._problems.found = general
        if self._problems.found:
            of_services = (problem for own in faults.values() for problem in own)
            raise ConfigProblemsError(*self._problems.found, *of_services)
        partial = {name: services.pop(name) for name in faults if name in services}
        return msgspec.structs.replace(settings, service=services, faults=faults, partial=partial)

    def _top(self, document: dict[str, Any]) -> Settings:
        top = self._problems.convert_partly(document, TopTable, ())
        store = size = upload = download = None
        recipients: tuple[str, ...] = ()
        with self._problems.collecting():
            store = None if top.store is None else self._values.store_address(top.store, ("store",))
        with self._problems.collecting():
            recipients = self._values.check_recipients(top.recipients)
        self._read_defaults(top.defaults)
        with self._problems.collecting():
            size = self._values.size(top.base_cache, ("base-cache",))
        with self._problems.collecting():
            upload = self._values.rate(top.limit_upload, ("limit-upload",))
        with self._problems.collecting():
            download = self._values.rate(top.limit_download, ("limit-download",))
        with self._problems.collecting():
            self._values.check_host(top.host, ("host",))
        for name in top.former_hosts:
            with self._problems.collecting():
                self._values.check_host(name, ("former-hosts",))
        return Settings(
            store=store,
            limit_upload=upload,
            limit_download=download,
            recipients=recipients,
            base_cache=size,
            host=top.host,
            former_hosts=top.former_hosts,
            isolate_writers=top.isolate_writers,
            service={},
            path=self._path,
        )

    def _read_defaults(self, table: dict[str, Any]) -> None:
        keys: Keys = ("defaults",)
        with self._problems.collecting():
            defaults = self._problems.convert(table, DefaultsTable, keys)
            with self._problems.collecting():
                if defaults.revision is not None:
                    self._revision(defaults.revision, (*keys, "revision"))
            with self._problems.collecting():
                if defaults.keep is not None:
                    self._keep(defaults.keep, (*keys, "keep"))
            self._check_keys(defaults, keys)
            self._exclude = defaults.exclude
            self._defaults = {key: value for key, value in table.items() if key != "exclude"}

    def _service(self, name: str, table: Any, keys: Keys) -> Service:
        with self._problems.collecting():
            self._values.check_name("service", name, keys)
        programs = self._programs
        self._values.programs_checked = programs if isinstance(programs, bool) else name in programs
        if not isinstance(table, dict):
            raise self._problems.error(keys, f"expected a table, got {kind_of(table)}")
        service = self._problems.convert_partly({**self._defaults, **table}, ServiceTable, keys)
        self._check_keys(service, keys)
        revision = keep = None
        with self._problems.collecting():
            if service.revision is not None:
                revision = self._revision(service.revision, (*keys, "revision"))
        with self._problems.collecting():
            if service.keep is not None:
                keep = self._keep(service.keep, (*keys, "keep"))
        parts = {}
        for part, part_table in service.parts.items():
            with self._problems.collecting():
                before = len(self._problems.found)
                part_settings = self._part(part, part_table, service, (*keys, "parts", part))
                if len(self._problems.found) == before:
                    parts[part] = part_settings
        plain = {field: getattr(service, field) for field in ServiceKeys.__struct_fields__}
        return Service(revision=revision, keep=keep, parts=parts, **plain)

    def _check_keys(self, service: ServiceKeys, keys: Keys) -> None:
        for key in _PROGRAMS:
            if argv := getattr(service, key.replace("-", "_")):
                with self._problems.collecting():
                    self._values.check_program(argv, (*keys, key))
        with self._problems.collecting():
            self._values.check_user(service.run_as, (*keys, "run-as"))
        with self._problems.collecting():
            self._values.check_schedule(service.schedule, (*keys, "schedule"))
        for key, seconds in (("timeout", service.timeout), ("health-timeout", service.health_timeout)):
            with self._problems.collecting():
                self._values.check_seconds(seconds, (*keys, key))

    def _keep(self, table: dict[str, Any], keys: Keys) -> Keep:
        keep = self._problems.convert(table, Keep, keys)
        rules = {field.encode_name: getattr(keep, field.name) for field in msgspec.structs.fields(Keep)}
        for name, value in rules.items():
            if isinstance(value, int) and value < 0:
                raise self._problems.error((*keys, name), f"a number from 0 on was expected, not {value}")
        if not any(rules.get(name) for name in table):
            reason = "no rule in it keeps anything: write { daily = 7 }, or remove the key to keep all"
            raise self._problems.error(keys, reason)
        if keep.within is not None and parse_span(keep.within) is None:
            reason = f'a span like "36h" or "14d" was expected, not {keep.within!r}'
            raise self._problems.error((*keys, "within"), reason)
        return keep

    def _revision(self, table: dict[str, Any], keys: Keys) -> Revision:
        revision = self._problems.convert(table, Revision, keys)
        if len(table) != 1:
            raise self._problems.error(keys, "exactly one of value, link, command and paths was expected")
        if revision.value is not None:
            try:
                check_revision(revision.value)
            except UsageError as error:
                raise self._problems.error((*keys, "value"), str(error)) from error
            if not revision.value:
                raise self._problems.error((*keys, "value"), "it is empty")
        if revision.command is not None:
            self._values.check_program(revision.command, (*keys, "command"))
        if revision.link is not None:
            link = self._values.absolute(revision.link, (*keys, "link"))
            revision = msgspec.structs.replace(revision, link=link)
        if revision.paths is not None:
            if not revision.paths:
                raise self._problems.error((*keys, "paths"), "it is empty")
            listed = enumerate(revision.paths)
            paths = tuple(self._values.absolute(path, (*keys, "paths", at)) for at, path in listed)
            revision = msgspec.structs.replace(revision, paths=paths)
        return revision

    def _part(self, name: str, table: Any, service: ServiceTable, keys: Keys) -> PartSettings:
        with self._problems.collecting():
            self._values.check_name("part", name, keys)
        if not isinstance(table, dict):
            raise self._problems.error(keys, f"expected a table, got {kind_of(table)}")
        engine = table.get("engine")
        if engine is None:
            known = " or ".join(f'"{engine}"' for engine in ("tree", *engines.names()))
            raise self._problems.error((*keys, "engine"), f"this key is missing; {known} was expected")
        hooks: dict[str, Any] = {key: table[key] for key in _OF_HOOKS if key in table}
        around = self._problems.convert(hooks, HooksTable, keys)
        run_as = service.run_as if around.run_as is None else around.run_as
        with self._problems.collecting():
            self._values.check_user(around.run_as, (*keys, "run-as"))
        for key, argv in (("before", around.before), ("after", around.after)):
            if argv:
                with self._problems.collecting():
                    self._values.check_program(argv, (*keys, key))
        own = {key: value for key, value in table.items() if key not in {"engine", *_OF_HOOKS}}
        if engine == "tree":
            tree = self._problems.convert_partly(own, TreePart, keys)
            path = self._values.absolute(tree.path, (*keys, "path"))
            exclude = (*self._exclude, *tree.exclude)
            source: TreePart | Engine[Any] = msgspec.structs.replace(tree, path=path, exclude=exclude)
        else:
            source = self._engine(engine, own, service, run_as, keys)
        runs = bool(around.before or around.after)
        runs = runs or (not isinstance(source, TreePart) and source.runs_programs)
        if around.run_as is not None and not runs:
            reason = f"the engine {engine!r} runs no program and the part has no hooks: remove this key"
            raise self._problems.error((*keys, "run-as"), reason)
        return PartSettings(engine, source, around.before, around.after, run_as)

    def _engine(
        self, name: Any, table: dict[str, Any], service: ServiceTable, run_as: str | None, keys: Keys
    ) -> Engine[Any]:
        if not isinstance(name, str):
            raise self._problems.error((*keys, "engine"), f"expected text, got {name!r}")
        try:
            kind = engines.find(name)
        except UsageError as error:
            raise self._problems.error((*keys, "engine"), str(error)) from error
        part: Engine[Any] = self._problems.convert_partly(table, kind, keys)
        changes: dict[str, Any] = {}
        with self._problems.collecting():
            self._values.check_seconds(part.timeout, (*keys, "timeout"))
        encoded = {field.name: field.encode_name for field in msgspec.structs.fields(kind)}
        for field in kind.paths:
            if (path := getattr(part, field)) is not None:
                with self._problems.collecting():
                    changes[field] = self._values.absolute(path, (*keys, encoded[field]))
        for field in kind.programs:
            argv = getattr(part, field)
            if argv or encoded[field] in table:
                with self._problems.collecting():
                    self._values.check_program(argv, (*keys, encoded[field]))
        if part.timeout is None and service.timeout is not None:
            changes["timeout"] = service.timeout
        if kind.runs_programs:
            changes["run_as"] = run_as
        return msgspec.structs.replace(part, **changes)
