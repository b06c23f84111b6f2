"""castore snapshot."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, NamedTuple

import click

from castore.cli.options import LocalPath, common, json_option, print_json, split_named, split_program
from castore.cli.quiet import summarize

if TYPE_CHECKING:
    from castore.cli.context import CliContext
    from castore.cli.service_results import ServiceResults
    from castore.services.hooks import Hooks
    from castore.services.snapshot import Source
    from castore.store import Store


@click.command(
    epilog="Example: castore snapshot drupal --revision r1 --tree sites=/var/lib/drupal/sites "
    "--exec db='mariadb-dump --skip-dump-date drupal'"
)
@click.argument("services", metavar="[SERVICE]...", nargs=-1)
@click.option("--all", "everything", is_flag=True, help="Snapshot every service that castore.toml describes.")
@click.option("--revision", metavar="REV", help="The configuration that the state belongs to.")
@click.option("--tree", "trees", metavar="NAME=DIR", multiple=True, help="Take a directory as the part NAME.")
@click.option(
    "--dump", "dumps", metavar="NAME=FILE", multiple=True, help="Take a file; -: standard input."
)
@click.option(
    "--exec",
    "programs",
    metavar="NAME='ARGV'",
    multiple=True,
    help="Run a program without a shell and take its standard output, if it exits 0.",
)
@click.option(
    "--exclude", metavar="PATTERN", multiple=True, help="Leave matching paths out; as in .gitignore."
)
@click.option(
    "--exclude-file",
    "exclude_files",
    metavar="FILE",
    type=LocalPath(),
    multiple=True,
    help="Read such patterns from a file, one per line.",
)
@click.option("--one-file-system", is_flag=True, help="Stay on the file system of each tree's top.")
@click.option(
    "--exclude-caches", is_flag=True, help="Of directories with a CACHEDIR.TAG, keep only that file."
)
@click.option(
    "--allow-empty", is_flag=True, help="Accept a dump from standard input or a pipe that is empty."
)
@click.option(
    "--dry-run", is_flag=True, help="Show what would be taken; run no program, store nothing."
)
@json_option
@common
def snapshot(
    context: CliContext,
    services: tuple[str, ...],
    everything: bool,
    revision: str | None,
    trees: tuple[str, ...],
    dumps: tuple[str, ...],
    programs: tuple[str, ...],
    exclude: tuple[str, ...],
    exclude_files: tuple[str, ...],
    one_file_system: bool,
    exclude_caches: bool,
    allow_empty: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take one generation of each SERVICE, with all its parts.

    With a castore.toml that describes SERVICE, its name alone is enough; options for trees are added to
    what it says. Without any configuration, the first snapshot creates a store and an identity, and
    prints where they are.

    Of several services, the failure of one does not stop the others; the exit code is that of the worst.
    """
    from castore.cli.service_results import ServiceResults

    patterns = (*(one for file in exclude_files for one in _read_patterns(file)), *exclude)
    limits = TreeLimits(patterns, one_file_system, exclude_caches)
    given = _given_sources(trees, dumps, programs, limits, allow_empty=allow_empty)
    names = _chosen_services(context, services, everything=everything, given=bool(given))
    several = ServiceResults(names, apart=everything or len(names) > 1)
    wanted: dict[str, tuple[dict[str, Source], Hooks]] = {}
    for name in names:
        with several.service(name):
            wanted[name] = _wanted(context, name, given, limits)
    if dry_run:
        from castore.cli.snapshot_preview import show_preview

        for name, (sources, _) in wanted.items():
            with several.service(name):
                show_preview(context, name, sources, revision, several, as_json=as_json)
    elif wanted:
        with context.open_store(make=True) as store:
            try:
                for name, (sources, around) in wanted.items():
                    with several.service(name):
                        _take(context, store, name, sources, around, revision, several, as_json=as_json)
            finally:
                if store.older:
                    print(f"castore: warning: {store.older}", file=sys.stderr)
    if as_json and several.apart:
        print_json(several.results)
    several.finish()


class TreeLimits(NamedTuple):
    """The options that exclude paths from every tree."""

    exclude: tuple[str, ...]
    one_file_system: bool
    exclude_caches: bool


def _read_patterns(path: str) -> list[str]:
    """Return the patterns of an --exclude-file, without comments. Raises UsageError."""
    from castore.errors import UsageError

    try:
        with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"--exclude-file: cannot read {path!r}: {reason}") from None
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _given_sources(
    trees: tuple[str, ...],
    dumps: tuple[str, ...],
    programs: tuple[str, ...],
    limits: TreeLimits,
    *,
    allow_empty: bool,
) -> dict[str, Source]:
    """Return the parts that options describe. Raises UsageError."""
    from castore.errors import UsageError
    from castore.fs.regular import descriptor_of, open_stream
    from castore.services.snapshot import Stream, Tree, file_source, program_source
    from castore.state.directories import expanded

    sources: dict[str, Source] = {}
    read: set[int] = set()

    def add(name: str, source: Source) -> None:
        if name in sources:
            raise UsageError(f"two parts are named {name!r}: give each part another NAME")
        sources[name] = source

    for text in trees:
        name, path = split_named("--tree", text)
        add(name, Tree(expanded(path), *limits))
    for text in dumps:
        name, path = split_named("--dump", text)
        number = 0 if path == "-" else descriptor_of(expanded(path))
        if number in read:
            raise UsageError(f"the open file {path!r} can be read once only: give it to one --dump")
        if number is not None:
            read.add(number)
        descriptor = sys.stdin.fileno() if path == "-" else open_stream(expanded(path))
        add(name, file_source(expanded(path)) if descriptor is None else Stream(descriptor, allow_empty))
    for text in programs:
        name, argv = split_named("--exec", text)
        add(name, program_source(split_program("--exec", argv)))
    return sources


def _chosen_services(
    context: CliContext, services: tuple[str, ...], *, everything: bool, given: bool
) -> list[str]:
    """Return the services to snapshot, each once. Raises UsageError."""
    from castore.errors import UsageError

    names = list(dict.fromkeys(services))
    if given and (everything or len(names) > 1):
        raise UsageError("--tree, --dump and --exec describe the parts of one SERVICE: name one SERVICE")
    if everything and names:
        raise UsageError(f"--all takes every service of castore.toml: leave out {names[0]!r}, or --all")
    if not everything:
        if not names:
            raise click.UsageError(
                "name a SERVICE, or --all for every service of castore.toml", click.get_current_context()
            )
        return names
    settings = context.required_settings()
    names = [*settings.faults, *(name for name, one in settings.service.items() if one.parts)]
    if not names:
        raise UsageError(
            f"{settings.path} describes no service that has parts: add one, then: castore config check"
        )
    return names


def _wanted(
    context: CliContext, service: str, given: dict[str, Source], limits: TreeLimits
) -> tuple[dict[str, Source], Hooks]:
    """Return the parts to take of a service, and its hooks. Raises UsageError."""
    import dataclasses

    from castore.services.hooks import Hooks
    from castore.services.snapshot import Tree

    if given:
        _note_useless(given)
        return given, Hooks(())
    sources = context.configured_sources(service)
    for name, source in sources.items():
        if isinstance(source, Tree):
            sources[name] = dataclasses.replace(
                source,
                exclude=(*source.exclude, *limits.exclude),
                one_file_system=source.one_file_system or limits.one_file_system,
                exclude_caches=source.exclude_caches or limits.exclude_caches,
            )
    _note_useless(sources)
    return sources, Hooks.of(context.service_settings(service))


def _note_useless(sources: dict[str, Source]) -> None:
    """Print which exclude patterns cannot match anything in any of the trees."""
    from castore.cli.formatting import printable
    from castore.content.scan.exclude import why_useless
    from castore.services.snapshot import Tree

    reasons: dict[str, list[str]] = {}
    for source in sources.values():
        if isinstance(source, Tree):
            for pattern in source.exclude:
                top = os.path.abspath(os.fsdecode(source.path))
                reasons.setdefault(pattern, []).append(why_useless(pattern, top))
    for pattern, found in reasons.items():
        if all(found):
            shown = printable(os.fsencode(pattern))
            print(f"castore: note: the exclude pattern {shown} matches nothing: {found[0]}", file=sys.stderr)


def _take(
    context: CliContext,
    store: Store,
    service: str,
    sources: dict[str, Source],
    around: Hooks,
    revision: str | None,
    several: ServiceResults,
    *,
    as_json: bool,
) -> None:
    """Take a generation of one service, and print it; the JSON of several services is printed at the end."""
    from castore.cli.generations import describe, plain
    from castore.cli.operations import operations_of
    from castore.cli.progress import watching
    from castore.errors import IncompleteError
    from castore.services.snapshot import unrestorable

    with watching() as progress:
        operations = operations_of(context, store, progress, (service,))
        done = operations.snapshot(
            service, sources, hooks=around, revision=revision, after_interruption=True
        )
    taken = done.generation
    for name in unrestorable(sources):
        print(
            f"castore: note: no program is known that restores the part {name!r}; a rollback needs "
            f"--restore {name}='PROGRAM ...', or 'restore' of the part in castore.toml",
            file=sys.stderr,
        )
    if done.missing_parts:
        print(
            f"castore: note: {service}@{taken.number} is partial, since castore.toml also describes "
            f"{', '.join(done.missing_parts)}: only its number selects it",
            file=sys.stderr,
        )
    entry = plain(taken)
    several.results.append(entry)
    if not as_json:
        summarize(describe(taken))
    elif not several.apart:
        print_json(entry)
    if done.failures:
        raise IncompleteError(f"{service}@{taken.number} is committed, but: {'; '.join(done.failures)}")
    if taken.skipped_files:
        context.report_missed(done.skipped_files, taken)
