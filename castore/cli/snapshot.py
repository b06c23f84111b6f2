"""castore snapshot."""

from __future__ import annotations

import shlex
import sys
from typing import TYPE_CHECKING

import click

from castore.cli.options import common, json_option, print_json

if TYPE_CHECKING:
    from castore.cli.opening import Common
    from castore.services.snapshot import Source


def split_named(option: str, text: str) -> tuple[str, str]:
    """Split NAME=VALUE."""
    from castore.errors import UsageError

    name, equals, value = text.partition("=")
    if not equals or not name or not value:
        raise UsageError(f"{option} takes NAME=VALUE, not {text!r}")
    return name, value


def split_program(option: str, text: str) -> tuple[str, ...]:
    """Split a program and its arguments by a shell's rules. No shell is run."""
    from castore.errors import UsageError

    try:
        argv = tuple(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"{option} {text!r} cannot be split into arguments: {error}") from None
    if not argv:
        raise UsageError(f"{option} names no program")
    return argv


@click.command(
    epilog="Example: castore snapshot drupal --revision r1 --tree sites=/var/lib/drupal/sites "
    "--exec db='mariadb-dump --skip-dump-date drupal'"
)
@click.argument("service")
@click.option("--revision", metavar="REV", help="The configuration that the state belongs to.")
@click.option("--tree", "trees", metavar="NAME=DIR", multiple=True, help="Take a directory.")
@click.option(
    "--dump", "dumps", metavar="NAME=FILE", multiple=True, help="Take a file; - is standard input."
)
@click.option(
    "--exec",
    "programs",
    metavar="NAME='ARGV'",
    multiple=True,
    help="Run a program without a shell and take its standard output, if it exits 0.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="Leave out of trees, as in .gitignore."
)
@click.option("--one-file-system", is_flag=True, help="Stay on the file system of each tree's top.")
@click.option(
    "--exclude-caches", is_flag=True, help="Of directories with a CACHEDIR.TAG, keep only that."
)
@json_option
@common
def snapshot(
    context: Common,
    service: str,
    revision: str | None,
    trees: tuple[str, ...],
    dumps: tuple[str, ...],
    programs: tuple[str, ...],
    exclude: tuple[str, ...],
    one_file_system: bool,
    exclude_caches: bool,
    as_json: bool,
) -> None:
    """Take one generation of SERVICE, with all its parts.

    With a castore.toml that describes SERVICE, its name alone is enough. With nothing configured, the
    first snapshot makes a store and an identity, and says where.
    """
    from castore.cli.generations import describe, plain
    from castore.cli.opening import own_folders
    from castore.cli.progress import watching
    from castore.errors import IncompleteError, StorageError, UsageError
    from castore.services.hooks import Around
    from castore.services.snapshot import FileSource, ProgramSource, StreamSource, TreeSource, unrestorable
    from castore.services.snapshot import snapshot as take
    from castore.services.state_revision import filed_under
    from castore.services.transaction import unfinished

    sources: dict[str, Source] = {}

    def add(name: str, source: Source) -> None:
        if name in sources:
            raise UsageError(f"two parts are named {name!r}")
        sources[name] = source

    for text in trees:
        name, path = split_named("--tree", text)
        add(name, TreeSource(path, exclude, one_file_system, exclude_caches))
    for text in dumps:
        name, path = split_named("--dump", text)
        if path == "-" and any(isinstance(source, StreamSource) for source in sources.values()):
            raise UsageError("standard input can be one part only")
        add(name, StreamSource(sys.stdin.fileno()) if path == "-" else FileSource(path))
    for text in programs:
        name, argv = split_named("--exec", text)
        add(name, ProgramSource(split_program("--exec", argv)))
    around = Around(())
    if not sources:
        sources = context.configured_sources(service)
        around = Around.of(context.service_settings(service))
    with context.open_store(make=True) as store:
        configured = context.present_revision(service)
        context.check_recipients(store)
        with store.lock(service), watching() as progress:
            # Without new generations the damage of a failed rollback would only grow.
            interrupted = store.begun_rollback(service) is not None
            filed, noting, warning = filed_under(store, service, revision, configured)
            if warning:
                print(f"castore: {warning}", file=sys.stderr)
            taken = take(
                store,
                service,
                sources,
                revision=filed,
                interrupted=interrupted,
                leave_out=own_folders(),
                around=around,
                progress=progress,
            )
            failures = list(around.failures)
            if interrupted:
                failures.append(f"it is marked, and only its number selects it: {unfinished(service)}")
            elif noting:
                try:
                    store.set_live_revision(service, taken.revision)
                except StorageError as error:
                    failures.append(f"that its revision is the live one was not noted: {error}")
        for name in unrestorable(sources):
            print(
                f"castore: note: no program is known that restores the part {name!r}: a rollback needs "
                f"--restore {name}='PROGRAM ...', or 'restore' of the part in castore.toml",
                file=sys.stderr,
            )
        if store.older:
            print(f"castore: warning: {store.older}", file=sys.stderr)
        if as_json:
            print_json(plain(taken))
        else:
            print(describe(taken))
        if failures:
            raise IncompleteError(f"{service}@{taken.number} is committed, but: {'; '.join(failures)}")
        if taken.missed:
            context.report_missed(progress.warnings, taken)
