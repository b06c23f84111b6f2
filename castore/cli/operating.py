"""castore guard, follow, revision, drill, events, config."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from castore.cli import formatting
from castore.cli.document import times
from castore.cli.options import Count, LocalPath, common, host_option, json_option, print_json, trust_option
from castore.cli.quiet import is_quiet, summarize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from castore.cli.context import CliContext
    from castore.cli.progress import Watch
    from castore.model.generation import Generation
    from castore.services.config import Service, TreePart
    from castore.services.follow import Followed
    from castore.services.guard import Guarded
    from castore.services.operations import Work
    from castore.store import Store


def _work(context: CliContext, store: Store, progress: Watch, services: Sequence[str]) -> Work:
    from castore.cli.progress import hushed
    from castore.content.restore.metadata import Ownership
    from castore.services.operations import Work

    def say(line: str) -> None:
        with hushed():
            click.echo(f"castore: {formatting.one_line(line)}", err=True)

    settings = context.required_settings()
    for service in services:
        settings.of(service)  # refuses one whose description has mistakes
    return Work(
        store,
        settings.service,
        Ownership(change=os.geteuid() == 0),
        leave_out=context.own_places(),
        progress=progress,
        say=say,
        note=lambda line: None if is_quiet() else say(line),
        hushed=hushed,
    )


@click.command(
    context_settings={"ignore_unknown_options": False, "allow_interspersed_args": False},
    epilog="Example: castore guard drupal -- guix system reconfigure config.scm",
)
@click.option("--restore", "restoring", is_flag=True, help="Restore an earlier state without asking.")
@json_option
@common
@click.argument("words", metavar="SERVICE... -- COMMAND", nargs=-1, required=True, type=click.UNPROCESSED)
def guard(context: CliContext, restoring: bool, words: tuple[str, ...], as_json: bool) -> None:
    """Run a deployment COMMAND between a snapshot of each SERVICE and its health check.

    If the revision is one that was configured before (COMMAND was a rollback of the system), its newest
    generation is offered to be restored, before the health check. If the command or a check fails, castore
    runs `undo` of castore.toml, restores the state, and exits with 9.
    """
    import sys

    from castore.cli.progress import hushed, watching
    from castore.errors import DeploymentRevertedError
    from castore.model.names import short_revision
    from castore.services.guard import guard as run_guarded

    services, command = _split_command(words)
    with context.open_store() as store, watching() as progress:
        store.sync_generations()
        work = _work(context, store, progress, services)

        def wanted(service: str, generation: Generation) -> bool:
            short = short_revision(generation.revision)
            known = f"revision {short} was here before, as {service}@{generation.number}"
            with hushed():
                if restoring or (
                    sys.stdin.isatty() and click.confirm(f"{known}. Restore its state?", err=True)
                ):
                    return True
                click.echo(f"{known}; not restored: castore follow {service}, or castore rollback", err=True)
                return False

        done = run_guarded(work, services, command, wanted)
        if as_json:
            print_json({"services": [_guarded(service, done) for service in done.taken]})
        if done.failure:
            outcome = "; ".join(f"{service}: {said}" for service, said in done.outcome.items())
            raise DeploymentRevertedError(f"{done.failure}; the deployment was reverted: {outcome}")
        for service, said in done.outcome.items():
            summarize(f"{service}: {said}", err=as_json)


def _guarded(service: str, done: Guarded) -> dict[str, Any]:
    known = done.known.get(service)
    return {
        "service": service,
        "number": done.taken[service].number,
        "reverted": bool(done.failure),
        "known": known.number if known is not None else None,
        "restored": service in done.restored,
    }


def _split_command(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split SERVICE... -- COMMAND; click has taken a -- that stood in front."""
    if "--" in words:
        at = words.index("--")
        return list(words[:at]), list(words[at + 1 :])
    raise click.UsageError("write -- in front of the command: castore guard SERVICE... -- COMMAND")


@click.command(epilog="Example: castore follow drupal")
@click.argument("services", metavar="SERVICE...", nargs=-1, required=True)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@json_option
@common
def follow(context: CliContext, services: tuple[str, ...], dry_run: bool, as_json: bool) -> None:
    """Make the state of each SERVICE match its configured revision. For boot and activation scripts.

    The state belongs to that revision: nothing. It is new: it is recorded. It has generations: the
    newest generation is restored with follow = "restore" in castore.toml; otherwise the command is printed.
    """
    from castore.cli.progress import watching
    from castore.cli.several import Several
    from castore.services.follow import follow as run_follow

    several = Several(services, apart=len(services) > 1)
    with context.open_store() as store, watching() as progress:
        store.sync_generations()
        for service in services:
            with several.service(service):
                work = _work(context, store, progress, (service,))
                (one,) = run_follow(work, (service,), dry_run=dry_run)
                several.results.append({
                    "service": one.service,
                    "revision": one.revision,
                    "before": one.before,
                    "number": one.generation.number if one.generation is not None else None,
                    "restored": one.restored,
                })
                if not as_json:
                    _print_followed(one, dry_run=dry_run)
    if as_json:
        print_json(several.results)
    several.finish()


def _print_followed(one: Followed, *, dry_run: bool) -> None:
    from castore.cli.progress import hushed

    if dry_run:
        with hushed():
            print(one.text, flush=True)
    elif one.generation is not None and not one.restored and is_quiet():
        click.echo(f"castore: {one.text}", err=True)  # something is left to do
    else:
        summarize(one.text)


@click.command(epilog="Example: castore revision drupal")
@click.argument("service")
@json_option
@common
def revision(context: CliContext, service: str, as_json: bool) -> None:
    """Print the configured revision of SERVICE, and its source."""
    from castore.errors import UsageError
    from castore.model.names import short_revision
    from castore.services.revision import current, source_of

    settings = context.required_settings().of(service)
    if settings is None or settings.revision is None:
        raise UsageError(f"castore.toml does not say where the revision of {service!r} comes from")
    now = current(settings.revision, settings.timeout) or ""
    source = source_of(settings.revision)
    with context.open_store() as store:
        live = store.live_revision(service)
    if as_json:
        print_json({"service": service, "revision": now, "source": source, "state": live})
        return
    print(f"{now}  ({source})")
    if live is not None and live != now:
        print(f"the state is that of revision {short_revision(live)}: castore follow {service}")


@click.command(epilog="Example: castore drill drupal")
@click.argument("what", metavar="SERVICE[@SEL]")
@click.option(
    "--scratch",
    metavar="DIR",
    type=LocalPath(),
    help="Where to restore to. Default: the system's temporary folder.",
)
@trust_option
@json_option
@common
@host_option
def drill(
    context: CliContext, what: str, scratch: str | None, trust_recorded: bool, as_json: bool
) -> None:
    """Restore a generation of SERVICE, the newest by default, into a scratch directory, and check it.

    Databases are loaded into servers of their own, on private sockets. Then `drill-check` of castore.toml
    runs. The result is stored, and `castore log` shows it.
    """
    from castore.cli.progress import watching
    from castore.content.restore.metadata import Ownership
    from castore.services.config import Service
    from castore.services.drill import drill as run_drill
    from castore.services.selectors import find

    service, _, selector = what.partition("@")
    settings = context.service_settings(service) or Service()
    with context.open_store() as store:
        store.sync_generations()
        generation = find(store, service, selector or "latest")

        def say(line: str) -> None:
            if not as_json:
                summarize(line)

        with watching() as progress:
            done = run_drill(
                store,
                generation,
                context.configured_origins(service),
                settings,
                Ownership(change=os.geteuid() == 0),
                scratch=scratch,
                consent=trust_recorded,
                say=say,
                warn=lambda line: click.echo(f"castore: {formatting.one_line(line)}", err=True),
                progress=progress,
            )
    if as_json:
        print_json({
            "service": service, "number": generation.number, "seconds": done.seconds, "parts": done.parts
        })
    else:
        summarize(f"{service}@{generation.number} is sound, {done.seconds:.1f} s")


@click.command(epilog="Example: castore events drupal")
@click.argument("service", required=False)
@click.option("--limit", type=Count(1), default=50, show_default=True, help="Show the newest N.")
@json_option
@common
def events(context: CliContext, service: str | None, limit: int, as_json: bool) -> None:
    """List what castore did on this machine, newest first, and what failed and why."""
    import msgspec

    with context.open_store() as store:
        found = store.event_log.read(service)[:limit]
    if as_json:
        print_json([{**msgspec.to_builtins(one), **times("time", one.time)} for one in found])
        return
    for one in found:
        number = f"@{one.number}" if one.number is not None else ""
        how = "" if one.ok else "FAILED: "
        took = formatting.duration(one.duration)
        print(f"{formatting.local_time(one.time)}  {one.kind} {one.service}{number}  {took}  {how}{one.text}")


@click.group(epilog="Example: castore config check")
def config() -> None:
    """Check castore.toml, and show what it means."""


@config.command("init", epilog="Example: castore config init /etc/castore/castore.toml")
@click.argument("file", required=False, type=LocalPath())
@common
def write_config(context: CliContext, file: str | None) -> None:
    """Write a commented castore.toml for the services found on this machine.

    FILE is by default /etc/castore/castore.toml for root, else ~/.config/castore/castore.toml; `-` prints it.
    An existing file is never overwritten.
    """
    from castore.cli import places
    from castore.errors import UsageError
    from castore.services.config import load
    from castore.services.detect import detect, document
    from castore.state.paths import make_private_directory

    path = file or places.config_to_write(context.config)
    if path != "-" and os.path.lexists(path):
        raise UsageError(f"{path} exists, and is not overwritten; print one with: castore config init -")
    store = context.store or places.store_from_environment()
    found = list(detect())
    body = document(places.absolute(store) if store else None, found)
    if path == "-":
        click.echo(body, nl=False)
        return
    path = places.absolute(path)
    make_private_directory(os.path.dirname(path))
    with open(path, "x", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as written:
        written.write(body)
    load(path, home=places.home(), programs=False)
    for one in found:
        summarize(f"{one.name}: {one.why}{'' if one.usable else ' Its lines are comments.'}")
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
    from castore.cli import places
    from castore.content.scan.exclude import Exclude
    from castore.errors import CastoreError, ConfigError
    from castore.fs.beneath import open_top
    from castore.process.program import errors_unshown
    from castore.process.users import owner_hint
    from castore.services.config import TreePart, load
    from castore.services.nested_parts import refuse_overlaps
    from castore.services.revision import current

    settings = context.required_settings()
    faults = load(settings.path, home=places.home(), tolerant=True).faults  # with missing programs
    found: list[dict[str, Any]] = []

    def report(what: str, error: CastoreError | str | None, *, needed: bool = True) -> None:
        problem = None if error is None else str(error)
        found.append({"what": what, "ok": problem is None, "needed": needed, "problem": problem})
        if as_json:
            return
        if problem is None:
            summarize(f"{what}: ok")
        else:
            print(f"{what}: {problem}")

    def tried(what: str, action: Any) -> None:
        try:
            action()
        except CastoreError as error:
            report(what, error)
        else:
            report(what, None)

    def open_store() -> None:
        with context.open_store() as store:
            try:
                with places.unasked():
                    store.identity()
            except CastoreError as error:
                reason = f"not reachable, which restore and rollback need ({error})"
                report("identity", reason, needed=False)
            else:
                report("identity", None)
            store.check_settings()

    def tree(service: Service, part: str, own: TreePart) -> None:
        if not (os.access(own.path, os.R_OK | os.X_OK) and os.path.isdir(own.path)):
            raise ConfigError(f"cannot read the tree {own.path}")
        open_and_close(own.path)
        if own.exclude:
            Exclude(own.exclude, own.path)
        refuse_overlaps(service, part)

    def open_and_close(path: str) -> None:
        try:
            os.close(open_top(path))
        except OSError as error:
            raise ConfigError(f"cannot read the tree {path}: {error.strerror}") from error

    tried("store", open_store)
    for problem in (one for problems in faults.values() for one in problems):
        where, _, what = problem.removeprefix(f"{settings.path}: ").partition(": ")
        report(where, what)
    for name, service in {**settings.service, **settings.partial}.items():
        tried(f"{name}: revision", lambda service=service: current(service.revision, service.timeout))
        for part, described in service.parts.items():
            own = described.source
            if isinstance(own, TreePart):
                tried(f"{name}: {part}", lambda service=service, part=part, own=own: tree(service, part, own))
            else:
                with errors_unshown():
                    tried(f"{name}: {part}", own.check)
            path = getattr(own, "path", None)
            if path is not None and described.run_as is None:
                hint = owner_hint(path, becomes_owner=described.engine == "sqlite")
                if hint is not None:
                    report(f"{name}: {part}: run-as", hint, needed=False)
    if as_json:
        print_json({"path": settings.path, "checks": found})
    if failed := sum(one["needed"] and not one["ok"] for one in found):
        raise ConfigError(f"{settings.path}: {formatting.count(failed, 'problem')}, as said above")
