"""The command `config`: `check`, `show` and `init`."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.messages import summarize
from castore.cli.options import LocalPath, SubcommandGroup, common, json_option, print_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from castore.cli.context import CliContext
    from castore.services.config import Service, Settings, TreePart


@click.group(cls=SubcommandGroup, epilog="Example: castore config check")
def config() -> None:
    """Check, show or write castore.toml."""


@config.command("init", epilog="Example: castore config init /etc/castore/castore.toml")
@click.argument("file", required=False, type=LocalPath())
@common
def write_config(context: CliContext, file: str | None) -> None:
    """Write a commented castore.toml for the services found on this machine.

    FILE is by default /etc/castore/castore.toml for root, else ~/.config/castore/castore.toml; `-` prints it.
    An existing file is never overwritten.
    """
    from castore.cli import environment
    from castore.errors import UsageError
    from castore.fs.durable import make_private_directory
    from castore.services.config import load
    from castore.services.detect import detect, document
    from castore.state import directories

    path = file or environment.config_to_write(context.config)
    if path != "-" and os.path.lexists(path):
        raise UsageError(f"{path} exists and is not overwritten; print a new one with: castore config init -")
    store = context.store or environment.store_from_environment()
    found = list(detect())
    body = document(directories.store_address(store) if store else None, found)
    if path == "-":
        click.echo(body, nl=False)
        return
    path = directories.absolute(path)
    make_private_directory(os.path.dirname(path))
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as written:
        written.write(body)
    load(path, home=directories.home(), programs=False)
    for service in found:
        summarize(f"{service.name}: {service.why}{'' if service.usable else ' Its lines are comments.'}")
    summarize(f"wrote {path}; change it where needed, then: castore config check")


@config.command(epilog="Example: castore config show")
@json_option
@common
def show(context: CliContext, as_json: bool) -> None:  # noqa: ARG001 - it is JSON anyway
    """Print the configuration as castore understands it, with all defaults."""
    import msgspec

    settings = context.required_settings()
    shown = msgspec.to_builtins(settings)
    del shown["partial"]
    if not settings.faults:
        del shown["faults"]
    print_json(shown)
    settings.refuse_faults()


@config.command(epilog="Example: castore config check")
@json_option
@common
def check(context: CliContext, as_json: bool) -> None:
    """Check that everything that castore.toml names exists: programs, databases, paths, store, identity."""
    from castore.errors import ConfigError
    from castore.services.config import load
    from castore.state import directories

    settings = context.required_settings()
    faults = load(settings.path, home=directories.home(), tolerant=True).faults  # with missing programs
    checks = _Checks(shown=not as_json)
    checks.run("store", lambda: _check_store(context, checks))
    for problem in (problem_line for problems in faults.values() for problem_line in problems):
        where, _, what = problem.removeprefix(f"{settings.path}: ").partition(": ")
        checks.report(where, what)
    for name, service in {**settings.service, **settings.partial}.items():
        _check_service(checks, name, service)
    if as_json:
        print_json({"path": settings.path, "checks": checks.results})
    if failed := sum(result["needed"] and not result["ok"] for result in checks.results):
        raise ConfigError(f"{settings.path}: {formatting.count(failed, 'problem')}, as listed above")


class _Checks:
    """Collects the results of checks, and prints each if `shown`."""

    def __init__(self, *, shown: bool) -> None:
        self.results: list[dict[str, Any]] = []
        """For JSON, in the order of the checks."""
        self._shown = shown

    def report(self, what: str, problem: str | None, *, needed: bool = True) -> None:
        """Add the result of a check. problem: None if there is none. needed: whether it is an error."""
        self.results.append({"what": what, "ok": problem is None, "needed": needed, "problem": problem})
        if not self._shown:
            return
        if problem is None:
            summarize(f"{what}: ok")
        else:
            print(f"{what}: {problem}")

    def run(self, what: str, action: Callable[[], object]) -> None:
        """Run a check, and add its result: a CastoreError is a problem."""
        from castore.errors import CastoreError

        try:
            action()
        except CastoreError as error:
            self.report(what, str(error))
        else:
            self.report(what, None)


def _check_store(context: CliContext, checks: _Checks) -> None:
    """Open the store, and report whether the identity is available without asking. Raises CastoreError."""
    from castore.cli import identity_files
    from castore.errors import CastoreError

    with context.open_internal() as store:
        try:
            with identity_files.unasked():
                store.keys.check_identity()
        except CastoreError as error:
            following = _following(context.required_settings())
            users = "restore, rollback and guard need it"
            if following:
                users += f", and castore follow, for which {' and '.join(following)} set follow = \"restore\""
            checks.report("identity", f"not available; {users} ({error})", needed=bool(following))
        else:
            checks.report("identity", None)
        store.check_settings()


def _following(settings: Settings) -> list[str]:
    """Return the services whose state `follow` restores without being asked."""
    described = {**settings.service, **settings.partial}
    return [name for name, service in described.items() if service.follow == "restore"]


def _check_service(checks: _Checks, name: str, service: Service) -> None:
    """Check the revision and the parts of a service."""
    from castore.process.standard_error import errors_unshown
    from castore.process.users import owner_hint
    from castore.services.config import TreePart
    from castore.services.revision import current

    checks.run(f"{name}: revision", lambda: current(service.revision, service.timeout))
    for part, described in service.parts.items():
        own = described.source
        if isinstance(own, TreePart):
            checks.run(f"{name}: {part}", functools.partial(_check_tree, service, part, own))
        else:
            with errors_unshown():
                checks.run(f"{name}: {part}", own.check)
        path = getattr(own, "path", None)
        if path is not None and described.run_as is None:
            hint = owner_hint(path, becomes_owner=described.engine == "sqlite")
            if hint is not None:
                checks.report(f"{name}: {part}: run-as", hint, needed=False)


def _check_tree(service: Service, part: str, own: TreePart) -> None:
    """Check that a tree can be listed, its patterns, and its overlaps. Raises ConfigError, UsageError."""
    from castore.content.scan.exclude import Exclude
    from castore.errors import ConfigError
    from castore.fs.beneath import open_top
    from castore.services.nested_parts import refuse_overlaps

    if not (os.access(own.path, os.R_OK | os.X_OK) and os.path.isdir(own.path)):
        raise ConfigError(f"cannot read the tree {own.path}")
    try:
        os.close(open_top(own.path))
    except OSError as error:
        raise ConfigError(f"cannot read the tree {own.path}: {error.strerror}") from error
    if own.exclude:
        Exclude(own.exclude, own.path)
    refuse_overlaps(service, part)
